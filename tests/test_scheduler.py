"""The scheduler, without a model: who computes what, who waits, who gives way; and every block accounted for."""

import random
from collections import Counter

import numpy as np
import pytest

from paged_core import (
    BlockAllocator,
    InvalidBlock,
    InvalidRequest,
    PagedCoreError,
    Preemption,
    PrefixCache,
    RequestRefused,
    Scheduler,
    State,
)


def scheduler_of(num_blocks, *, block_size=4, cached=False, **options):
    blocks = BlockAllocator(num_blocks)
    options = {"max_running": 8, "max_tokens_per_step": 16, **options}
    return Scheduler(PrefixCache(blocks, block_size=block_size) if cached else blocks, block_size=block_size, **options)


def work_of(plan):
    return [(work.request.id, work.first, work.num_tokens, work.samples) for work in plan.work]


def complete(scheduler, plan, token=7):
    return scheduler.complete(plan, {work.request.id: token for work in plan.work if work.samples})


def step(scheduler):
    plan = scheduler.plan()
    complete(scheduler, plan)
    return plan


def finish(scheduler, steps=10_000):
    for _ in range(steps):
        if not scheduler.requests:
            return
        step(scheduler)
    raise AssertionError(f"{len(scheduler.requests)} requests are still here")


# ------------------------------------------------------------------------------------------------ steps worked by hand


def test_one_request_by_hand():
    """5 prompt tokens in blocks of 4, then 3 new ones: K and V of 5 + 3 - 1 tokens are stored, in 2 blocks."""
    scheduler = scheduler_of(2)
    request = scheduler.add("a", range(5), 3)
    assert (request.state, scheduler.waiting, request.blocks) == (State.WAITING, [request], [])
    plan = scheduler.plan()
    assert (work_of(plan), request.blocks, plan.admitted) == ([("a", 0, 5, True)], [0, 1], [request])
    assert complete(scheduler, plan) == []
    assert (request.state, request.tokens, request.num_computed) == (State.RUNNING, [0, 1, 2, 3, 4, 7], 5)
    plan = scheduler.plan()
    assert (work_of(plan), plan.num_tokens) == ([("a", 5, 1, True)], 1)
    complete(scheduler, plan)
    plan = scheduler.plan()
    assert work_of(plan) == [("a", 6, 1, True)]
    assert complete(scheduler, plan) == [request]
    assert (request.state, request.num_generated, request.tokens[5:]) == (State.FINISHED, 3, [7, 7, 7])
    assert (scheduler.requests, scheduler.blocks.in_use, scheduler.plan().work) == ({}, 0, [])


def test_a_stop_token_ends_a_request():
    scheduler = scheduler_of(4)
    request = scheduler.add("a", [1, 2], 10, stop_tokens=[5, 6])
    complete(scheduler, scheduler.plan(), token=4)
    assert complete(scheduler, scheduler.plan(), token=6) == [request]
    assert request.tokens == [1, 2, 4, 6]


def test_chunks_of_a_prompt_share_the_budget_with_decodes_and_decodes_come_first():
    """16 tokens a step. a decodes, so 15 are left for prompts: b takes 15 of its 20, then 5; c gets the rest."""
    scheduler = scheduler_of(20)
    scheduler.add("a", range(3), 9)
    step(scheduler)
    scheduler.add("b", range(20), 9)
    scheduler.add("c", range(30), 9)
    assert work_of(step(scheduler)) == [("a", 3, 1, True), ("b", 0, 15, False)]
    plan = step(scheduler)
    assert work_of(plan) == [("a", 4, 1, True), ("b", 15, 5, True), ("c", 0, 10, False)]
    assert plan.num_tokens == 16
    assert work_of(step(scheduler)) == [("a", 5, 1, True), ("b", 20, 1, True), ("c", 10, 14, False)]
    assert work_of(step(scheduler))[2] == ("c", 24, 6, True)


