"""The engine: a model, a pool and a scheduler, and tokens for many requests at once.

Here the two wings meet. The scheduler says who computes what and who holds which block; the engine carries out the
moves in the pool, has the model compute the batch, chooses the tokens, and tells the scheduler.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from paged_core.allocator import BlockAllocator
from paged_core.batch import Batch
from paged_core.errors import InvalidRequest, RequestRefused, SwapError
from paged_core.interrupts import Interrupts
from paged_core.pool import PagedPool
from paged_core.prefix import PrefixCache
from paged_core.sampling import Sampling
from paged_core.scalars import integer, positive
from paged_core.scheduler import Plan, Preemption, Request, Scheduler, State
from paged_core.swap import HostBlocks

if TYPE_CHECKING:
    from paged_core.models.arrays import Array

GREEDY = Sampling()


@runtime_checkable
class Model(Protocol):
    """What the engine asks of a model; see models.llama.Llama."""

    @property
    def vocab_size(self) -> int:
        """Tokens are 0 to vocab_size - 1."""

    @property
    def max_positions(self) -> int:
        """How many tokens a sequence may have, its answer included."""

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Each of them ends an answer."""

    def pool(self, num_blocks: int, block_size: int = 16) -> PagedPool:
        """A pool of the shape and dtype that the model needs."""

    def check_pool(self, pool: PagedPool) -> None:
        """ValueError or TypeError for a pool of another."""

    def __call__(self, batch: Batch, pool: PagedPool, *, executor: str = "auto") -> Array:
        """Write the batch's K and V to the pool; logits, float32 [len(batch.logits_of), vocab_size]."""


class Token(NamedTuple):
    """A token that a request was given, as soon as it is known."""

    request_id: Any  # as whoever asked named it
    token: int
    finished: bool  # it was the request's last


class Step(NamedTuple):
    """What one step did: the plan that was carried out, and the new tokens."""

    plan: Plan
    tokens: list[Token]


