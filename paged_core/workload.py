"""Requests with real lengths, and the token slots they hold while they run: used, reserved, wasted, free.

No tensor and no model: a request is its lengths, and a step gives every running request one more token. The pages come
from the package's own BlockAllocator, so what is counted is what a server built on it would have held.
"""

from __future__ import annotations

import json
from bisect import insort
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paged_core.allocator import BlockAllocator
from paged_core.errors import PoolExhausted
from paged_core.scalars import positive


class Request(NamedTuple):
    """One request: tokens in, tokens out, and when it came."""

    id: int
    prompt_tokens: int
    output_tokens: int
    arrival_s: float = 0.0

    @property
    def total_tokens(self) -> int:
        """Prompt and answer."""
        return self.prompt_tokens + self.output_tokens


class LengthHistogram:
    """The request lengths of a trace as a joint histogram, and its arrivals as quantiles.

    counts[i, j] requests have prompt_edges[i] <= prompt tokens < prompt_edges[i + 1] and
    output_edges[j] <= output tokens < output_edges[j + 1]; interarrival_s are the 0, 1, ..., 100 % quantiles, seconds.
    """

    def __init__(self, path: str | Path, trace: str) -> None:
        """`trace` is one of the traces in the JSON file at `path`; KeyError when it is not there."""
        data = json.loads(Path(path).read_text())[trace]
        self.counts, self.prompt_edges, self.output_edges = (
            np.array(data[name], np.int64) for name in ("counts", "prompt_edges", "output_edges")
        )
        self.interarrival_s = np.array(data["interarrival_s"])
        self.mean_interarrival_s = data["duration_s"] / data["requests"]

    def draw(self, num_requests: int, *, seed: int) -> list[Request]:
        """Requests in order of arrival: a bin by its count, then both lengths evenly within the bin.

        The gaps between arrivals are drawn one by one (bursts are lost) and scaled to the trace's mean rate. A seed
        gives the same requests on every machine.
        """
        u = np.random.RandomState(seed).random_sample((4, num_requests))  # the one stream that NumPy froze (NEP 19)
        ends = np.cumsum(self.counts)
        bins = np.searchsorted(ends, (u[0] * ends[-1]).astype(np.int64), side="right")
        lengths = []
        for edges, at, x in zip(
            (self.prompt_edges, self.output_edges), np.unravel_index(bins, self.counts.shape), u[1:3], strict=True
        ):
            lengths.append(edges[at] + (x * (edges[at + 1] - edges[at])).astype(np.int64))
        gaps = np.interp(u[3], np.linspace(0, 1, len(self.interarrival_s)), self.interarrival_s)
        arrivals = np.cumsum(gaps * (self.mean_interarrival_s / gaps.mean())) if num_requests else gaps
        columns = (*lengths, arrivals)
        return [Request(i, *row) for i, row in enumerate(zip(*(c.tolist() for c in columns), strict=True))]


# Neighbouring token slots that one request holds, the first `used` of them written.
SPAN = np.dtype([("request", np.int32), ("start", np.int32), ("tokens", np.int32), ("used", np.int32)])