@pytest.mark.parametrize("num_tokens, chunks", [(16, [16]), (17, [16, 1]), (32, [16, 16]), (33, [16, 16, 1])])
def test_a_last_chunk_of_one_token(num_tokens, chunks):
    """It samples, as the end of a prompt does, and costs one token, as a decode does."""
    scheduler = scheduler_of(20)
    scheduler.add("a", range(num_tokens), 2)
    for i, count in enumerate(chunks):
        assert work_of(step(scheduler)) == [("a", 16 * i, count, i + 1 == len(chunks))]
    assert work_of(step(scheduler)) == [("a", num_tokens, 1, True)]
    assert scheduler.blocks.in_use == 0


def test_a_decode_behind_a_long_prompt_loses_no_step():
    """b's prompt could fill every step; a, which comes later in order, still gets its token in each."""
    scheduler = scheduler_of(100, max_tokens_per_step=8)
    scheduler.add("a", [1], 9, priority=1)
    step(scheduler)
    scheduler.add("b", range(100), 9)
    for i in range(4):
        assert sorted(work_of(step(scheduler))) == [("a", 1 + i, 1, True), ("b", 7 * i, 7, False)]
    assert [r.id for r in scheduler.running] == ["b", "a"]


def test_blocks_are_taken_only_as_chunks_need_them():
    scheduler = scheduler_of(20)
    request = scheduler.add("a", range(40), 1)
    for held in (4, 8, 10):
        plan = scheduler.plan()
        assert len(request.blocks) == scheduler.blocks.in_use == held
        complete(scheduler, plan)
    assert request.state is State.FINISHED


def test_prompts_that_begin_alike_are_computed_once():
    """a: 9 tokens, blocks 0 1 2, of which two are full. b begins with the same 8 and computes only what follows."""
    scheduler = scheduler_of(20, cached=True)
    scheduler.add("a", range(9), 4)
    step(scheduler)
    b = scheduler.add("b", [*range(8), 50, 51], 4)
    assert work_of(step(scheduler)) == [("a", 9, 1, True), ("b", 8, 2, True)]
    assert (b.blocks[:2], scheduler.blocks.in_use) == ([0, 1], 4)
    assert (scheduler.blocks.hits, scheduler.blocks.misses) == (2, 2)
    same = scheduler.add("c", range(8), 4)  # exactly two blocks: the last token has to be computed
    assert work_of(step(scheduler))[2] == ("c", 4, 4, True)
    assert same.blocks[0] == 0 and same.blocks[1] not in (0, 1)
    finish(scheduler)
    assert scheduler.blocks.in_use == 0 and scheduler.blocks.cached_count > 0


def test_salts_keep_requests_apart():
    scheduler = scheduler_of(20, cached=True)
    for name, salt in (("a", b"x"), ("b", b"y")):
        scheduler.add(name, range(9), 4, salt=salt)
        step(scheduler)
    assert scheduler.blocks.hits == 0


def test_hits_are_counted_once_an_admission_however_long_it_waits():
    scheduler = scheduler_of(6, cached=True, watermark=0)
    scheduler.add("a", range(8), 8)
    step(scheduler)
    scheduler.add(
        "b", [*range(8), *range(90, 101)], 4
    )  # 5 blocks, of which 2 are there and in use: 3 more of the 3 free
    scheduler.blocks.allocate_n(1)  # somebody else's
    for _ in range(3):
        assert step(scheduler).admitted == []
    assert (scheduler.blocks.hits, scheduler.blocks.misses) == (0, 1)


# ------------------------------------------------------------------------------------------------------ order and room


def test_first_come_first_served_and_nobody_overtakes_the_first():
    """3 of 4 blocks are taken. b needs 3 and waits; c, which would fit, waits behind it."""
    scheduler = scheduler_of(4, watermark=0)
    scheduler.add("a", range(12), 2)
    step(scheduler)
    scheduler.add("b", range(12), 2)
    scheduler.add("c", range(2), 2)
    assert [r.id for r in scheduler.waiting] == ["b", "c"]
    assert step(scheduler).admitted == []
    assert [r.id for r in step(scheduler).admitted] == ["b", "c"]


