"""What the exercises in Metal share: a passage of the kernels gives way to the learner's, and runs where it is safe."""

from __future__ import annotations

from collections.abc import Iterator
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
    for i in sorted(range(len(case.seqs)), key=lambda i: case.seqs[i].len):
        head, dim = np.unravel_index(share[i].argmax(), share[i].shape)
        first = min(int(dim), oracle.shape[2] - _DIMS)
        expected, got = ([f"{value:.3f}" for value in x[i, head, first : first + _DIMS]] for x in (oracle, output))
        given, right = f"a sequence of {case.seqs[i].len} tokens; {facts}", bool(share[i].max() <= 1)
        words = f"query head {head}, dims {first} to {first + _DIMS - 1}"
        yield i, trial(given, words, expected, got, lambda *_, right=right: right)
