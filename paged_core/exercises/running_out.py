"""Notebook 09: who gives way, and who is let in."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from paged_core.allocator import BlockAllocator
from paged_core.exercises.exercise import Exercise, Trial, attempt, trial
from paged_core.scheduler import Scheduler
from paged_core.viz.answers import Input
from paged_core.viz.style import sequence_style


def _scheduler(num_blocks: int, watermark: int = 0) -> Scheduler:
    """With a token a block: every step needs a new one."""
    return Scheduler(BlockAllocator(num_blocks), block_size=1, watermark=watermark, max_running=64)


def _victims(answer: Any) -> Iterator[Trial]:
    rng = random.Random(9)
    cases = [
        ([1, 1], 2),
        ([1, 1], 1),
        ([1, 1], 0),
        ([2, 1, 1], 0),
        ([1, 3, 1], 0),
        ([1, 1, 1, 1], 0),
        ([5, 1, 1, 2], 1),
    ]
    for _ in range(200):
        held = [rng.randint(1, 5) for _ in range(rng.randint(2, 7))]
        cases.append((held, rng.randint(0, len(held))))
    for held, free in sorted(cases, key=lambda case: (len(case[0]), sum(case[0]))):
        expected = _preempted(held, free)
        got = attempt(answer, list(held), free)
        given = f"held {held}, free {free}"
        inputs = [Input("blocks held", held, sequence_style)]
        yield trial(given, "give way, in this order", expected, got, inputs=inputs)


def _preempted(held: list[int], free: int) -> list[int]:
    """What the Scheduler does in the step after all of these have come in."""
    scheduler = _scheduler(sum(held) + free)
    requests = [scheduler.add(i, range(blocks), max_new_tokens=2) for i, blocks in enumerate(held)]
    plan = scheduler.plan()
    scheduler.complete(plan, {work.request.id: 0 for work in plan.work})
    return [requests.index(victim) for victim in scheduler.plan().preempted]


def _admissions(answer: Any) -> Iterator[Trial]:
    rng = random.Random(10)
    cases = [
        ([2], 2, 0, 1), ([3], 2, 0, 1), ([1, 1], 2, 1, 1), ([1, 3, 1], 3, 0, 1), ([3], 3, 2, 0), ([1, 1], 2, 1, 0),
        ([], 3, 0, 0), ([2, 2, 2], 6, 1, 0),
    ]  # fmt: skip
    for _ in range(200):
        free, watermark, running = rng.randint(1, 9), rng.randint(0, 3), rng.randint(0, 2)
        most = free if running == 0 else free + 1  # more than the whole pool would be refused, not wait
        cases.append(([rng.randint(1, most) for _ in range(rng.randint(0, 5))], free, watermark, running))
    for needed, free, watermark, running in sorted(cases, key=lambda case: (len(case[0]), case[1])):
        expected = _admitted(needed, free, watermark, running)
        got = attempt(answer, list(needed), free, watermark, running)
        given = f"needed {needed}, free {free}, watermark {watermark}, running {running}"
        yield trial(given, "let in", expected, got, inputs=[Input("blocks needed", needed, sequence_style)])


def _admitted(needed: list[int], free: int, watermark: int, running: int) -> int:
    """How many the Scheduler admits, when `free` blocks are left after the running ones have had theirs."""
    scheduler = _scheduler(free + 2 * running, watermark)
    for i in range(running):
        scheduler.add(("running", i), [0], max_new_tokens=2)
    plan = scheduler.plan()
    scheduler.complete(plan, {work.request.id: 0 for work in plan.work})
    for i, blocks in enumerate(needed):
        scheduler.add(i, range(blocks), max_new_tokens=1)
    return len(scheduler.plan().admitted)


gives_way = Exercise("who gives way", _victims, lines=9)
admitted = Exercise("who is let in", _admissions, lines=7)