def test_the_watermark_by_hand():
    """10 blocks, watermark 2. a takes 4 though 6 are left; b's 4 would leave 2 and are let in; c's 1 would leave 1."""
    scheduler = scheduler_of(10, watermark=2, max_tokens_per_step=100)
    for name, blocks in (("a", 4), ("b", 4), ("c", 1)):
        scheduler.add(name, range(4 * blocks), 1 if name == "c" else 9)
    plan = scheduler.plan()
    assert [r.id for r in plan.admitted] == ["a", "b"] and scheduler.blocks.free_count == 2
    complete(scheduler, plan)
    scheduler.cancel("a")
    assert [r.id for r in step(scheduler).admitted] == ["c"]
    assert scheduler_of(1000).watermark == 10


def test_a_request_alone_may_take_what_the_watermark_keeps():
    scheduler = scheduler_of(4, watermark=4)
    request = scheduler.add("a", range(12), 5)
    scheduler.add("b", range(1), 1)
    assert step(scheduler).admitted == [request]
    finish(scheduler)


def test_a_long_prompt_waits_until_all_of_it_has_room():
    """Of b's 6 blocks 4 are free: its first chunk would fit, and would only be in the way."""
    scheduler = scheduler_of(9, watermark=0)
    scheduler.add("a", range(16), 9)
    step(scheduler)
    b = scheduler.add("b", range(24), 1)
    assert step(scheduler).admitted == [] and b.blocks == [] and scheduler.blocks.free_count == 4
    scheduler.cancel("a")
    assert step(scheduler).admitted == [b] and len(b.blocks) == 4


def test_cached_blocks_are_room_but_those_a_request_will_find_are_counted_once():
    """4 blocks, all cached, those of a's prompt. b finds 3 of them, and takes the fourth. 4 are enough, 3 are not."""
    scheduler = scheduler_of(4, cached=True, watermark=0)
    scheduler.add("a", range(16), 1)
    finish(scheduler)
    assert scheduler.blocks.cached_count == 4
    scheduler.add("b", range(16), 1)
    assert work_of(step(scheduler)) == [("b", 12, 4, True)]
    somebody = scheduler.blocks.allocate()  # evicts the last one
    scheduler.add("c", range(16), 1)
    assert step(scheduler).admitted == [] and scheduler.blocks.evictions == 2
    scheduler.blocks.free([somebody])
    assert work_of(step(scheduler)) == [("c", 12, 4, True)]


def test_no_more_than_max_running():
    scheduler = scheduler_of(20, max_running=2)
    for name in "abc":
        scheduler.add(name, [1], 2)
    assert [r.id for r in step(scheduler).admitted] == ["a", "b"]
    step(scheduler)
    assert [r.id for r in step(scheduler).admitted] == ["c"]


def test_priorities_by_hand():
    """patience 3: a level counts as 3 arrivals. Arrivals 0..4; low comes at 0 with level 1, so it stands at 3."""
    scheduler = scheduler_of(20, patience=3)
    scheduler.add("low", [1], 1, priority=1)  # 0 + 3
    for i in range(1, 5):
        scheduler.add(i, [1], 1)  # 1, 2, 3, 4
    scheduler.add("urgent", [1], 1, priority=-2)  # 5 - 6
    assert [r.id for r in scheduler.waiting] == ["urgent", 1, 2, "low", 3, 4]
    assert [r.id for r in step(scheduler).admitted] == ["urgent", 1, 2, "low", 3, 4]