class Pages:
    """Blocks of `block_size` tokens out of one budget (in tokens), taken when a token needs the next one."""

    def __init__(self, budget: int, block_size: int) -> None:
        self.budget, self.block_size = positive("budget", budget), positive("block_size", block_size)
        self.allocator = BlockAllocator(budget // block_size)
        self.tables: dict[int, list[int]] = {}  # request id -> its blocks

    @property
    def reserved(self) -> int:
        """Tokens held."""
        return self.allocator.in_use * self.block_size

    def hold(self, request: Request, num_tokens: int) -> bool:
        """Have room for so many tokens of the request. False, and nothing changed, when there is none."""
        missing = -(-num_tokens // self.block_size) - len(self.tables.get(request.id, ()))
        if missing > 0:
            try:
                new_blocks = self.allocator.allocate_n(missing)
            except PoolExhausted:
                return False
            self.tables.setdefault(request.id, []).extend(new_blocks)
        return True

    def release(self, request: Request) -> None:
        """Give the request's blocks back."""
        self.allocator.free(self.tables.pop(request.id))

    def spans(self, request: Request, num_tokens: int) -> NDArray[np.void]:
        """The request's slots, an array of SPAN in the order in which its tokens fill them."""
        table = np.array(self.tables[request.id])
        spans = np.empty(len(table), SPAN)
        spans["request"], spans["tokens"] = request.id, self.block_size
        spans["start"] = table * self.block_size
        spans["used"] = (num_tokens - np.arange(len(table)) * self.block_size).clip(max=self.block_size)
        return spans

    def room(self, request: Request) -> int:
        """Tokens that the request's slots can hold."""
        return len(self.tables[request.id]) * self.block_size


class Contiguous:
    """One run of `reserve(request)` slots a request, at the lowest address with a gap that long, for all its life."""

    def __init__(self, budget: int, reserve: Callable[[Request], int]) -> None:
        self.budget, self.reserve = positive("budget", budget), reserve
        self.reserved = 0
        self.runs: dict[int, tuple[int, int]] = {}  # request id -> (start, end)
        self._by_address: list[tuple[int, int]] = []

    def hold(self, request: Request, num_tokens: int) -> bool:
        """Reserve its slots when it comes; False when no gap is long enough. ValueError when it outgrows them."""
        if request.id in self.runs:
            if num_tokens > self.room(request):
                raise ValueError(f"reserve: {self.room(request)} tokens are too few for {request}")
            return True
        tokens, gap_start = self.reserve(request), 0
        for start, end in [*self._by_address, (self.budget, self.budget)]:
            if start - gap_start >= tokens:
                self.runs[request.id] = run = (gap_start, gap_start + tokens)
                insort(self._by_address, run)
                self.reserved += tokens
                return True
            gap_start = end
        return False

    def release(self, request: Request) -> None:
        """Give the request's slots back: a gap for others."""
        self.reserved -= self.room(request)
        self._by_address.remove(self.runs.pop(request.id))

    def spans(self, request: Request, num_tokens: int) -> NDArray[np.void]:
        """The request's slots, all in one run; an array of SPAN."""
        return np.array([(request.id, self.runs[request.id][0], self.room(request), num_tokens)], SPAN)

    def room(self, request: Request) -> int:
        """Slots reserved for the request."""
        start, end = self.runs[request.id]
        return end - start


@dataclass
class Stretch:
    """What a memory held, one entry a step. `running` and `waiting` count requests, the others tokens:

    budget = used + to_come + never + free, where `to_come` are reserved slots that their request will yet write, and
    `never` those that it will not.
    """

    budget: int
    running: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    to_come: list[int] = field(default_factory=list)
    never: list[int] = field(default_factory=list)
    free: list[int] = field(default_factory=list)
    spans: dict[int, NDArray[np.void]] = field(default_factory=dict)  # of SPAN, at the steps that were watched
    finished: int = 0  # requests
    preempted: int = 0  # times that a request gave way

    def mean(self, what: str, since: int = 0) -> int:
        """The mean over the steps from `since` on, rounded down: an integer is the same on every machine."""
        counts = getattr(self, what)[since:]
        return sum(counts) // len(counts)


def simulate(
    requests: Iterable[Request],
    memory: Pages | Contiguous,
    num_steps: int,
    *,
    step_s: float | None = None,
    watch: Collection[int] = (),
) -> Stretch:
    """Serve the requests for `num_steps` steps, first come, first served.

    A step admits, in order, the requests that fit, with their whole prompt; then each running one writes one token, and
    leaves after its last. When pages run out the newest gives way: it frees its pages, goes to the head of the queue
    and later carries on with the tokens it had. Everyone waits from the beginning; with `step_s` seconds a step they
    come when they come. Spans are kept at the steps in `watch`. ValueError for a request that can never fit.
    """
    stretch, coming, waiting = Stretch(memory.budget), deque(requests), deque[Request]()
    running: list[Request] = []
    lengths = {request.id: request.prompt_tokens for request in coming}
    for step in range(num_steps):
        while coming and (step_s is None or coming[0].arrival_s <= step * step_s):
            waiting.append(coming.popleft())
        while waiting and memory.hold(waiting[0], lengths[waiting[0].id] + 1):
            running.append(waiting.popleft())
        grown = 0
        while grown < len(running):
            request = running[grown]
            if memory.hold(request, lengths[request.id] + 1):
                lengths[request.id] += 1
                grown += 1
            else:
                newest = running.pop()
                memory.release(newest)
                waiting.appendleft(newest)
                stretch.preempted += 1
        if waiting and not running:
            raise ValueError(f"budget: {memory.budget} tokens are too few for {waiting[0]}")
        used = sum(lengths[request.id] for request in running)
        kept = sum(min(memory.room(request), request.total_tokens) for request in running)
        stretch.running.append(len(running))
        stretch.waiting.append(len(waiting))
        stretch.used.append(used)
        stretch.to_come.append(kept - used)
        stretch.never.append(memory.reserved - kept)
        stretch.free.append(memory.budget - memory.reserved)
        if step in watch:
            stretch.spans[step] = np.concatenate(
                [np.empty(0, SPAN), *(memory.spans(r, lengths[r.id]) for r in running)]
            )
        for request in [r for r in running if lengths[r.id] >= r.total_tokens]:
            running.remove(request)
            memory.release(request)
            stretch.finished += 1
    return stretch
