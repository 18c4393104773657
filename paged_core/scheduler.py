"""Who computes what in the next step: continuous batching, chunked prompts, preemption. It touches no tensor.

A step goes plan -> (whoever computes carries it out) -> complete:

    plan = scheduler.plan()
    ...                                  # carry out plan.swap_out, plan.swap_in, plan.copies, then plan.work
    scheduler.complete(plan, {request.id: token, ...})

so a scheduler is tested, taught and simulated without a model. Policies: vLLM v1 (one token budget for prompts and
decodes, the last in order gives way, recompute), the swapping and the watermark of its first versions (Kwon et al.,
SOSP 2023), and the decodes-first budget of Sarathi-Serve (Agrawal et al., OSDI 2024).
"""

from __future__ import annotations

from array import array
from bisect import insort
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from heapq import heappop, heappush
from operator import attrgetter
from typing import NamedTuple

from paged_core.allocator import BlockAllocator
from paged_core.errors import InvalidRequest, RequestRefused
from paged_core.prefix import BlockChain, PrefixCache
from paged_core.scalars import integer, positive


class State(Enum):
    """Where a request is in its life."""

    WAITING = "waiting"  # holds no block
    RUNNING = "running"
    SWAPPED = "swapped"  # waiting, its blocks in host memory
    FINISHED = "finished"
    CANCELLED = "cancelled"


class Preemption(Enum):
    """What becomes of the K and V of a request that has to give way: computed again, or kept in host memory."""

    RECOMPUTE = "recompute"
    SWAP = "swap"


@dataclass(slots=True, eq=False)
class Request:
    """One request. `tokens` are the prompt's, then those generated; K and V of the first `num_computed` of them lie in
    `blocks` (or, while swapped, in the host's `host_blocks`)."""

    id: Hashable
    tokens: list[int]
    num_prompt_tokens: int
    max_new_tokens: int
    stop_tokens: frozenset[int]
    order: tuple[int, ...]  # served in this order, least first
    state: State = State.WAITING
    blocks: list[int] = field(default_factory=list)
    host_blocks: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_preemptions: int = 0
    forked: bool = False  # its last block may be shared with another request
    chain: BlockChain | None = None  # with a prefix cache

    def __lt__(self, other: Request) -> bool:
        return self.order < other.order

    @property
    def num_generated(self) -> int:
        """Tokens of its answer so far."""
        return len(self.tokens) - self.num_prompt_tokens


class Work(NamedTuple):
    """Compute `num_tokens` of a request from its token `first` on; `samples` when the last's logits are wanted."""

    request: Request
    first: int
    num_tokens: int
    samples: bool