@pytest.mark.parametrize("priority", [1, 5])
def test_a_stream_of_urgent_requests_starves_nobody(priority):
    """One urgent request a step comes, and there is room for one request a step. The low one starts when request
    number `priority * patience` after it has come, and not before."""
    scheduler = scheduler_of(1, patience=10, max_running=1)
    low = scheduler.add("low", [1], 1, priority=priority)
    for i in range(1, 10_000):
        scheduler.add(i, [1], 1)
        if low in step(scheduler).admitted:
            break
    assert i == priority * 10
    assert scheduler.requests.keys() == {i}


def test_under_pressure_the_low_one_is_not_thrown_out_for_ever():
    """Urgent requests keep coming into a pool too small, and grow. The low one is preempted, but ends in its turn."""
    scheduler = scheduler_of(8, patience=5, watermark=0)
    low = scheduler.add("low", range(12), 17, priority=2)
    others = 0
    while low.state is not State.FINISHED:
        if len(scheduler.waiting) < 4:
            others += 1
            scheduler.add(others, range(6), 11)
        step(scheduler)
        assert others < 60
    assert low.num_generated == 17


def test_order_among_preempted_and_forked():
    scheduler = scheduler_of(30)
    for name in "abc":
        scheduler.add(name, [1, 2], 20)
    step(scheduler)
    for parent, child in (("b", "b2"), ("b", "b3"), ("b2", "b22"), ("a", "a2")):
        scheduler.fork(parent, child)
    order = ["a", "a2", "b", "b2", "b22", "b3", "c"]
    assert [r.id for r in scheduler.running] == order
    plan = scheduler.plan()
    scheduler.abandon(plan)
    assert [r.id for r in scheduler.waiting] == order


# ---------------------------------------------------------------------------------------------------------- preemption


@pytest.mark.parametrize("preemption", Preemption)
def test_the_last_in_order_gives_way_by_hand(preemption):
    """a and b hold 2 of 4 blocks each, both full. a needs a third: b gives way. Its place in order stays its own."""
    scheduler = scheduler_of(4, watermark=0, preemption=preemption, num_host_blocks=2)
    a = scheduler.add("a", range(8), 5)
    b = scheduler.add("b", range(8), 5)
    step(scheduler)
    c = scheduler.add("c", [1], 1)
    plan = scheduler.plan()
    assert (plan.preempted, plan.admitted, len(a.blocks), b.blocks) == ([b], [], 3, [])  # nor is c admitted
    assert scheduler.waiting == [b, c] and b.num_preemptions == 1
    if preemption is Preemption.SWAP:
        assert (b.state, plan.swap_out, b.num_computed) == (State.SWAPPED, [(2, 0), (3, 1)], 8)
    else:
        assert (b.state, plan.swap_out, b.num_computed) == (State.WAITING, [], 0)
    complete(scheduler, plan)
    while a.state is State.RUNNING:
        assert step(scheduler).admitted == []
    plan = step(scheduler)
    assert plan.admitted == [b, c]
    if preemption is Preemption.SWAP:
        assert [host for host, _ in plan.swap_in] == [0, 1] and [to for _, to in plan.swap_in] == b.blocks[:2]
        assert work_of(plan)[0] == ("b", 8, 1, True) and scheduler.host_blocks.in_use == 0
    else:
        assert work_of(plan)[0] == ("b", 0, 9, True)
    finish(scheduler)


def test_nobody_is_admitted_in_a_step_in_which_somebody_gave_way():
    """a and b hold all 4 blocks when an urgent request comes. a needs a third, b gives way, and a block is left over:
    the urgent one gets it in the next step."""
    scheduler = scheduler_of(4, watermark=0)
    scheduler.add("a", range(8), 5)
    b = scheduler.add("b", range(8), 5)
    step(scheduler)
    urgent = scheduler.add("urgent", [1], 1, priority=-9)
    plan = step(scheduler)
    assert (plan.preempted, plan.admitted, scheduler.blocks.free_count) == ([b], [], 1)
    assert step(scheduler).admitted == [urgent]


