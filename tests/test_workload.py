"""Reserved, used and wasted tokens: by hand, against PagedSeqState, and over a long seeded stretch."""

from pathlib import Path

import numpy as np
import pytest

from paged_core import BlockAllocator, PagedSeqState
from paged_core.workload import Contiguous, LengthHistogram, Pages, Request, simulate

DATA = Path(__file__).parents[1] / "notebooks" / "data" / "request_lengths.json"
TINY = [Request(0, 5, 3), Request(1, 2, 2), Request(2, 3, 6)]  # 8, 4 and 9 tokens in the end


@pytest.fixture(scope="module")
def conv():
    return LengthHistogram(DATA, "conv")


@pytest.mark.parametrize(("trace", "prompt_mean", "output_mean"), [("conv", 1154.7, 211.1), ("code", 2047.8, 27.9)])
def test_drawn_lengths_have_the_trace_s_own_means_and_bins(trace, prompt_mean, output_mean):
    histogram = LengthHistogram(DATA, trace)
    requests = histogram.draw(20_000, seed=3)
    prompts, outputs, arrivals = (
        np.array([getattr(r, x) for r in requests]) for x in ("prompt_tokens", "output_tokens", "arrival_s")
    )
    # the trace's means, as published beside it: within 4 standard errors and the width of a bin (about a fifth)
    assert abs(prompts.mean() - prompt_mean) < 0.04 * prompt_mean
    assert abs(outputs.mean() - output_mean) < 0.06 * output_mean
    drawn = np.histogram2d(prompts, outputs, (histogram.prompt_edges - 0.5, histogram.output_edges - 0.5))[0]
    assert drawn.sum() == 20_000 and not drawn[histogram.counts == 0].any()
    expected = histogram.counts / histogram.counts.sum() * 20_000
    assert (np.abs(drawn - expected) <= 6 * np.sqrt(expected) + 1).all()
    assert (np.diff(arrivals) >= 0).all()
    assert arrivals[-1] == pytest.approx(20_000 * histogram.mean_interarrival_s)


def test_a_seed_gives_these_very_requests(conv):
    """Written down, because the numbers that the notebooks print rest on them."""
    lengths = [(r.prompt_tokens, r.output_tokens) for r in conv.draw(3, seed=0)]
    assert lengths == [(971, 457), (1156, 414), (1208, 419)]
    assert conv.draw(3, seed=1) != conv.draw(3, seed=0)
    assert conv.draw(0, seed=0) == []


def test_pages_by_hand():
    """Budget 16 in blocks of 4. Prompts 5 and 2 take blocks 0, 1 and 2; prompt 3 and its next token take block 3."""
    run = simulate(TINY, Pages(16, 4), 3, watch=range(3))
    assert run.spans[0].tolist() == [(0, 0, 4, 4), (0, 4, 4, 2), (1, 8, 4, 3), (2, 12, 4, 4)]
    assert run.spans[1].tolist() == [(0, 0, 4, 4), (0, 4, 4, 3), (1, 8, 4, 4)]  # 2 needs a fifth block: it gives way
    assert run.spans[2].tolist() == [(0, 0, 4, 4), (0, 4, 4, 4), (2, 8, 4, 4), (2, 12, 4, 1)]
    assert (run.running, run.waiting, run.preempted, run.finished) == ([3, 2, 2], [0, 1, 0], 1, 2)
    assert (run.used, run.to_come, run.never, run.free) == ([13, 11, 13], [3, 1, 3], [0, 0, 0], [0, 4, 0])


def test_contiguous_by_hand():
    """Budget 20, 9 slots a request: two fit; the third comes in at the first one's address when that one has left."""
    run = simulate(TINY, Contiguous(20, lambda request: 9), 4, watch=range(4))
    assert run.spans[0].tolist() == [(0, 0, 9, 6), (1, 9, 9, 3)]
    assert run.spans[2].tolist() == [(0, 0, 9, 8), (2, 9, 9, 4)]  # 1 left after step 1
    assert run.spans[3].tolist() == [(2, 9, 9, 5)]
    assert (run.running, run.waiting, run.finished) == ([2, 2, 2, 1], [1, 1, 0, 0], 2)
    assert (run.used, run.to_come, run.never, run.free) == (
        [9, 11, 12, 5],
        [3, 1, 5, 4],
        [6, 6, 1, 0],
        [2, 2, 2, 11],
    )


