"""The virtual clock around the real scheduler: worked by hand, and counted over a busy stretch."""

from itertools import pairwise

import pytest

from paged_core import BlockAllocator, Preemption, PrefixCache, Scheduler
from paged_core.serving import Arrival, Span, StepCost, arrivals, percentile, serve, steady_step
from paged_core.workload import LengthHistogram
from paged_core.workload import Request as Lengths
from tests.test_workload import DATA

FOUR_BLOCKS = [
    Arrival("A", 0, range(5), 6),
    Arrival("B", 0, range(3), 6),
    Arrival("C", 1, range(4), 3),
    Arrival("D", 1, range(14), 4),
]
UNIT = StepCost(1)


def four_blocks(preemption, num_host_blocks=0, cost=UNIT):
    scheduler = Scheduler(
        BlockAllocator(4), block_size=4, max_running=4, max_tokens_per_step=8, preemption=preemption,
        num_host_blocks=num_host_blocks,
    )  # fmt: skip
    return serve(scheduler, FOUR_BLOCKS, cost, watch=range(20))


def busy(num_blocks=512, cache=False, **options):
    requests = LengthHistogram(DATA, "conv").draw(60, seed=1)
    blocks = BlockAllocator(num_blocks)
    blocks = PrefixCache(blocks, block_size=16) if cache else blocks
    return serve(Scheduler(blocks, block_size=16, **options), arrivals(requests), StepCost(8000, 80, 1, 84)), blocks


def test_scheduler_recomputes_as_worked_by_hand():
    service = four_blocks(Preemption.RECOMPUTE)
    assert service.ledger("ABC").splitlines() == [
        "step  A                 B                 C                 free",
        "   0  prompt    0 1     prompt    2       -                 1",
        "   1  decode    0 1     decode    2       prompt    3       0",
        "   2  decode    0 1     decode    2 3     preempted         0",
        "   3  decode    0 1     decode    2 3     preempted         0",
        "   4  decode    0 1 3   preempted         preempted         1",
        "   5  decode    0 1 3   preempted         preempted         1",
        "   6  -                 again     3 1     again     0       1",
        "   7  -                 decode    3 1     again     0 2     0",
        "   8  -                 -                 decode    0 2     2",
    ]
    assert service.total("preempted") == 2 and service.total("tokens_again") == 6 + 4
    # each request's prompt, and all its new tokens but the last, computed once
    assert service.total("new_tokens") == (5 + 5) + (3 + 5) + (4 + 2)
    assert {id: served.token_us for id, served in service.served.items()} == {
        "A": [1, 2, 3, 4, 5, 6],
        "B": [1, 2, 3, 4, 7, 8],
        "C": [2, 8, 9],
    }
    assert service.served["C"].first_token_us == 1 and service.served["B"].gaps_us == [1, 1, 1, 3, 1]
    assert [served.num_preemptions for served in service.served.values()] == [0, 1, 1]
    assert list(service.refused) == ["D"] and "need 5 blocks of 4; the pool has 4" in service.refused["D"]


def test_scheduler_swaps_as_worked_by_hand():
    service = four_blocks(Preemption.SWAP, num_host_blocks=4)
    assert service.total("tokens_again") == 0 and service.total("blocks_moved") == 2 * (1 + 2)
    assert Span("C", "swapped", 2, 6) in service.spans and Span("B", "swapped", 4, 6) in service.spans
    assert len(service.steps) == 8


def test_a_step_costs_what_it_says():
    service = four_blocks(Preemption.SWAP, num_host_blocks=4, cost=StepCost(1000, 100, 10, 1))
    step = service.steps[0]  # 8 tokens, 3 blocks read
    assert step.end_us - step.begin_us == 1000 + 8 * 100 + 3 * 10
    step = next(step for step in service.steps if step.blocks_moved)  # C leaves; A and B go on with 4 blocks
    assert step.preempted == ("C",) and step.end_us - step.begin_us == 1000 + 2 * 100 + 4 * 10 + 1


