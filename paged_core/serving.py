"""A server under a virtual clock: requests arrive, the real Scheduler decides, and a StepCost says how long it took.

It needs no model, but a model may carry the plans out. Only integers, so the same requests give the same service on
every machine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from paged_core.allocator import BlockAllocator
from paged_core.errors import RequestRefused
from paged_core.scheduler import Plan, Scheduler, State
from paged_core.workload import Request as Lengths

# What a request is doing, while a span lasts. WAITING has not been admitted yet; PREEMPTED had been, and has lost its
# blocks; SWAPPED has them in host memory; AGAIN computes what had been computed before.
WAITING, PROMPT, DECODE, PREEMPTED, SWAPPED, AGAIN = "waiting", "prompt", "decode", "preempted", "swapped", "again"


class Arrival(NamedTuple):
    """A request that is to come."""

    id: Hashable
    at_us: int
    prompt: Sequence[int]
    max_new_tokens: int


def arrivals(requests: Iterable[Lengths], prompts: Sequence[Sequence[int]] | None = None) -> list[Arrival]:
    """Requests as drawn from a trace, arriving when they came, to the millisecond. `prompts` has the tokens of each;
    without it, nobody's begins like anybody else's."""
    return [
        Arrival(
            r.id,
            round(r.arrival_s * 1000) * 1000,
            prompts[i] if prompts else range((i + 1) << 40, ((i + 1) << 40) + r.prompt_tokens),
            r.output_tokens,
        )
        for i, r in enumerate(requests)
    ]


class StepCost(NamedTuple):
    """How long a step takes, in microseconds: so much each, added up."""

    step_us: int  # a step: the weights are read once, however many tokens are computed
    token_us: int = 0  # a token computed
    read_us: int = 0  # a block of K and V that attention reads
    swap_us: int = 0  # a block copied to the host or back

    def of(self, plan: Plan) -> int:
        """Microseconds that `plan` takes; before it is completed, for then requests have given their blocks back."""
        blocks_read = sum(len(work.request.blocks) for work in plan.work)
        blocks_moved = len(plan.swap_out) + len(plan.swap_in)
        return self.step_us + self.token_us * plan.num_tokens + self.read_us * blocks_read + self.swap_us * blocks_moved


class Span(NamedTuple):
    """A stretch of time in which a request was doing one thing."""

    id: Hashable
    what: str
    begin_us: int
    end_us: int


class Step(NamedTuple):
    """One step, as it was planned."""

    begin_us: int
    end_us: int
    new_tokens: int  # computed for the first time
    tokens_again: int  # computed before, and lost
    blocks_moved: int  # to the host and back
    preempted: tuple[Hashable, ...]
    running: int
    waiting: int
    blocks_in_use: int
    tables: dict[Hashable, tuple[int, ...]] | None  # of those running, at steps that were watched


@dataclass
class Served:
    """What became of one request: its tokens, and their times in microseconds."""

    arrived_us: int
    tokens: list[int] = field(default_factory=list)
    token_us: list[int] = field(default_factory=list)
    num_preemptions: int = 0

    @property
    def first_token_us(self) -> int:
        """From its arrival to its first token."""
        return self.token_us[0] - self.arrived_us

    @property
    def gaps_us(self) -> list[int]:
        """From each token to the next."""
        return [b - a for a, b in zip(self.token_us, self.token_us[1:], strict=False)]


@dataclass
class Service:
    """Everything that happened, with a pool of `num_blocks`."""

    num_blocks: int
    steps: list[Step] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    served: dict[Hashable, Served] = field(default_factory=dict)
    refused: dict[Hashable, str] = field(default_factory=dict)

    def first_token_us(self, percent: int) -> int:
        """So many per cent of the requests had their first token within this time."""
        return percentile([served.first_token_us for served in self.served.values()], percent)

    def gap_us(self, percent: int) -> int:
        """So many per cent of the tokens came within this time after the one before."""
        return percentile([gap for served in self.served.values() for gap in served.gaps_us], percent)

    @property
    def answers(self) -> dict[Hashable, list[int]]:
        """The tokens that each request was given."""
        return {id: served.tokens for id, served in self.served.items()}

    @property
    def peak_blocks(self) -> int:
        """The most blocks that were in use in any step."""
        return max(step.blocks_in_use for step in self.steps)

    @property
    def tokens_per_s(self) -> int:
        """Tokens generated, per second from the first step to the last, rounded down."""
        generated = sum(len(served.token_us) for served in self.served.values())
        return generated * 1_000_000 // (self.steps[-1].end_us - self.steps[0].begin_us)

    def total(self, what: str) -> int:
        """A count of `Step`, added up over the steps; of `preempted`, how many."""
        counts = (getattr(step, what) for step in self.steps)
        return sum(len(count) if isinstance(count, tuple) else count for count in counts)

    def ledger(self, ids: Sequence[Hashable]) -> str:
        """A table of the watched steps: what each request does, and in which blocks; "-" before it comes and after it
        has ended."""
        header = [f"{id!s:<18}" for id in ids]
        lines = [f"step  {''.join(header)}free"]
        for number, step in enumerate(self.steps):
            if step.tables is None:
                continue
            doing = {s.id: s.what for s in self.spans if s.begin_us <= step.begin_us < s.end_us}
            cells = [f"{doing.get(id, '-'):<10}{' '.join(map(str, step.tables.get(id, ()))):<8}" for id in ids]
            lines.append(f"{number:>4}  {''.join(cells)}{self.num_blocks - step.blocks_in_use}")
        return "\n".join(lines)


def percentile(values: Sequence[int], percent: int) -> int:
    """The smallest of `values` that so many per cent of them do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def serve(
    scheduler: Scheduler,
    arrivals: Iterable[Arrival],
    cost: StepCost,
    *,
    watch: Collection[int] = (),
    carry_out: Callable[[Plan], Mapping[Hashable, int]] | None = None,
) -> Service:
    """Let the requests come, in this order, and serve them to the end. Block tables are kept at steps in `watch`.

    `carry_out` computes a plan and gives the new tokens, as `Engine.carry_out` does; without it every token is 0.
    """
    service, coming, now = Service(scheduler.blocks.capacity), deque(arrivals), 0
    doing: dict[Hashable, tuple[str, int]] = {}  # and since when
    most_computed: dict[Hashable, int] = {}

    def turn(id: Hashable, what: str | None, at_us: int) -> None:
        was, since = doing.pop(id, (None, at_us))
        if was is not None and was != what and at_us > since:
            service.spans.append(Span(id, was, since, at_us))
        if what is not None:
            doing[id] = what, since if was == what else at_us

    while coming or scheduler.requests:
        if not scheduler.requests:
            now = max(now, coming[0].at_us)
        while coming and coming[0].at_us <= now:
            id, at_us, prompt, max_new_tokens = coming.popleft()
            try:
                scheduler.add(id, prompt, max_new_tokens)
            except RequestRefused as refusal:
                service.refused[id] = str(refusal)
                continue
            service.served[id] = Served(at_us)
            most_computed[id] = 0
            turn(id, WAITING, at_us)
        plan = scheduler.plan()
        again = 0
        for request in plan.preempted:
            service.served[request.id].num_preemptions += 1
            turn(request.id, SWAPPED if request.state is State.SWAPPED else PREEMPTED, now)
        for request, first, count, _ in plan.work:
            lost = min(count, max(0, most_computed[request.id] - first))
            again += lost
            turn(request.id, AGAIN if lost else PROMPT if first < request.num_prompt_tokens else DECODE, now)
            most_computed[request.id] = max(most_computed[request.id], first + count)
        end = now + cost.of(plan)
        service.steps.append(
            Step(
                now, end, plan.num_tokens - again, again, len(plan.swap_out) + len(plan.swap_in),
                tuple(request.id for request in plan.preempted), len(scheduler.running),
                len(scheduler.requests) - len(scheduler.running), scheduler.blocks.in_use,
                {r.id: tuple(r.blocks) for r in scheduler.running} if len(service.steps) in watch else None,
            )
        )  # fmt: skip
        if not plan.work and not plan.preempted and scheduler.requests:
            raise RuntimeError(f"nobody can go on: {scheduler!r}")
        now = end
        try:
            tokens = carry_out(plan) if carry_out else {work.request.id: 0 for work in plan.work if work.samples}
        except BaseException:
            scheduler.abandon(plan)  # it can be used again
            raise
        for id, token in tokens.items():
            service.served[id].tokens.append(token)
            service.served[id].token_us.append(now)
        for request in scheduler.complete(plan, tokens):
            turn(request.id, None, now)
    return service


def steady_step(num_running: int, num_blocks: int) -> Callable[[], None]:
    """A step of a scheduler in which `num_running` requests each get a token, to be done again and again; of no model,
    so that it takes what the scheduler itself takes. It can be done until the pool of `num_blocks` blocks is full."""
    scheduler = Scheduler(
        BlockAllocator(num_blocks), block_size=16, max_running=num_running, max_tokens_per_step=64 * num_running
    )
    for id in range(num_running):
        scheduler.add(id, range(64), 16 * num_blocks // num_running - 64)

    def step() -> None:
        if not scheduler.requests:
            raise RuntimeError(f"all {num_running} requests have finished; a larger pool lasts longer")
        plan = scheduler.plan()
        scheduler.complete(plan, dict.fromkeys((work.request.id for work in plan.work), 0))

    step()  # the prompts'
    return step
