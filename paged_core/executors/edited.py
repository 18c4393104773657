"""Kernels that somebody has just changed, run where they can do no harm: in a process of their own, for a limited time.

files = source.files()
files["attention.metal"] = files["attention.metal"].replace("max(top, sink)", "sink")
run_edited(files, **case.arguments)                        what the simulator makes of it: an output or a finding
run_edited(files, **case.arguments, trace=True)            and every load and store
run_edited(files, **case.arguments, executor="native")     at full speed, unwatched
"""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np

from paged_core import executors
from paged_core.attention import MAX_RECORDS, checked_call
from paged_core.errors import KernelError, PagedCoreError
from paged_core.executors import native, simulator
from paged_core.executors.launch import launches
from paged_core.executors.source import KernelSource, parse
from paged_core.executors.trace import Trace

MODULES = {"simulator": simulator, "native": native}
ERRORS_SHOWN = 3
_ERROR = re.compile(r"^(?P<file>[^:\n]+):(?P<line>\d+):(?:\d+:)? (?:fatal )?error: (?P<message>.*)$", re.MULTILINE)


def run_edited(
    files: Mapping[str, str],
    *arguments,
    executor: str = "simulator",
    timeout: float = 10.0,
    trace: bool = False,
    max_records: int = MAX_RECORDS,
    **options,
) -> mx.array | Trace:
    """`paged_attention` by other kernels than the package's.

    files     Metal texts by file name, as `source.files()` gives them
    executor  "simulator" or "native"
    timeout   seconds that the kernels may run; compiling them and starting the process come on top
    trace     return the simulator's Trace, with up to `max_records` records, instead of the output

    The other arguments are those of `paged_attention`. Of the kernels, those that the call launches are compiled, as on
    a GPU: a mistake in the body of another one goes unnoticed until a call needs it. What it costs beyond the kernels
    is about half a second for the process, and compiling where this text has not been compiled before.

    KernelError when the text does not compile, with the compiler's message at its line of the text; when the kernels
    crash; when they do not end in time. A SimulatorFinding, in the simulator, when they are caught at something.
    Otherwise raises what `paged_attention` does.
    """
    if executor not in MODULES:
        raise ValueError(f'executor: expected "simulator" or "native", got {executor!r}')
    if trace and executor != "simulator":
        raise ValueError(f"trace: only the simulator traces, not {executor}")
    call = checked_call(*arguments, **options)
    executors.choose(executor)
    kernels = parse(files)
    _compile(executor, call, kernels, files)
    with tempfile.TemporaryDirectory(prefix="paged_core-") as folder:
        work = Path(folder)
        _dump((executor, call, kernels, max_records if trace else None), work / "task")
        _run_process(work, timeout)
        result = pickle.loads((work / "result").read_bytes())
    if isinstance(result, Exception):
        raise result
    return result


def _compile(executor: str, call, kernels: KernelSource, files: Mapping[str, str]) -> None:
    """Put the kernels in the cache, so that the process finds them there."""
    module = MODULES[executor]
    for launch in launches(call, module.machine()):
        try:
            module.built(launch.specialisation, kernels)
        except KernelError as error:
            raise KernelError(_brief(str(error), files)) from None


def _brief(message: str, files: Mapping[str, str]) -> str:
    """Of all that a compiler says, the first error of each line, with the line's text."""
    errors: dict[tuple[str, str], str] = {}
    for match in _ERROR.finditer(message):
        file, line, error = match.groups()
        text = files.get(file, "").splitlines()[int(line) - 1 : int(line)]
        errors.setdefault((file, line), "\n    ".join([f"{file}:{line}: error: {error}", *map(str.strip, text)]))
    shown = list(errors.values())
    if len(shown) > ERRORS_SHOWN:
        shown[ERRORS_SHOWN:] = [f"and {len(shown) - ERRORS_SHOWN} more"]
    return "\n".join(shown) or message


def _run_process(work: Path, timeout: float) -> None:
    """`run_task` in a process of its own."""
    package = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))}
    program = f"import sys; from {__name__} import run_task; run_task(sys.argv[1])"
    command = [sys.executable, "-P", "-c", program, str(work)]  # -P: no module of the folder we happen to be in
    with (
        open(work / "stderr", "w+") as stderr,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=environment
        ) as process,
    ):
        try:
            assert process.stdout is not None
            process.stdout.readline()  # it is ready; its time begins
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise KernelError(
                f"the kernels did not end within {timeout:g} s and were stopped: is there a loop without an end?"
            ) from None
        finally:
            process.kill()
        if status < 0:
            raise KernelError(f"the kernels crashed ({signal.Signals(-status).name}): the simulator may tell where")
        if status:
            stderr.seek(0)
            raise KernelError(f"the process of the kernels failed: {stderr.read().strip()}")


def run_task(folder: str) -> None:
    """What the process does: the task in `folder`, whose result it leaves there."""
    work = Path(folder)
    executor, call, kernels, max_records = pickle.loads((work / "task").read_bytes())
    print("ready", flush=True)
    try:
        result: mx.array | Trace | PagedCoreError
        if executor == "native":
            result = native.run(call, kernels=kernels)
        else:
            seen = simulator.simulate(call, kernels, max_records)
            result = seen.output if max_records is None else seen
    except PagedCoreError as error:
        result = error
    _dump(result, work / "result")


class _Pickler(pickle.Pickler):
    """Python's, with MLX's arrays."""

    def reducer_override(self, value):
        if isinstance(value, mx.array):
            dtype = str(value.dtype).removeprefix("mlx.core.")
            return _array, (dtype, value.shape, np.array(value.view(mx.uint8)) if value.size else None)
        return NotImplemented


def _array(dtype: str, shape: tuple[int, ...], data: np.ndarray | None) -> mx.array:
    if data is None:
        return mx.zeros(shape, getattr(mx, dtype))
    return mx.array(data).view(getattr(mx, dtype)).reshape(shape)


def _dump(value, path: Path) -> None:
    with open(path, "wb") as file:
        _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
