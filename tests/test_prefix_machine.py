"""Allocator, prefix cache and scheduler together, through any life that Hypothesis can think of: requests come, fork,
are cancelled, steps fail, others take and leave blocks. After each step every block is free, cached or held exactly as
counted; what a block is read for is what was written to it; and in the end nothing is left."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from paged_core import (
    BlockAllocator,
    InvalidBlock,
    InvalidRequest,
    PoolExhausted,
    Preemption,
    PrefixCache,
    RequestRefused,
    Scheduler,
    State,
)
from paged_core.prefix import Entry

NUM_BLOCKS, NUM_HOST_BLOCKS, BLOCK_SIZE, MAX_RUNNING, BUDGET = 9, 5, 2, 4, 6
HASHES = {
    "sha256": None,
    "two values": lambda data: bytes([sum(data) % 2]),
    "one value": lambda data: b"the same for everything",
}
prompts = st.builds(
    lambda begin, end: [1, 2, 3, 4, 5, 6][:begin] + end, st.integers(0, 6), st.lists(st.integers(0, 2), max_size=7)
)


class Sharing(RuleBasedStateMachine):
    @initialize(
        cached=st.sampled_from([True, True, False]),
        hash_name=st.sampled_from(sorted(HASHES)),
        preemption=st.sampled_from(Preemption),
        watermark=st.integers(0, 3),
        patience=st.integers(0, 3),
    )
    def begin(self, cached, hash_name, preemption, watermark, patience):
        self.allocator = BlockAllocator(NUM_BLOCKS)
        self.cache = None
        if cached:
            chosen = {"hash_function": HASHES[hash_name]} if HASHES[hash_name] else {}
            self.cache = PrefixCache(self.allocator, block_size=BLOCK_SIZE, **chosen)
        self.blocks = self.cache or self.allocator
        self.scheduler = Scheduler(
            self.blocks, block_size=BLOCK_SIZE, max_running=MAX_RUNNING, max_tokens_per_step=BUDGET,
            watermark=watermark, preemption=preemption, num_host_blocks=NUM_HOST_BLOCKS, patience=patience,
        )  # fmt: skip
        self.plan = None
        self.added = self.ended = 0
        self.salts = {}  # of each request, by its id
        self.strangers = []  # blocks that somebody else took
        self.leaving = []  # requests cancelled under a plan, which hold what they held until it ends
        self.pool = {}  # block -> per slot, all the tokens up to the one whose K and V lie there
        self.host = {}
        for begin, new in ((5, 9), (6, 6), (3, 8)):
            self.arrive([1, 2, 3, 4, 5, 6][:begin], new, 0, b"")

    # ------------------------------------------------------------------------------------------------ what may happen

    @rule(prompt=prompts, new=st.integers(1, 9), priority=st.integers(-1, 2), salt=st.sampled_from([b"", b"", b"x"]))
    def arrive(self, prompt, new, priority, salt):
        if not prompt:
            with pytest.raises(ValueError, match="prompt"):
                self.scheduler.add(self.added, prompt, new, salt=salt)
        elif -(-(len(prompt) + new - 1) // BLOCK_SIZE) > NUM_BLOCKS:
            with pytest.raises(RequestRefused):
                self.scheduler.add(self.added, prompt, new, salt=salt)
        else:
            self.scheduler.add(self.added, prompt, new, priority=priority, stop_tokens=[9], salt=salt)
            self.salts[self.added] = salt
            self.added += 1

    @precondition(lambda self: self.scheduler.requests)
    @rule(data=st.data())
    def cancel(self, data):
        id = data.draw(st.sampled_from(list(self.scheduler.requests)))
        request = self.scheduler.requests[id]
        self.scheduler.cancel(id)
        self.ended += 1
        if self.plan is not None:
            self.leaving.append(request)
        with pytest.raises(InvalidRequest):
            self.scheduler.cancel(id)

    @precondition(lambda self: self.scheduler.requests)
    @rule(data=st.data(), token=st.sampled_from([None, 0, 1, 9]))
    def fork(self, data, token):
        parent = self.scheduler.requests[data.draw(st.sampled_from(list(self.scheduler.requests)))]
        ready = (
            self.plan is None
            and parent.state is State.RUNNING
            and parent.num_computed >= parent.num_prompt_tokens
            and len(self.scheduler.running) < MAX_RUNNING
            and token != 9
        )
        if not ready:
            with pytest.raises(InvalidRequest):
                self.scheduler.fork(parent.id, self.added, token=token)
            return
        child = self.scheduler.fork(parent.id, self.added, token=token)
        assert child.blocks == parent.blocks
        self.salts[child.id] = self.salts[parent.id]
        self.added += 1

    @precondition(lambda self: self.plan is None)
    @rule(num_steps=st.integers(1, 8), data=st.data())
    def a_few_steps(self, num_steps, data):
        for _ in range(num_steps):
            self.decide()
            self.carry_out(data, "")

    @precondition(lambda self: self.plan is None)
    @rule()
    def decide(self):
        self.plan = self.scheduler.plan()
        self.at_plan = {request: list(request.blocks) for request in self.scheduler.requests.values()}
        assert self.plan.num_tokens <= BUDGET and len(self.scheduler.running) <= MAX_RUNNING
        assert all(work.num_tokens > 0 for work in self.plan.work)
        decoding = {w.request for w in self.plan.work}
        for request in self.scheduler.running:  # whoever only needs its next token gets it
            assert request in decoding or len(request.tokens) - request.num_computed > 1

    @precondition(lambda self: self.plan is not None)
    @rule(data=st.data(), fails_at=st.sampled_from(["", "", "", "swap_out", "swap_in", "copies", "work"]))
    def carry_out(self, data, fails_at):
        plan, self.plan = self.plan, None
        for name in ("swap_out", "swap_in", "copies", "work"):
            if name == fails_at:  # half of it was done, and what it wrote is worth nothing
                for target in self.targets(plan, name):
                    target[0][target[1]] = "rubbish"
                self.scheduler.abandon(plan)
                self.leaving.clear()
                return
            getattr(self, f"do_{name}")(plan)
        tokens = st.sampled_from([0, 1, 2, 3, 4, 5, 9])
        sampled = {w.request.id: data.draw(tokens) for w in plan.work if w.samples}
        self.ended += len(self.scheduler.complete(plan, sampled))
        self.leaving.clear()

    @rule(n=st.integers(0, 3))
    def a_stranger_takes(self, n):
        try:
            self.strangers += self.blocks.allocate_n(n)
        except PoolExhausted:
            assert n > self.available()

    @precondition(lambda self: self.strangers)
    @rule(data=st.data())
    def a_stranger_leaves(self, data):
        block = data.draw(st.sampled_from(self.strangers))
        self.strangers.remove(block)
        self.blocks.free([block])

    @rule(block=st.integers(-1, NUM_BLOCKS))
    def a_block_too_many_is_refused(self, block):
        """One release more than there are references, by whoever: refused, and nothing changes."""
        times = self.held()[block] + 1
        with pytest.raises(InvalidBlock):
            self.blocks.free([block] * times)

    # --------------------------------------------------------------------------------- carrying out, with words as K/V

    def targets(self, plan, name):
        if name == "work":
            return [(self.pool, block) for w in plan.work for block in self.written(w)]
        return [(self.host if name == "swap_out" else self.pool, to) for _, to in getattr(plan, name)]

    def written(self, work):
        blocks = self.at_plan[work.request]
        return {blocks[p // BLOCK_SIZE] for p in range(work.first, work.first + work.num_tokens)}

    def do_swap_out(self, plan):
        self.host.update({to: list(self.pool[block]) for block, to in plan.swap_out})

    def do_swap_in(self, plan):
        self.nobody_else_reads(to for _, to in plan.swap_in)
        self.pool.update({to: list(self.host[host]) for host, to in plan.swap_in})

    def nobody_else_reads(self, blocks):
        for block in blocks:
            assert self.blocks.ref_count(block) == 1 and not (self.cache and block in self.cache.findable_blocks)

    def do_copies(self, plan):
        self.nobody_else_reads(to for _, to in plan.copies)
        self.pool.update({to: list(self.pool[block]) for block, to in plan.copies})

    def do_work(self, plan):
        for work in plan.work:
            self.nobody_else_reads(self.written(work))
        for request, first, count, _ in plan.work:
            blocks, history = self.at_plan[request], (self.salts[request.id], *request.tokens)
            for p in range(first, first + count):
                block = self.pool.get(blocks[p // BLOCK_SIZE])
                if not isinstance(block, list):
                    block = self.pool[blocks[p // BLOCK_SIZE]] = [None] * BLOCK_SIZE
                block[p % BLOCK_SIZE] = history[: p + 2]
        for request, first, count, _ in plan.work:  # read once all has been written, as attention does
            blocks, history = self.at_plan[request], (self.salts[request.id], *request.tokens)
            for p in range(first + count):
                assert self.pool[blocks[p // BLOCK_SIZE]][p % BLOCK_SIZE] == history[: p + 2]

    # ------------------------------------------------------------------------------------------------------ invariants

    def held(self):
        users = [*self.scheduler.requests.values(), *self.leaving]
        return Counter(self.strangers) + Counter(block for request in users for block in request.blocks)

    def available(self):
        return self.allocator.free_count + (self.cache.cached_count if self.cache else 0)

    @invariant()
    def every_block_is_accounted_for(self):
        held = self.held()
        for block in range(NUM_BLOCKS):
            assert self.blocks.ref_count(block) == held[block]
        assert self.blocks.in_use == len(held)
        free = set(self.allocator.free_list)
        cached = set(self.cache.eviction_order) if self.cache else set()
        assert len(free) + len(cached) + len(held) == NUM_BLOCKS
        assert not free & held.keys() and not cached & held.keys() and not free & cached
        hosts = [b for r in [*self.scheduler.requests.values(), *self.leaving] for b in r.host_blocks]
        assert self.scheduler.host_blocks.in_use == len(hosts) == len(set(hosts))

    @invariant()
    def every_request_is_where_it_says(self):
        scheduler = self.scheduler
        assert set(scheduler.running) | set(scheduler.waiting) == set(scheduler.requests.values())
        assert len(scheduler.running) + len(scheduler.waiting) == len(scheduler.requests) == self.added - self.ended
        assert scheduler.running == sorted(scheduler.running, key=lambda r: r.order)
        for request in scheduler.requests.values():
            needed = -(-request.num_computed // BLOCK_SIZE)
            running, swapped = request.state is State.RUNNING, request.state is State.SWAPPED
            assert running == (request in scheduler.running)
            assert len(request.blocks) >= needed if running else request.blocks == []
            assert len(request.host_blocks) == (needed if swapped else 0)
            assert request.num_computed < len(request.tokens)

    @invariant()
    def what_is_findable_holds_what_it_says(self):
        if not self.cache:
            return
        findable = self.cache.findable_blocks
        assert set(self.cache.eviction_order) <= set(findable)
        for path in self.cache.prompts():
            history = (path[0].before,)
            for entry in path:
                assert isinstance(entry, Entry) and entry.block in findable
                for slot, token in enumerate(memoryview(entry.content).cast("q")):
                    history = (*history, token)
                    assert self.pool[entry.block][slot] == history

    def teardown(self):
        if self.plan is not None:
            self.scheduler.abandon(self.plan)
        self.blocks.free(self.strangers)
        for _ in range(2000):
            if not self.scheduler.requests:
                break
            plan = self.scheduler.plan()
            assert plan.work, "nobody can go on, and nobody is in the way"
            self.scheduler.complete(plan, {w.request.id: 0 for w in plan.work if w.samples})
        assert not self.scheduler.requests
        assert self.blocks.in_use == self.scheduler.host_blocks.in_use == 0
        if self.cache:
            self.cache.forget()
            assert len(self.cache._by_key) == 0, "an entry that nobody points to"
        assert self.allocator.free_count == NUM_BLOCKS


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=120, stateful_step_count=40)


@pytest.mark.soak
class TestLongSharing(Sharing.TestCase):
    settings = settings(max_examples=3000, stateful_step_count=100)