def test_an_abandoned_swap_leaves_nobody_swapped():
    """Nobody can say whether what was to leave did: it is computed again, and its room on the host is free."""
    scheduler = scheduler_of(4, watermark=0, preemption=Preemption.SWAP, num_host_blocks=2)
    a, b = scheduler.add("a", range(8), 5), scheduler.add("b", range(8), 5)
    step(scheduler)
    plan = scheduler.plan()
    assert plan.swap_out and b.state is State.SWAPPED
    scheduler.abandon(plan)
    assert (a.state, b.state, b.num_computed, scheduler.host_blocks.in_use) == (State.WAITING, State.WAITING, 0, 0)
    assert scheduler.waiting == [a, b]
    finish(scheduler)


def test_when_the_host_is_full_it_is_recompute():
    """Three hold 2 of 6 blocks each. c is swapped out to both host blocks; later b has to go, and finds no room."""
    scheduler = scheduler_of(6, watermark=0, preemption=Preemption.SWAP, num_host_blocks=2, max_tokens_per_step=24)
    a, b, c = (scheduler.add(name, range(8), 9) for name in "abc")
    step(scheduler)
    assert step(scheduler).preempted == [c]
    assert (len(a.blocks), len(b.blocks), c.state, scheduler.host_blocks.free_count) == (3, 3, State.SWAPPED, 0)
    for _ in range(3):
        assert step(scheduler).preempted == []
    plan = step(scheduler)
    assert (plan.preempted, plan.swap_out, b.state, c.state) == ([b], [], State.WAITING, State.SWAPPED)
    finish(scheduler)


def test_who_is_last_itself_gives_way_itself():
    """Urgent a holds 3 of 4 blocks, b one that is full. b needs another and is itself the last."""
    scheduler = scheduler_of(4, watermark=0)
    scheduler.add("a", range(9), 3)
    b = scheduler.add("b", range(4), 3)
    step(scheduler)
    plan = scheduler.plan()
    assert plan.preempted == [b] and [work.request.id for work in plan.work] == ["a"]
    complete(scheduler, plan)
    finish(scheduler)
    assert b.num_generated == 3


def test_a_preempted_request_finds_its_own_blocks_in_the_cache():
    """5 blocks. a and the first 8 of b's 12 take 2 each; then both need a third, and b is the last."""
    scheduler = scheduler_of(5, cached=True, watermark=0)
    scheduler.add("a", range(8), 12)
    b = scheduler.add("b", range(50, 62), 2)
    step(scheduler)
    assert step(scheduler).preempted == [b] and scheduler.blocks.cached_count == 2
    scheduler.cancel("a")
    assert work_of(step(scheduler)) == [("b", 8, 4, True)]


# ------------------------------------------------------------------------------------------------- refusals and faults


def accounted(scheduler):
    """Every block is held exactly by those who list it."""
    held = Counter(block for request in scheduler.requests.values() for block in request.blocks)
    assert all(scheduler.blocks.ref_count(block) == held[block] for block in range(scheduler.blocks.capacity))
    hosts = [block for request in scheduler.requests.values() for block in request.host_blocks]
    assert scheduler.host_blocks.in_use == len(hosts) == len(set(hosts))


