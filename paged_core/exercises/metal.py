"""What the exercises in Metal share: a passage of the kernels gives way to the learner's, and runs where it is safe."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from paged_core.cases import PagedCase, to_numpy
from paged_core.errors import KernelError
from paged_core.executors.edited import run_edited
from paged_core.executors.source import files
from paged_core.executors.trace import Trace
from paged_core.exercises.exercise import Trial, trial
from paged_core.viz.answers import Row, compared
from paged_core.viz.words import counted

SECONDS = 10.0  # that the kernels of one trial may run
_DIMS = 3  # of a head that are shown


class Passage(NamedTuple):
    """A stretch of attention.metal, from the text `begin` to before the text `end` that comes next."""

    begin: str
    end: str

    def replaced(self, passage: str) -> dict[str, str]:
        texts = files()
        text = texts["attention.metal"]
        start = text.index(self.begin)
        stop = text.index(self.end, start)
        texts["attention.metal"] = f"{text[:start]}{passage.strip()}\n{text[stop:]}"
        return texts


def run(passage: Passage, answer: str, case: PagedCase) -> NDArray[np.float64] | KernelError:
    """The simulator's output, or what it caught the kernel at."""
    seen = traced(passage, answer, case)
    return to_numpy(seen.output) if isinstance(seen, Trace) else seen


def traced(passage: Passage, answer: str, case: PagedCase) -> Trace | KernelError:
    """The same with every load and store."""
    try:
        result = run_edited(passage.replaced(answer), **case.arguments, timeout=SECONDS, trace=True)
    except KernelError as error:
        return error
    assert isinstance(result, Trace)
    return result


def sequences(case: PagedCase, output: NDArray[np.float64] | KernelError, facts: str) -> Iterator[tuple[int, Trial]]:
    """A trial for each sequence of a decode, the shortest first. A kernel that did not get to its end is one trial."""
    if isinstance(output, KernelError):
        said = " ".join(f"{type(output).__name__}: {output}".split())
        given = f"{len(case.seqs)} sequences of {', '.join(str(seq.len) for seq in case.seqs)} tokens; {facts}"
        yield -1, trial(given, "the simulator's verdict", "an output", said)
        return
    share, oracle = case.share_of_bound(mx.array(output)), case.oracle()
    rows: list[Row] = []
    for i in sorted(range(len(case.seqs)), key=lambda i: case.seqs[i].len):
        tokens, right = case.seqs[i].len, bool(share[i].max() <= 1)
        head, dim = np.unravel_index(share[i].argmax(), share[i].shape)
        first = min(int(dim), oracle.shape[2] - _DIMS)
        seen = [x[i, head, first : first + _DIMS].tolist() for x in (oracle, output)]
        expected, got = ([f"{value:.3g}" for value in values] for values in seen)
        if expected == got and not right:  # by less than three digits tell
            expected, got = ([f"{value:.9g}" for value in values] for values in seen)
        long = counted(tokens, "token")
        where = f"{long}: query head {head}, dims {first} to {first + _DIMS - 1}"
        rows.append(Row(long, "right", "right") if right else Row(where, expected, got))
        given = f"a sequence of {long}; {facts}"
        yield i, Trial(given, expected, got, right, partial(compared, rows[:], given=given))