@dataclass(slots=True)
class Plan:
    """One step. The moves are carried out in this order, before the work: first all that leaves, then what comes."""

    swap_out: list[tuple[int, int]] = field(default_factory=list)  # (block, host block)
    swap_in: list[tuple[int, int]] = field(default_factory=list)  # (host block, block)
    copies: list[tuple[int, int]] = field(default_factory=list)  # (from, to), a shared block before its first write
    work: list[Work] = field(default_factory=list)
    admitted: list[Request] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens that this step computes: what `max_tokens_per_step` limits."""
        return sum(work.num_tokens for work in self.work)


class Scheduler:
    """First come, first served, in blocks of one budget.

    Each step, in order: every running request that only needs its next token gets it; running prompts take chunks of
    what is left of `max_tokens_per_step`; then waiting requests are admitted, strictly in order, while there is budget,
    a place among `max_running`, and room for all of the next one's tokens that leaves `watermark` blocks free (so that
    what was just admitted is not at once preempted; one that runs alone may take all). When a running request needs a
    block and there is none, the one that is last in order gives way, and nobody is admitted in that step.

    The order is the order of arrival, save that one level of `priority` (lower is sooner) counts as much as `patience`
    arrivals: a request waits for those before it, and for fewer than p * patience newcomers that are p levels more
    urgent. So nobody starves. A request that does not fit into all the blocks there are is refused at once.

    `blocks` is a BlockAllocator, or a PrefixCache for prompts that begin alike. With Preemption.SWAP the host has room
    for `num_host_blocks`; when that is full, recompute it is. A step costs O(1) a running request.
    """

    def __init__(
        self,
        blocks: BlockAllocator | PrefixCache,
        *,
        block_size: int,
        max_running: int = 256,
        max_tokens_per_step: int = 2048,
        watermark: int | None = None,
        preemption: Preemption = Preemption.RECOMPUTE,
        num_host_blocks: int = 0,
        patience: int = 64,
    ) -> None:
        if not isinstance(blocks, BlockAllocator | PrefixCache):
            raise TypeError(f"blocks: expected a BlockAllocator or a PrefixCache, got {blocks!r}")
        self.blocks = blocks
        self.cache = blocks if isinstance(blocks, PrefixCache) else None
        self.block_size = positive("block_size", block_size)
        if self.cache and self.cache.block_size != block_size:
            raise ValueError(f"block_size: expected the prefix cache's {self.cache.block_size}, got {block_size}")
        self.max_running = positive("max_running", max_running)
        self.max_tokens_per_step = integer("max_tokens_per_step", max_tokens_per_step, at_least=max_running)
        # The default is that of vLLM's first versions: one block in a hundred.
        self.watermark = blocks.capacity // 100 if watermark is None else integer("watermark", watermark, at_least=0)
        if not isinstance(preemption, Preemption):
            raise TypeError(f"preemption: expected one of {[p.name for p in Preemption]}, got {preemption!r}")
        if preemption is Preemption.SWAP and num_host_blocks == 0:
            raise ValueError("num_host_blocks: expected room to swap to, got 0")
        self.preemption = preemption
        self.host_blocks = BlockAllocator(num_host_blocks)
        self.patience = integer("patience", patience, at_least=0)
        self.requests: dict[Hashable, Request] = {}  # those that have not ended
        self.running: list[Request] = []  # in order
        self._waiting: list[Request] = []  # a heap
        self._num_arrived = self._num_forked = 0
        self._plan: Plan | None = None  # made and not completed
        self._cancelled: list[Request] = []  # since that plan was made: their blocks may still be written to

    def __repr__(self) -> str:
        return f"Scheduler({len(self.running)} running, {len(self.waiting)} waiting, {self.blocks!r})"

    @property
    def waiting(self) -> list[Request]:
        """Those not running, the next to be admitted first."""
        return sorted((r for r in self._waiting if r.state in _QUEUED), key=attrgetter("order"))

    # ------------------------------------------------------------------------------------------ requests come and go

    def add(
        self,
        id: Hashable,
        prompt: Sequence[int],
        max_new_tokens: int,
        *,
        priority: int = 0,
        stop_tokens: Collection[int] = (),
        salt: bytes = b"",
    ) -> Request:
        """Queue a request: `prompt`, a sequence of token ids, and up to `max_new_tokens` more, or up to one of
        `stop_tokens`. With a prefix cache, prompts of different `salt` share nothing.

        ValueError for a prompt without tokens, InvalidRequest for an id in use, RequestRefused for a request that could
        not finish though it had the pool to itself. A refused request leaves nothing behind.
        """
        self._check_new(id)
        try:
            tokens = array("q", list(prompt)).tolist()
        except (TypeError, OverflowError) as error:
            raise TypeError(f"prompt: expected token ids, integers of 64 bits: {error}") from None
        if not tokens:
            raise ValueError("prompt: expected one token or more, got none")
        max_new_tokens = positive("max_new_tokens", max_new_tokens)
        # The last token is sampled and never fed back, so its K and V are never stored.
        longest = len(tokens) + max_new_tokens - 1
        needed = -(-longest // self.block_size)
        if needed > self.blocks.capacity:
            raise RequestRefused(
                f"request {id!r}: a prompt of {len(tokens)} and {max_new_tokens} new tokens need {needed} blocks of "
                f"{self.block_size}; the pool has {self.blocks.capacity}"
            )
        order = self._num_arrived + integer("priority", priority) * self.patience, self._num_arrived
        stops = frozenset(integer("stop_tokens", token) for token in stop_tokens)
        request = Request(id, tokens, len(tokens), max_new_tokens, stops, order)
        if self.cache:
            request.chain = self.cache.chain(request.tokens, salt)
        self._num_arrived += 1
        self.requests[id] = request
        heappush(self._waiting, request)
        return request

    def fork(self, parent_id: Hashable, id: Hashable, *, token: int | None = None) -> Request:
        """Another continuation of a running request: the same tokens so far, every block shared, no copy until one of
        the two writes into a block that both hold. It comes right after its parent in order.

        The newest token has been sampled, and its K and V are yet to be computed. With `token` it is another one in the
        child: so n samples of one prompt differ from the first token on, each drawn from the same logits.

        InvalidRequest, and nothing changed, when a plan is under way, the parent is not running or still in its prompt,
        `max_running` are, or `token` would end the child at once.
        """
        if self._plan is not None:
            raise InvalidRequest(f"request {parent_id!r} cannot be forked while a plan is carried out")
        parent = self._known(parent_id)
        self._check_new(id)
        if parent.state is not State.RUNNING or parent.num_computed < parent.num_prompt_tokens:
            computed = f"{parent.num_computed} of {parent.num_prompt_tokens} prompt tokens computed"
            raise InvalidRequest(f"request {parent_id!r} cannot be forked: it is {parent.state.value}, {computed}")
        if len(self.running) >= self.max_running:
            raise InvalidRequest(f"request {parent_id!r} cannot be forked: {self.max_running} are running")
        tokens = [*parent.tokens[:-1], parent.tokens[-1] if token is None else integer("token", token)]
        if tokens[-1] in parent.stop_tokens:
            raise InvalidRequest(f"token: {token} ends request {id!r} before it begins")
        child = Request(
            id, tokens, parent.num_prompt_tokens, parent.max_new_tokens, parent.stop_tokens,
            (*parent.order, self._num_forked), State.RUNNING, list(parent.blocks), num_computed=parent.num_computed,
        )  # fmt: skip
        if self.cache and parent.chain:
            child.chain = self.cache.chain(tokens, parent.chain.salt)
        self.blocks.share(child.blocks)
        self._num_forked += 1
        parent.forked = child.forked = True
        self.requests[id] = child
        insort(self.running, child)
        return child

    def cancel(self, id: Hashable) -> None:
        """End a request in whatever state it is. Its blocks are free at once or, when a plan is under way, once that is
        completed or abandoned: somebody may be writing to them. InvalidRequest when it has ended already."""
        self._end(self._known(id), State.CANCELLED)

    # --------------------------------------------------------------------------------------------------- a step

    def plan(self) -> Plan:
        """What to compute next. Every plan is completed or abandoned before the next one is made (InvalidRequest)."""
        if self._plan is not None:
            raise InvalidRequest("the plan before this one was neither completed nor abandoned")
        self._plan = plan = Plan()
        decodes = sum(len(request.tokens) - request.num_computed == 1 for request in self.running)
        budget = self.max_tokens_per_step - decodes  # for all that is not a decode
        i = 0
        while i < len(self.running):  # those behind may leave the list while we go through it
            request = self.running[i]
            i += 1
            remaining = count = len(request.tokens) - request.num_computed
            if remaining > 1:
                count = min(remaining, budget)
                if count == 0:
                    continue
            if not self._make_room(request, count, plan):
                break  # it was itself the last in order, and gave way
            if remaining > 1:
                budget -= count
            self._put_to_work(request, count, plan)
        while budget > 0 and not plan.preempted and len(self.running) < self.max_running:
            count = self._admit(budget, plan)
            if count == 0:
                break
            budget -= count
        return plan

    def complete(self, plan: Plan, sampled: Mapping[Hashable, int]) -> list[Request]:
        """Record that `plan` was carried out; `sampled` has the new token of each work that samples. Returns the
        requests that finished. Requests cancelled in between are passed over. InvalidRequest or TypeError, and nothing
        changed, when a token is missing or none.
        """
        self._check_plan(plan)
        work = [work for work in plan.work if work.request.state is State.RUNNING]
        tokens = {}
        for request in (work.request for work in work if work.samples):
            if request.id not in sampled:
                raise InvalidRequest(f"sampled: expected a token for request {request.id!r}")
            tokens[request.id] = integer(f"sampled[{request.id!r}]", sampled[request.id])
        self._close_plan()
        finished = []
        for request, first, count, samples in work:
            request.num_computed = first + count
            num_full = request.num_computed // self.block_size
            if self.cache and request.chain and num_full > len(request.chain.entries):
                self.cache.register(request.chain, request.blocks[:num_full])
            if not samples:
                continue
            token = tokens[request.id]
            request.tokens.append(token)
            if request.chain:
                request.chain.extend((token,))
            if request.num_generated >= request.max_new_tokens or token in request.stop_tokens:
                self._end(request, State.FINISHED)
                finished.append(request)
        return finished

    def abandon(self, plan: Plan) -> None:
        """Undo a plan whose moves or work failed: nobody can say what its blocks hold, so whoever has a part in it
        gives up its blocks, and is computed again from its tokens. After a swap that failed, set `preemption` to
        RECOMPUTE, or the next one will fail as well. InvalidRequest when it is not the plan under way."""
        self._check_plan(plan)
        self._close_plan()
        for request in [*(work.request for work in plan.work), *plan.preempted]:
            if request.state is State.RUNNING:
                self._release(request)
                self._requeue(request, State.WAITING)
            elif request.state is State.SWAPPED:
                self._release(request)
                request.state = State.WAITING  # it is in the queue already

    # ------------------------------------------------------------------------------------------------- how it is done

    def _make_room(self, request: Request, count: int, plan: Plan) -> bool:
        """Blocks for `count` more tokens, its own to write. Others that come later give way; False when itself did."""
        needed = -(-(request.num_computed + count) // self.block_size) - len(request.blocks)
        shared = request.forked and self._shared_tail(request)
        if needed <= 0 and not shared:
            return True
        while needed + shared > self._available:
            victim = self.running.pop()
            self._preempt(victim, plan)
            if victim is request:
                return False
            shared = request.forked and self._shared_tail(request)  # the victim may have been the other holder
        if shared:
            block = request.blocks[-1]
            request.blocks[-1] = self.blocks.allocate()
            plan.copies.append((block, request.blocks[-1]))
            self.blocks.free([block])
        request.forked = False
        if needed > 0:
            request.blocks += self.blocks.allocate_n(needed)
        return True

    def _admit(self, budget: int, plan: Plan) -> int:
        """Admit the request that is next in order, if it fits; the tokens it was given work for, 0 when it does not."""
        while self._waiting and self._waiting[0].state not in _QUEUED:
            heappop(self._waiting)  # cancelled while it waited
        if not self._waiting:
            return 0
        request = self._waiting[0]
        swapped = request.state is State.SWAPPED
        chain = None if swapped else request.chain
        found = self.cache.find(chain) if self.cache and chain else []
        num_computed = request.num_computed if swapped else len(found) * self.block_size
        # Room for all its tokens, though only a chunk of them is taken now: half a prompt that gives way was in vain.
        needed = -(-len(request.tokens) // self.block_size) - len(found)
        cached = sum(self.blocks.ref_count(block) == 0 for block in found)  # evictable, and about to be in use
        if needed + cached > self._available - (self.watermark if self.running else 0):
            return 0
        heappop(self._waiting)
        if self.cache and chain:
            request.blocks = self.cache.match(chain)
        count = min(len(request.tokens) - num_computed, budget)
        request.blocks += self.blocks.allocate_n(-(-(num_computed + count) // self.block_size) - len(found))
        if swapped:
            plan.swap_in += zip(request.host_blocks, request.blocks, strict=False)
            self.host_blocks.free(request.host_blocks)
            request.host_blocks = []
        request.num_computed = num_computed
        request.state = State.RUNNING
        insort(self.running, request)
        plan.admitted.append(request)
        self._put_to_work(request, count, plan)
        return count

    def _put_to_work(self, request: Request, count: int, plan: Plan) -> None:
        samples = request.num_computed + count == len(request.tokens)
        plan.work.append(Work(request, request.num_computed, count, samples))

    def _preempt(self, request: Request, plan: Plan) -> None:
        """Take a running request's blocks away; it goes back to its place in the queue."""
        plan.preempted.append(request)
        request.num_preemptions += 1
        held = -(-request.num_computed // self.block_size)
        if self.preemption is Preemption.SWAP and 0 < held <= self.host_blocks.free_count:
            request.host_blocks = self.host_blocks.allocate_n(held)
            plan.swap_out += zip(request.blocks, request.host_blocks, strict=True)
            self.blocks.free(request.blocks)
            request.blocks = []
            request.forked = False
            self._requeue(request, State.SWAPPED)
        else:
            self._release(request)
            self._requeue(request, State.WAITING)

    def _requeue(self, request: Request, state: State) -> None:
        request.state = state
        if request in self.running:
            self.running.remove(request)
        heappush(self._waiting, request)

    def _release(self, request: Request) -> None:
        """Give back all blocks, here and on the host; nothing is computed any more."""
        self.blocks.free(request.blocks)
        self.host_blocks.free(request.host_blocks)
        request.blocks, request.host_blocks = [], []
        request.num_computed = 0
        request.forked = False

    def _end(self, request: Request, state: State) -> None:
        if self._plan is None:
            self._release(request)  # first: should it be refused, nothing has changed
        else:
            self._cancelled.append(request)
        if request.state is State.RUNNING:
            self.running.remove(request)
        request.state = state
        request.chain = None  # whoever keeps the request need not keep the cache's entries
        del self.requests[request.id]

    def _shared_tail(self, request: Request) -> bool:
        """Would the next token be written into a block that somebody else holds too?"""
        held = len(request.blocks) * self.block_size
        return request.num_computed < held and self.blocks.ref_count(request.blocks[-1]) > 1

    @property
    def _available(self) -> int:
        return self.cache.available_count if self.cache else self.blocks.free_count

    def _check_new(self, id: Hashable) -> None:
        if id in self.requests:
            raise InvalidRequest(f"id: request {id!r} is here already, {self.requests[id].state.value}")

    def _known(self, id: Hashable) -> Request:
        if id not in self.requests:
            raise InvalidRequest(f"id: there is no request {id!r} here: it never came, finished, or was cancelled")
        return self.requests[id]

    def _check_plan(self, plan: Plan) -> None:
        if self._plan is None or plan is not self._plan:
            raise InvalidRequest(
                "plan: expected the one that plan() returned last, neither completed nor abandoned yet"
            )

    def _close_plan(self) -> None:
        self._plan = None
        for request in self._cancelled:
            self._release(request)
        self._cancelled.clear()


_QUEUED = (State.WAITING, State.SWAPPED)