def test_what_can_never_fit_is_refused_at_once_with_the_reason():
    """4 blocks of 4: 16 tokens stored are the most, that is a prompt of 10 and 7 new ones, the last not stored."""
    scheduler = scheduler_of(4)
    scheduler.add("fits", range(10), 7)
    for prompt, new in ((10, 8), (17, 1), (1, 17)):
        with pytest.raises(
            RequestRefused, match=f"a prompt of {prompt} and {new} new tokens need 5 blocks of 4; the pool"
        ):
            scheduler.add("too long", range(prompt), new)
    assert scheduler.requests.keys() == {"fits"} and len(scheduler.waiting) == 1
    assert issubclass(RequestRefused, PagedCoreError)
    finish(scheduler)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (("b", [], 3), ValueError, "prompt: expected one token or more, got none"),
        (("b", range(0), 3), ValueError, "prompt: expected one token or more, got none"),
        (("b", [1, 2.5], 3), TypeError, "prompt: expected token ids"),
        (("b", "text", 3), TypeError, "prompt: expected token ids"),
        (("b", [2**64], 3), TypeError, "prompt: expected token ids"),
        (("b", 5, 3), TypeError, "prompt: expected token ids"),
        (("b", [1], 0), ValueError, "max_new_tokens: expected a positive integer, got 0"),
        (("b", [1], 2.0), TypeError, r"max_new_tokens: expected a positive integer, got 2\.0"),
        (("a", [1], 1), InvalidRequest, "id: request 'a' is here already, waiting"),
    ],
)
def test_a_refused_request_leaves_nothing_behind(arguments, error, message):
    for cached in (False, True):
        scheduler = scheduler_of(4, cached=cached)
        scheduler.add("a", [1], 1)
        with pytest.raises(error, match=message):
            scheduler.add(*arguments)
        assert scheduler.requests.keys() == {"a"} and len(scheduler.waiting) == 1