def test_spans_of_a_request_follow_each_other_from_its_arrival_to_its_last_token():
    service, blocks = busy(cache=True, watermark=0)
    assert service.total("preempted") > 5 and blocks.in_use == 0
    for id, served in service.served.items():
        spans = [span for span in service.spans if span.id == id]
        assert spans[0].begin_us == served.arrived_us and spans[-1].end_us == served.token_us[-1]
        assert all(one.end_us == other.begin_us and one.what != other.what for one, other in pairwise(spans))
        assert served.token_us == sorted(set(served.token_us))


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("preemption", Preemption)
def test_scheduler_under_load_computes_every_token_once_and_again_only_what_was_lost(cache, preemption):
    requests = LengthHistogram(DATA, "conv").draw(60, seed=1)
    service, blocks = busy(cache=cache, preemption=preemption, num_host_blocks=10_000, watermark=0)
    assert blocks.in_use == 0 and not service.refused
    assert service.total("new_tokens") == sum(r.total_tokens - 1 for r in requests)
    assert [len(service.served[r.id].token_us) for r in requests] == [r.output_tokens for r in requests]
    assert service.total("preempted") == sum(served.num_preemptions for served in service.served.values()) > 5
    assert (service.total("tokens_again") > 0) == (preemption is Preemption.RECOMPUTE)
    assert (service.total("blocks_moved") > 0) == (preemption is Preemption.SWAP)
    assert max(step.blocks_in_use for step in service.steps) <= 512


def test_a_service_is_the_same_each_time_and_ends_sooner_with_more_blocks():
    assert busy()[0] == busy()[0]
    assert busy()[0].first_token_us(99) > busy(num_blocks=4096)[0].first_token_us(99)
    generated = sum(len(served.token_us) for served in busy()[0].served.values())
    assert busy()[0].tokens_per_s == generated * 1_000_000 // (busy()[0].steps[-1].end_us - busy()[0].steps[0].begin_us)


def test_nobody_there_means_the_clock_waits_for_the_next():
    service = serve(
        Scheduler(BlockAllocator(4), block_size=4, max_running=4),
        [Arrival(0, 5, [1], 1), Arrival(1, 1_000_000, [1], 2)],
        StepCost(10),
    )
    times = [(step.begin_us, step.end_us) for step in service.steps]
    assert times == [(5, 15), (1_000_000, 1_000_010), (1_000_010, 1_000_020)]
    assert service.gap_us(99) == 10 and service.steps[0].tables is None


def test_arrivals_keep_lengths_times_and_whose_tokens_are_whose():
    drawn = [Lengths(0, 3, 2, 0.0004), Lengths(1, 4, 1, 1.2346)]
    first, second = arrivals(drawn)
    assert (first.at_us, second.at_us) == (0, 1_235_000)
    assert (len(first.prompt), len(second.prompt), first.max_new_tokens) == (3, 4, 2)
    assert not set(first.prompt) & set(second.prompt)
    assert [a.prompt for a in arrivals(drawn, [[1, 2, 3], [1, 2, 3, 4]])] == [[1, 2, 3], [1, 2, 3, 4]]


def test_percentiles_are_values_that_occurred():
    assert [percentile([30, 10, 20, 40], p) for p in (0, 1, 25, 26, 50, 99, 100)] == [10, 10, 10, 20, 20, 40, 40]


def test_a_steady_step_can_be_done_until_the_pool_is_full():
    """4 requests in 64 blocks of 16: each may have 64 * 16 / 4 = 256 tokens, 192 of them new, and has the first."""
    step = steady_step(4, 64)
    for _ in range(191):
        step()
    with pytest.raises(RuntimeError, match="all 4 requests have finished"):
        step()


def test_whoever_carries_out_the_plans_chooses_the_tokens():
    """The diary is of those: a stop token ends an answer though the clock is virtual."""
    scheduler = Scheduler(BlockAllocator(8), block_size=4)
    done = []

    def carry_out(plan):
        done.append(plan)
        return {work.request.id: 7 + len(done) for work in plan.work if work.samples}

    service = serve(scheduler, [Arrival("a", 0, [1, 2], 3)], StepCost(step_us=5), carry_out=carry_out)
    assert [work.request.tokens for work in done[0].work] == [[1, 2, 8, 9, 10]]
    assert service.served["a"].token_us == [5, 10, 15] and len(done) == len(service.steps) == 3
    assert service.answers == {"a": [8, 9, 10]} and service.peak_blocks == 1


def test_a_scheduler_can_go_on_when_carrying_out_a_plan_fails():
    scheduler = Scheduler(BlockAllocator(8), block_size=4)

    def carry_out(plan):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        serve(scheduler, [Arrival("a", 0, [1, 2], 3)], StepCost(step_us=5), carry_out=carry_out)
    assert [work.request.id for work in scheduler.plan().work] == ["a"]