class Engine:
    """Continuous batching over one pool.

        engine = Engine(model, pool, Scheduler(PrefixCache(BlockAllocator(512), block_size=16), block_size=16))
        for request_id, token, finished in engine.generate(prompts, max_new_tokens=64):
            ...

    `Engine.of(model)` makes pool and scheduler too. `generate` serves a list of prompts; `add` and `step` are what it
    is made of, for requests that come when they like. The pool is the engine's while it lives: whoever else writes to
    blocks that the scheduler has handed out spoils answers. With a scheduler that swaps, `host_blocks` is where to
    (default: memory for as many blocks as the scheduler swaps).
    """

    def __init__(
        self,
        model: Model,
        pool: PagedPool,
        scheduler: Scheduler,
        *,
        host_blocks: HostBlocks | None = None,
        executor: str = "auto",
    ) -> None:
        _check_model(model)
        model.check_pool(pool)
        if scheduler.block_size != pool.block_size:
            raise ValueError(f"scheduler: expected the pool's block_size {pool.block_size}, got {scheduler.block_size}")
        if scheduler.blocks.capacity > pool.num_blocks:
            raise ValueError(
                f"scheduler: hands out {scheduler.blocks.capacity} blocks, and the pool has {pool.num_blocks}"
            )
        wanted = scheduler.host_blocks.capacity
        if host_blocks is None and wanted:
            host_blocks = HostBlocks(pool, wanted)
        if host_blocks is not None and (host_blocks.pool is not pool or host_blocks.num_blocks < wanted):
            whose = "this" if host_blocks.pool is pool else "another"
            raise ValueError(
                f"host_blocks: expected room for {wanted} blocks of this engine's pool, got room for "
                f"{host_blocks.num_blocks} of {whose} one"
            )
        self.model, self.pool, self.scheduler, self.executor = model, pool, scheduler, executor
        self.host_blocks = host_blocks
        self._sampling: dict[Hashable, tuple[Sampling, int]] = {}  # of each request, and the number of its stream
        self._num_added = 0

    @classmethod
    def of(
        cls,
        model: Model,
        *,
        num_blocks: int = 512,
        block_size: int = 16,
        max_running: int = 32,
        max_tokens_per_step: int = 512,
        prefix_cache: bool = True,
        executor: str = "auto",
    ) -> Engine:
        """An engine with a pool and a scheduler of its own."""
        _check_model(model)
        allocator = BlockAllocator(positive("num_blocks", num_blocks))
        blocks = PrefixCache(allocator, block_size=block_size) if prefix_cache else allocator
        scheduler = Scheduler(
            blocks, block_size=block_size, max_running=max_running, max_tokens_per_step=max_tokens_per_step
        )
        return cls(model, model.pool(num_blocks, block_size), scheduler, executor=executor)

    def __repr__(self) -> str:
        return f"Engine({self.model!r}, {self.pool!r}, {self.scheduler!r})"

    def add(
        self,
        id: Hashable,
        prompt: Sequence[int],
        max_new_tokens: int = 64,
        *,
        sampling: Sampling = GREEDY,
        stop_tokens: Collection[int] | None = None,
        stream: int | None = None,
        priority: int = 0,
        salt: bytes = b"",
    ) -> Request:
        """Queue a request. `prompt`: token ids, a list or an array. `stop_tokens` None stands for the model's own;
        `stream` (default: how many came before) tells requests apart that draw with the same seed. Errors as
        `Scheduler.add`; ValueError also for a token that the model does not have, RequestRefused for more tokens than
        it has positions for.
        """
        try:
            tokens = [index(token) for token in prompt]
        except TypeError:
            raise TypeError(
                f"prompt: expected a list of token ids, got {repr(prompt)[:40]}; a tokenizer's encode(text).ids makes "
                "one of a text"
            ) from None
        if outside := [token for token in tokens if not 0 <= token < self.model.vocab_size]:
            raise ValueError(f"prompt: expected tokens from 0 to {self.model.vocab_size - 1}, got {outside[0]}")
        longest = len(tokens) + positive("max_new_tokens", max_new_tokens)
        if longest > self.model.max_positions:
            raise RequestRefused(
                f"request {id!r}: a prompt of {len(tokens)} and {max_new_tokens} new tokens are {longest}; the model "
                f"has {self.model.max_positions} positions"
            )
        if not isinstance(sampling, Sampling):
            raise TypeError(f"sampling: expected a Sampling, got {sampling!r}")
        stream = self._num_added if stream is None else integer("stream", stream, at_least=0)
        if stream >= 2**63:
            raise ValueError(f"stream: expected less than 2**63, got {stream}")
        stop_tokens = self.model.stop_tokens if stop_tokens is None else stop_tokens
        request = self.scheduler.add(id, tokens, max_new_tokens, priority=priority, stop_tokens=stop_tokens, salt=salt)
        self._sampling[id] = sampling, stream
        self._num_added += 1
        return request

    def fork(self, parent_id: Hashable, id: Hashable, *, token: int | None = None) -> Request:
        """Another continuation of a running request, that draws as its parent does, in a stream of its own. Errors and
        `token` as in `Scheduler.fork`."""
        child = self.scheduler.fork(parent_id, id, token=token)
        self._sampling[id] = self._sampling.get(parent_id, (GREEDY, 0))[0], self._num_added
        self._num_added += 1
        return child

    def cancel(self, id: Hashable) -> None:
        """End a request. InvalidRequest when it has ended already."""
        self.scheduler.cancel(id)
        self._sampling.pop(id, None)

    def step(self) -> Step:
        """One step: some tokens for everybody the scheduler picks. Without requests it does nothing.

        Should it fail (or be interrupted), the step is undone as far as anybody can tell, and the next one does its
        work again. A swap that fails is not an error: those who give way are computed again from then on. RuntimeError
        when nobody can go on, since somebody else holds the scheduler's blocks.
        """
        with Interrupts() as interrupts:
            return self._step(interrupts)

    def _step(self, interrupts: Interrupts) -> Step:
        plan = self.scheduler.plan()
        try:
            if self.scheduler.requests and not plan.work and not plan.preempted:
                raise RuntimeError(f"nobody can go on, for somebody else holds the blocks: {self.scheduler!r}")
            interrupts.let_through()
            tokens = self.carry_out(plan)
            interrupts.held = True
        except SwapError as error:
            interrupts.held = True
            self.scheduler.abandon(plan)
            self.scheduler.preemption = Preemption.RECOMPUTE
            warnings.warn(f"whoever gives way is computed again from now on: {error}", stacklevel=3)
            return Step(Plan(), [])
        except BaseException:
            interrupts.held = True
            self.scheduler.abandon(plan)
            raise
        ended = {request.id for request in self.scheduler.complete(plan, tokens)}
        for id in ended:
            self._sampling.pop(id, None)
        return Step(plan, [Token(id, token, id in ended) for id, token in tokens.items()])

    def generate(
        self,
        prompts: Iterable[Sequence[int]],
        *,
        max_new_tokens: int = 64,
        sampling: Sampling = GREEDY,
        stop_tokens: Collection[int] | None = None,
        progress: bool = False,
    ) -> Iterator[Token]:
        """Tokens for all `prompts`, as they come; `request_id` is the number of the prompt. With `progress`, a bar.

        All or none: when one prompt is refused, none is served. Whoever stops listening cancels what is under way.
        Requests that came by `add` are served beside them; their tokens are in what `add` returned. One at a time:
        InvalidRequest while another `generate`, or somebody's `add`, uses one of the ids 0, 1, ...
        """
        prompts = list(prompts)
        mine: dict[int, Request] = {}
        try:
            with Interrupts():  # none comes between a request and the note that it is ours
                for i, prompt in enumerate(prompts):
                    mine[i] = self.add(i, prompt, max_new_tokens, sampling=sampling, stop_tokens=stop_tokens, stream=i)
            num_told = [0] * len(prompts)
            with _bar(len(prompts) * max_new_tokens) if progress else nullcontext() as bar:
                while mine:
                    self.step()
                    # Looked up, not taken from the step: between two of ours whoever listens may step or cancel, too.
                    for i, request in list(mine.items()):
                        if _ended(request):
                            del mine[i]
                        if request.state is State.CANCELLED:
                            continue
                        for token in request.tokens[request.num_prompt_tokens + num_told[i] :]:
                            num_told[i] += 1
                            if bar is not None:
                                bar.update()
                            yield Token(i, token, i not in mine and num_told[i] == request.num_generated)
        finally:
            for i, request in mine.items():
                if not _ended(request):
                    self.cancel(i)

    def carry_out(self, plan: Plan) -> dict[Hashable, int]:
        """A plan's moves and its work; the new token of each request that gets one, for `Scheduler.complete`. `step`
        does this; it is here for whoever makes the plans, such as `serving.serve`."""
        self._move(plan)
        return self._compute(plan)

    def _move(self, plan: Plan) -> None:
        """First all that leaves, then what comes."""
        if plan.swap_out or plan.swap_in:
            if self.host_blocks is None:
                raise InvalidRequest("the scheduler swaps, and this engine was made when it did not")
            self.host_blocks.swap_out(plan.swap_out)
            self.host_blocks.swap_in(plan.swap_in)
        if plan.copies:
            self.pool.copy_blocks([src for src, _ in plan.copies], [dst for _, dst in plan.copies])

    def _compute(self, plan: Plan) -> dict[Hashable, int]:
        """Compute the plan's work, and choose a token for each request that has come to its end."""
        if not plan.work:
            return {}
        batch = Batch.of(plan.work, self.pool.block_size)
        logits = np.array(self.model(batch, self.pool, executor=self.executor))
        chosen = {}
        for row, request in zip(logits, (work.request for work in batch.work if work.samples), strict=True):
            sampling, stream = self._sampling.get(request.id, (GREEDY, 0))
            try:
                chosen[request.id] = sampling.choose(row, stream, request.num_generated)
            except ValueError as error:
                raise ValueError(f"request {request.id!r}: {error}") from None
        return chosen


def _check_model(model: Model) -> None:
    if not isinstance(model, Model):
        raise TypeError(f"model: expected one such as load().model, got {type(model).__name__}")


def _ended(request: Request) -> bool:
    return request.state in (State.FINISHED, State.CANCELLED)


def _bar(total: int):
    from tqdm.auto import tqdm

    return tqdm(total=total, unit="token", smoothing=0)