def test_a_hole_too_small_is_not_used():
    """Exact reservations leave gaps: 4 + 4 slots are free, in two pieces, and 8 tokens do not fit."""
    memory = Contiguous(12, lambda request: request.total_tokens)
    a, b, c = Request(0, 3, 1), Request(1, 3, 1), Request(2, 3, 1)
    assert all(memory.hold(r, 4) for r in (a, b, c))
    memory.release(a)
    memory.release(c)
    assert memory.budget - memory.reserved == 8
    assert not memory.hold(Request(3, 7, 1), 8) and memory.reserved == 4
    assert memory.hold(Request(4, 3, 1), 4) and memory.runs[4] == (0, 4)


def test_pages_are_what_paged_seq_state_holds(conv):
    """The same allocations through PagedSeqState give the same block ids, request by request, step by step."""
    requests = conv.draw(6, seed=5)
    pages, allocator = Pages(16_384, 16), BlockAllocator(1024)
    states = {request: PagedSeqState(16, 1024) for request in requests}
    for extra in range(1, 40):
        for request, state in states.items():
            assert pages.hold(request, request.prompt_tokens + extra)
            state.ensure_capacity(allocator, request.prompt_tokens + extra)
            assert pages.tables[request.id] == state.blocks
    for request, state in states.items():
        pages.release(request)
        state.release(allocator)
    assert pages.allocator.allocate_n(1024) == allocator.allocate_n(1024)


def test_reserving_the_maximum_is_paging_with_one_block_that_long(conv):
    requests = conv.draw(500, seed=2)
    contiguous = simulate(requests, Contiguous(65_536, lambda request: 16_384), 600, watch=[599])
    paged = simulate(requests, Pages(65_536, 16_384), 600, watch=[599])
    assert contiguous.spans.pop(599).tolist() == paged.spans.pop(599).tolist()
    assert contiguous == paged


@pytest.mark.parametrize(
    "memory",
    [
        lambda: Pages(30_000, 1),
        lambda: Pages(30_000, 16),
        lambda: Pages(30_001, 256),
        lambda: Contiguous(30_000, lambda request: request.total_tokens),
        lambda: Contiguous(65_536, lambda request: 1 << request.total_tokens.bit_length()),
    ],
)
def test_the_sums_agree_and_no_slot_is_held_twice(conv, memory):
    memory = memory()
    run = simulate(conv.draw(400, seed=7), memory, 500, watch=range(0, 500, 25))
    counts = [np.array(getattr(run, x)) for x in ("used", "to_come", "never", "free")]
    assert (sum(counts) == run.budget).all() and all((x >= 0).all() for x in counts)
    for step, spans in run.spans.items():
        assert spans["used"].sum() == run.used[step]
        assert spans["tokens"].sum() == run.budget - run.free[step]
        assert (spans["used"] > 0).all() and (spans["used"] <= spans["tokens"]).all()
        spans.sort(order="start")
        ends = spans["start"] + spans["tokens"]
        assert spans["start"][0] >= 0 and (ends[:-1] <= spans["start"][1:]).all() and ends[-1] <= memory.budget
        if isinstance(memory, Pages):  # open slots are only in a request's last block
            assert (
                np.unique(spans["request"][spans["used"] < spans["tokens"]], return_counts=True)[1].max(initial=0) <= 1
            )
            assert run.to_come[step] + run.never[step] <= run.running[step] * (memory.block_size - 1)
    assert run.finished > 0


def test_everyone_is_served_in_the_end_and_pages_are_all_given_back(conv):
    requests = conv.draw(60, seed=11)
    memory = Pages(20_000, 16)
    run = simulate(requests, memory, 6000)
    assert run.finished == 60 and run.running[-1] == run.waiting[-1] == 0 and run.preempted > 0
    assert memory.allocator.in_use == 0 and memory.tables == {}


def test_requests_come_when_they_come():
    late = [Request(0, 4, 2, arrival_s=0.0), Request(1, 4, 2, arrival_s=0.5)]
    run = simulate(late, Pages(64, 4), 8, step_s=0.1)
    assert run.running == [1, 1, 0, 0, 0, 1, 1, 0]


def test_what_can_never_fit_is_refused():
    with pytest.raises(ValueError, match="16 tokens are too few for Request"):
        simulate([Request(0, 15, 10)], Pages(16, 4), 10)
    with pytest.raises(ValueError, match="budget: 16 tokens"):
        simulate([Request(0, 20, 1)], Contiguous(16, lambda request: request.total_tokens), 1)
    with pytest.raises(ValueError, match="reserve: 4 tokens are too few"):
        simulate([Request(0, 3, 4)], Contiguous(16, lambda request: 4), 9)
    with pytest.raises(ValueError, match="block_size"):
        Pages(16, 0)
    with pytest.raises(KeyError, match="chess"):
        LengthHistogram(DATA, "chess")