def test_a_refused_option_of_a_request_leaves_nothing_behind():
    scheduler = scheduler_of(4, cached=True)
    for options, message in (({"priority": 0.5}, "priority"), ({"salt": "text"}, "salt: expected bytes")):
        with pytest.raises(TypeError, match=message):
            scheduler.add("a", [1], 1, **options)
    assert scheduler.requests == {} and scheduler.waiting == []
    assert scheduler.add("a", np.array([1, 2]), np.int64(3)).tokens == [1, 2]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"blocks": 5}, "blocks: expected a BlockAllocator or a PrefixCache, got 5"),
        ({"block_size": 0}, "block_size: expected a positive integer, got 0"),
        ({"blocks": PrefixCache(BlockAllocator(4), block_size=8)}, "block_size: expected the prefix cache's 8, got 4"),
        ({"max_running": 0}, "max_running"),
        ({"max_running": 9, "max_tokens_per_step": 8}, "max_tokens_per_step: expected an integer of 9 or more, got 8"),
        ({"watermark": -1}, "watermark"),
        ({"patience": -1}, "patience"),
        ({"preemption": "swap"}, "preemption: expected one of"),
        ({"preemption": Preemption.SWAP}, "num_host_blocks: expected room to swap to, got 0"),
    ],
)
def test_a_scheduler_that_cannot_be(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Scheduler(**{"blocks": BlockAllocator(4), "block_size": 4, **options})


@pytest.mark.parametrize("state", ["waiting", "prompt", "decoding", "swapped", "swapping", "swapping in", "in a step"])
@pytest.mark.parametrize("end", ["complete", "abandon"])
def test_cancelling_in_any_state(state, end):
    scheduler = scheduler_of(4, watermark=0, preemption=Preemption.SWAP, num_host_blocks=4)
    plan = None
    if state in ("waiting", "prompt", "decoding", "in a step"):
        scheduler.add("b", range(13), 2)
        scheduler.max_tokens_per_step = 8
        for _ in range({"waiting": 0, "prompt": 1, "decoding": 2, "in a step": 1}[state]):
            step(scheduler)
        plan = scheduler.plan() if state == "in a step" else None
    else:
        scheduler.add("a", range(8), 5)
        scheduler.add("b", range(5), 5)
        while scheduler.requests["b"].state is not State.SWAPPED:
            plan = scheduler.plan()
            if scheduler.requests["b"].state is State.SWAPPED and state == "swapping":
                break
            complete(scheduler, plan)
            plan = None
        while state == "swapping in" and plan is None:
            plan = scheduler.plan()
            if not plan.swap_in:
                complete(scheduler, plan)
                plan = None
    b, held = scheduler.requests["b"], scheduler.blocks.in_use
    if state.startswith("swap"):
        assert (b.state is State.SWAPPED) == (state != "swapping in")
    scheduler.cancel("b")
    assert b.state is State.CANCELLED and "b" not in scheduler.requests
    with pytest.raises(InvalidRequest, match="there is no request 'b' here: it never came, finished, or was cancelled"):
        scheduler.cancel("b")
    if plan is None:
        assert b.blocks == b.host_blocks == []
        accounted(scheduler)
    else:
        assert scheduler.blocks.in_use == held  # somebody may be writing to them
        sampled = {work.request.id: 7 for work in plan.work if work.samples and work.request is not b}
        scheduler.complete(plan, sampled) if end == "complete" else scheduler.abandon(plan)
        accounted(scheduler)
        assert b.num_generated <= 4 and b.blocks == b.host_blocks == []
    scheduler.add("b", range(3), 2)  # its name is free
    finish(scheduler)
    assert scheduler.blocks.in_use == scheduler.host_blocks.in_use == 0


def test_a_name_used_again_within_the_step():
    scheduler = scheduler_of(4)
    old = scheduler.add("a", range(5), 3)
    plan = scheduler.plan()
    scheduler.cancel("a")
    new = scheduler.add("a", range(2), 3)
    assert scheduler.complete(plan, {}) == []
    assert (old.num_generated, new.state) == (0, State.WAITING)
    finish(scheduler)


def test_plans_are_ended_one_by_one():
    scheduler = scheduler_of(4)
    for wrong in (None, scheduler_of(4).plan()):
        for end in (scheduler.abandon, lambda plan: scheduler.complete(plan, {})):
            with pytest.raises(InvalidRequest, match="plan: expected the one that plan"):
                end(wrong)
    scheduler.add("a", range(5), 3)
    plan = scheduler.plan()
    with pytest.raises(InvalidRequest, match="neither completed nor abandoned"):
        scheduler.plan()
    for sampled, error, message in (
        ({}, InvalidRequest, "sampled: expected a token for request 'a'"),
        ({"a": 0.5}, TypeError, r"sampled\['a'\]: expected an integer, got 0\.5"),
        ({"a": None}, TypeError, r"sampled\['a'\]: expected an integer, got None"),
    ):
        with pytest.raises(error, match=message):
            scheduler.complete(plan, sampled)
    assert scheduler.requests["a"].num_computed == 0
    complete(scheduler, plan)
    with pytest.raises(InvalidRequest, match="plan: expected"):
        scheduler.abandon(plan)


@pytest.mark.parametrize("cached", [False, True], ids=["allocator", "cache"])
def test_an_abandoned_step_is_computed_again_in_the_old_order(cached):
    scheduler = scheduler_of(12, cached=cached)
    for name in "abc":
        scheduler.add(name, [ord(name)] * 5, 4)
    step(scheduler)
    plan = scheduler.plan()
    scheduler.abandon(plan)
    accounted(scheduler)
    assert scheduler.blocks.in_use == 0
    assert [(r.id, r.tokens[5:], r.num_computed) for r in scheduler.waiting] == [(name, [7], 0) for name in "abc"]
    plan = step(scheduler)
    start = 4 if cached else 0  # what was findable before the step that failed is what it was
    assert work_of(plan)[0] == ("a", start, 6 - start, True)
    finish(scheduler)


def test_a_block_freed_behind_the_schedulers_back():
    """A foreign hand frees a block of a running request: the second release is refused, and named."""
    scheduler = scheduler_of(4)
    request = scheduler.add("a", range(5), 3)
    step(scheduler)
    scheduler.blocks.free(request.blocks[1:])
    with pytest.raises(InvalidBlock, match="block 1 is not live"):
        scheduler.cancel("a")
    assert (request.state, request.blocks, scheduler.running) == (State.RUNNING, [0, 1], [request])
    assert [scheduler.blocks.ref_count(block) for block in (0, 1)] == [1, 0]
    request.blocks.pop()  # whoever mends it can end it
    scheduler.cancel("a")
    assert scheduler.blocks.in_use == 0


def test_two_schedulers_over_one_budget():
    """Two models, each with its own pool and scheduler, share 6 blocks: neither ever holds what the other holds."""
    cache = PrefixCache(BlockAllocator(6), block_size=4)
    models = {
        name: Scheduler(cache, block_size=4, max_running=4, max_tokens_per_step=8, watermark=0) for name in ("x", "y")
    }
    for i in range(6):
        for name, scheduler in models.items():
            scheduler.add(i, [i, *range(5)], 9, salt=name.encode())
    for _ in range(500):
        for scheduler in models.values():
            step(scheduler)
            held = Counter(b for s in models.values() for r in s.requests.values() for b in r.blocks)
            assert all(cache.ref_count(block) == held[block] for block in range(6))
    assert not any(scheduler.requests for scheduler in models.values()) and cache.in_use == 0


# ----------------------------------------------------------------------------------------------------------- simulation


def simulate(num_requests, seed, *, cached, preemption):
    """Random requests arrive into a pool too small for them; some are cancelled, some fork, some steps fail."""
    rng = random.Random(seed)
    scheduler = scheduler_of(
        96, cached=cached, max_running=24, max_tokens_per_step=64, preemption=preemption, num_host_blocks=40
    )
    begins = [[rng.randrange(100) for _ in range(rng.randrange(0, 40))] for _ in range(8)]
    ended, num_added, steps, preempted, forks = Counter(), 0, 0, 0, 0
    while num_added < num_requests or scheduler.requests:
        while num_added < num_requests and len(scheduler.waiting) < 30:
            prompt = [*rng.choice(begins), *(rng.randrange(100) for _ in range(rng.randrange(1, 12)))]
            scheduler.add(num_added, prompt, rng.randrange(1, 40), priority=rng.randrange(3), stop_tokens=[0])
            num_added += 1
        if rng.random() < 0.02 and scheduler.requests:
            scheduler.cancel(rng.choice(list(scheduler.requests)))
            ended["cancelled"] += 1
        if rng.random() < 0.02 and len(scheduler.running) < 24:
            for parent in scheduler.running:
                if parent.num_computed >= parent.num_prompt_tokens:
                    forks += 1
                    scheduler.fork(parent.id, f"fork {forks}", token=rng.randrange(1, 100))
                    break
        plan = scheduler.plan()
        steps += 1
        preempted += len(plan.preempted)
        assert plan.num_tokens <= 64 and len(scheduler.running) <= 24
        assert plan.work or not scheduler.requests, "a step without work"
        assert all(work.num_tokens > 0 for work in plan.work)
        if rng.random() < 0.005:
            scheduler.abandon(plan)
            continue
        sampled = {work.request.id: rng.randrange(100) for work in plan.work if work.samples}
        ended["finished"] += len(scheduler.complete(plan, sampled))
        if steps % 64 == 0:
            accounted(scheduler)
    assert ended["finished"] + ended["cancelled"] == num_requests + forks
    assert scheduler.blocks.in_use == scheduler.host_blocks.in_use == 0
    assert preempted > num_requests / 100
    return steps


@pytest.mark.parametrize("preemption", Preemption)
@pytest.mark.parametrize("cached", [False, True], ids=["allocator", "cache"])
def test_a_thousand_requests_in_simulation(cached, preemption):
    simulate(1000, 1, cached=cached, preemption=preemption)


def test_a_simulation_can_be_repeated():
    """Nothing depends on the hash of a string, on addresses, on the clock."""
    first, second = (simulate(200, 5, cached=True, preemption=Preemption.SWAP) for _ in range(2))
    assert first == second


@pytest.mark.soak
@pytest.mark.parametrize("preemption", Preemption)
@pytest.mark.parametrize("cached", [False, True], ids=["allocator", "cache"])
def test_100_000_requests_in_simulation(cached, preemption):
    simulate(100_000, 2, cached=cached, preemption=preemption)
