"""The `simulator` executor: kernels/*.metal as a GPU runs them, thread by thread, with every load and store watched.

The launches are a GPU's: 32 lanes to a simdgroup, several simdgroups to a threadgroup. Every access is looked at before
it is made. What the simulator catches a kernel at is raised, as a SimulatorFinding that names kernel, buffer, index,
threadgroup, simdgroup and lane:

    StrayAccess          a read or write outside a buffer, a write to an input
    UninitialisedMemory  a read of threadgroup memory or of an output before it is written, an output left unwritten
    DataRace             two threads at one element of threadgroup memory or of an output, one of them writing, and no
                         barrier between; a simdgroup_barrier orders the lanes of its simdgroup only, a simd_sum nobody
    Divergence           a barrier or simd operation that not all lanes reach, or reach at different lines

Threadgroup memory is watched element by element, outputs for a thread that reads or writes what another has written.
Accesses to a thread's own arrays are not seen. Two runs give the same bits and the same trace.

It needs ucontext and a compiler that instruments. Linux on x86-64 with g++ and clang++ is tested; on aarch64 both gave
the same bits and the same trace under emulation; macOS with clang should do, and has not been tried.
"""

from __future__ import annotations

import ctypes
import platform
import re
import subprocess
import sys
import threading
from functools import cache, partial
from pathlib import Path
from shutil import which
from typing import Any

import mlx.core as mx
import numpy as np

from paged_core.errors import (
    DataRace,
    Divergence,
    ExecutorUnavailable,
    KernelError,
    SimulatorFinding,
    StrayAccess,
    UninitialisedMemory,
)
from paged_core.executors import host
from paged_core.executors.cpp import translation_unit
from paged_core.executors.dlpack import pointer
from paged_core.executors.launch import ARGUMENTS, GPU, Launch, Machine, Specialisation, argument_dtype, launches
from paged_core.executors.source import KernelSource, kernel_source, kernels_folder
from paged_core.executors.trace import COMPACT, Sites, Trace, TracedBuffer, TracedLaunch

SPACES = ("input", "output", "threadgroup")  # simulator.cpp, Space
_PLACE = re.compile(r"(?P<file>[^/]+):[1-9]\d*")
_one_at_a_time = threading.Lock()  # the C++ side knows one current simulation


@cache
def why_not() -> str | None:
    """Why the simulator cannot run here; None when it can."""
    if reason := host.why_not():
        return reason
    if sys.platform not in ("linux", "darwin") or platform.machine() not in ("x86_64", "aarch64", "arm64"):
        return f"it needs Linux or macOS on x86-64 or arm64, this is {sys.platform} on {platform.machine()}"
    if not host.accepts("-fsanitize=thread"):
        return "the C++ compiler cannot instrument loads and stores (-fsanitize=thread)"
    return None


def run(call) -> mx.array:
    """The output alone, for `paged_attention`; `simulate` keeps the trace, too."""
    return simulate(call).output


def simulate(call, kernels: KernelSource | None = None, max_records: int | None = None) -> Trace:
    """Run `call` (see `attention.checked_call`), by other kernels than the package's where given.

    The trace has no records unless `max_records` says how many to keep. KernelError when there are more, or when the
    kernels do not compile; a SimulatorFinding when they are caught at something.
    """
    if reason := why_not():
        raise ExecutorUnavailable(f"simulator: {reason}")
    todo = launches(call, machine())
    libraries = [
        _package_kernel(launch.specialisation) if kernels is None else built(launch.specialisation, kernels)
        for launch in todo
    ]
    with _one_at_a_time:
        simulation = _Simulation(-1 if max_records is None else max_records)
        try:
            return simulation.run(call, todo, libraries)
        finally:
            simulation.delete()


def machine() -> Machine:
    """What launches are fitted to."""
    return GPU


@cache
def _package_kernel(specialisation: Specialisation) -> Path:
    return built(specialisation, kernel_source())


def built(specialisation: Specialisation, kernels: KernelSource) -> Path:
    """The library with one specialised kernel. KernelError, in the compiler's words, when it does not compile."""
    # Not more optimisation than this: unrolled and vectorised loops would load more at once than a lane does. No fused
    # products, which some CPUs have: every machine gives the same bits. DWARF 4, for g++ and binutils of one time
    # disagree about the files of DWARF 5.
    flags = ["-O1", "-ffp-contract=off", "-g1", "-gdwarf-4", "-fsanitize=thread"]
    compiler = host.compiler()
    if compiler and compiler.is_clang:  # which leaves out a load that it sees followed by a store to the same place
        flags += ["-mllvm", "-tsan-instrument-read-before-write=1"]
    link_flags = ("-Wl,-undefined,dynamic_lookup",) if sys.platform == "darwin" else ()
    text = translation_unit(specialisation, kernels, "simulator.h")
    return host.built_library(f"simulated_{specialisation.label}", text, tuple(flags), link_flags)


class _Finding(ctypes.Structure):
    """simulator.cpp, Finding."""

    _fields_ = (
        ("kind", ctypes.c_int32), ("slot", ctypes.c_int32), ("index", ctypes.c_int64), ("size", ctypes.c_int64),
        ("threadgroup", ctypes.c_int64), ("other_threadgroup", ctypes.c_int64), ("thread", ctypes.c_int32),
        ("other", ctypes.c_int32), ("is_write", ctypes.c_int32), ("other_is_write", ctypes.c_int32),
        ("site", ctypes.c_int64), ("other_site", ctypes.c_int64), ("line", ctypes.c_int32),
        ("other_line", ctypes.c_int32), ("operation", ctypes.c_char_p), ("other_operation", ctypes.c_char_p),
        ("file", ctypes.c_char_p), ("other_file", ctypes.c_char_p), ("why", ctypes.c_char_p),
    )  # fmt: skip


OUTSIDE, WRITE_TO_INPUT, NEVER_WRITTEN, RACE, DIVERGENCE, TOO_LONG, LEFT_OUT, BROKEN = range(
    1, 9
)  # simulator.cpp, Kind


@cache
def _machinery() -> ctypes.CDLL:
    """kernels/host/simulator.cpp, whose functions the kernels find by name: hence RTLD_GLOBAL."""
    text = (kernels_folder() / "host" / "simulator.cpp").read_text(encoding="utf-8")
    library = host.library("simulator", text, ("-O2",), ctypes.RTLD_GLOBAL)
    pointer_, int32, int64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    signatures: tuple[tuple[str, Any, *tuple[Any, ...]], ...] = (
        ("new", pointer_, int64),
        ("delete", None, pointer_),
        ("add", int32, pointer_, ctypes.c_char_p, pointer_, int64, int64),
        ("launch", int32, pointer_, pointer_, pointer_, int32, pointer_, int32, int32),
        ("complete", int32, pointer_, int32),
        ("finding", ctypes.POINTER(_Finding), pointer_),
        ("data", pointer_, pointer_, int32),
        ("buffer", ctypes.c_char_p, pointer_, int32, pointer_, pointer_, pointer_),
        ("records", pointer_, pointer_, pointer_),
        ("starts", pointer_, pointer_, pointer_),
        ("site", int64, pointer_, int32, pointer_),
    )
    for name, result, *arguments in signatures:
        function = library[f"paged_simulation_{name}"]
        function.restype, function.argtypes = result, tuple(arguments)
        setattr(library, name, function)
    return library


class _Simulation:
    """One run of the C++ machinery."""

    def __init__(self, max_records: int) -> None:
        self._machinery = _machinery()
        self._handle = self._machinery.new(max_records)
        if not self._handle:
            raise KernelError("simulator: the system gives no address space (`ulimit -v` limits it?)")

    def delete(self) -> None:
        self._machinery.delete(self._handle)

    def run(self, call, todo: list[Launch], libraries: list[Path]) -> Trace:
        arrays = {name: x for name, x in zip(call._fields, call, strict=True) if isinstance(x, mx.array)}
        mx.eval(*arrays.values())
        slots: dict[str, int] = {}
        traced = []
        for launch, path in zip(todo, libraries, strict=True):
            kernel, dtype, constants = launch.specialisation
            inputs, outputs = ARGUMENTS[kernel]
            slots["sizes"] = self._add_numpy("sizes", np.array(launch.sizes, np.int32))
            slots["scalars"] = self._add_numpy("scalars", np.array(launch.scalars, np.float32))
            for name in inputs:
                if name not in slots:
                    slots[name] = self._add_mlx(name, arrays.get(name), argument_dtype(name, dtype).size)
            for name, shape in zip(outputs, launch.output_shapes, strict=True):
                slots[name] = self._add(name, None, int(np.prod(shape)), argument_dtype(name, dtype).size)
            lanes = dict(constants)["LANES"]
            simdgroups = launch.specialisation.threads // lanes
            traced.append(TracedLaunch(kernel, launch.grid, simdgroups, lanes))
            function = ctypes.CDLL(str(path)).paged_thread
            order = (ctypes.c_int32 * (len(inputs) + len(outputs)))(*(slots[name] for name in inputs + outputs))
            grid = (ctypes.c_int32 * 3)(*launch.grid)
            if not self._machinery.launch(self._handle, function, order, len(order), grid, simdgroups, lanes):
                raise self._finding(traced[-1], path)
        if not self._machinery.complete(self._handle, slots["out"]):
            raise self._finding(traced[-1], libraries[-1])
        return self._trace(call, slots["out"], traced, libraries)

    def _add(self, name: str, address: int | None, count: int, itemsize: int) -> int:
        slot = self._machinery.add(self._handle, name.encode(), address, count, itemsize)
        if slot < 0:
            raise KernelError(f"simulator: there is no room for a copy of {name}, {count * itemsize:,} bytes")
        return slot

    def _add_numpy(self, name: str, x: np.ndarray) -> int:
        return self._add(name, x.ctypes.data, x.size, x.itemsize)

    def _add_mlx(self, name: str, x: mx.array | None, itemsize: int) -> int:
        if x is None or x.size == 0:  # no element, so that whoever reads it is caught
            return self._add_numpy(name, np.empty(0, f"V{itemsize}"))
        address, owner = pointer(x)
        slot = self._add(name, address, x.size, itemsize)
        del owner  # it had to live until the copy was made
        return slot

    def _trace(self, call, out: int, traced: list[TracedLaunch], libraries: list[Path]) -> Trace:
        dtype = call.q.dtype
        size = call.q.size * dtype.size
        data = np.frombuffer(ctypes.string_at(self._machinery.data(self._handle, out), size), np.uint8)
        output = mx.array(data).view(dtype).reshape(call.q.shape) if size else mx.zeros(call.q.shape, dtype)
        mx.eval(output)
        count = ctypes.c_int64()
        address = self._machinery.records(self._handle, ctypes.byref(count))
        compact = np.frombuffer(ctypes.string_at(address, count.value * COMPACT.itemsize), COMPACT)
        address = self._machinery.starts(self._handle, ctypes.byref(count))
        starts = np.frombuffer(ctypes.string_at(address, count.value * 8), np.int64)
        sites: list[tuple[int, int]] = []
        launch = ctypes.c_int32()
        while (offset := self._machinery.site(self._handle, len(sites), ctypes.byref(launch))) >= 0:
            sites.append((launch.value, offset))
        launch_numbers, offsets = np.array(sites, np.int64).reshape(-1, 2).T
        lines = partial(_find_lines, libraries)
        return Trace(output, traced, self._buffers(), compact, starts, Sites(launch_numbers, offsets), lines)

    def _buffers(self) -> list[TracedBuffer]:
        buffers: list[TracedBuffer] = []
        space, count, itemsize = ctypes.c_int32(), ctypes.c_int64(), ctypes.c_int64()
        answers = tuple(map(ctypes.byref, (space, count, itemsize)))
        while (name := self._machinery.buffer(self._handle, len(buffers), *answers)) is not None:
            buffers.append(TracedBuffer(name.decode(), SPACES[space.value], count.value, itemsize.value))
        return buffers

    def _finding(self, launch: TracedLaunch, library: Path) -> KernelError:
        return _as_error(self._machinery.finding(self._handle).contents, launch, self._buffers(), library)


def _as_error(found: _Finding, launch: TracedLaunch, buffers: list[TracedBuffer], library: Path) -> KernelError:
    kernel = launch.kernel
    if found.kind == BROKEN:
        return KernelError(f"{kernel}: the simulator cannot run it: {found.why.decode()}")
    if found.kind == TOO_LONG:
        return KernelError(
            f"{kernel}: the trace has more loads and stores than max_records; trace fewer tokens, heads or sequences, "
            f"or pass a larger max_records (a record takes about 100 bytes)"
        )
    buffer = buffers[found.slot]
    if found.kind == LEFT_OUT:
        message = f"{kernel}: {buffer.name}[{found.index}] was never written"
        return UninitialisedMemory(message, kernel, buffer.name, found.index, None, None, None, None)

    def who(thread: int, threadgroup: int) -> str:
        x, y, z = _position(threadgroup, launch.grid)
        return (
            f"lane {thread % launch.lanes} of simdgroup {thread // launch.lanes} in threadgroup {threadgroup} "
            f"({x}, {y}, {z})"
        )

    me = (found.threadgroup, found.thread // launch.lanes, found.thread % launch.lanes)
    it = who(found.thread, found.threadgroup)
    if found.kind == DIVERGENCE:
        awaited = f"{found.other_operation.decode()} ({_at(found.other_file, found.other_line)})"
        here = None if found.operation is None else _at(found.file, found.line)
        instead = "has ended" if here is None else f"waits at {found.operation.decode()} ({here})"
        message = (
            f"{kernel}: not all lanes reach {awaited}: {who(found.other, found.threadgroup)} waits there, while {it} "
            f"{instead}"
        )
        return Divergence(message, kernel, None, None, *me, here or _at(found.other_file, found.other_line))

    line, other_line = _find_lines([library], Sites(np.zeros(2, int), np.array([found.site, found.other_site])))
    place = f" ({line})" if line else ""
    element = f"{buffer.name}[{found.index}]"
    does = "writes" if found.is_write else "reads"
    error: type[SimulatorFinding]
    if found.kind == RACE:
        other_place = f" ({other_line})" if other_line and found.other_site >= 0 else ""
        error, message = (
            DataRace,
            (
                f"{it} {does} {element}{place}, which {who(found.other, found.other_threadgroup)} "
                f"{'writes' if found.other_is_write else 'reads'}{other_place} with no barrier between them"
            ),
        )
    elif found.kind == NEVER_WRITTEN:
        error, message = UninitialisedMemory, f"{it} reads {element}, which nobody has written{place}"
    elif found.kind == WRITE_TO_INPUT:
        error, message = StrayAccess, f"{it} writes {element}, an input{place}"
    else:
        error, message = StrayAccess, f"{it} {does} {element}, outside its {buffer.size} elements{place}"
    return error(f"{kernel}: {message}", kernel, buffer.name, found.index, *me, line or None)


def _position(threadgroup: int, grid: tuple[int, int, int]) -> tuple[int, int, int]:
    return threadgroup % grid[0], threadgroup // grid[0] % grid[1], threadgroup // (grid[0] * grid[1])


def _at(file: bytes, line: int) -> str:
    return f"{file.decode()}:{line}"


def _find_lines(libraries: list[Path], sites: Sites) -> list[str]:
    """The source line of each site, where the launches' kernels lie in `libraries`."""
    lines = [""] * len(sites.offsets)
    for number, library in enumerate(libraries):
        mine = np.flatnonzero((sites.launches == number) & (sites.offsets > 0))
        for i, line in zip(mine, _lines(library, sites.offsets[mine] - 1), strict=True):  # a call returns past it
            lines[i] = line
    return lines


def _lines(library: Path, offsets) -> list[str]:
    """For each offset the innermost place in a Metal file, as "attention.metal:123", "" where unknown. Debuggers' tools
    know: addr2line comes with g++, llvm-addr2line with clang."""
    unknown = [""] * len(offsets)
    tool = which("addr2line") or which("llvm-addr2line")
    if tool is None or not len(offsets):
        return unknown
    command = [tool, "-a", "-i", "-e", str(library), *(f"{offset:#x}" for offset in offsets)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    ours = {"kernel.cpp", *(path.name for path in (kernels_folder() / "host").iterdir())}
    lines: list[str] = []
    for row in answer.splitlines():  # an address, then where it is, from the innermost inlined function outwards
        place = _PLACE.search(row)
        if row.startswith("0x"):
            lines.append("")
        elif lines and not lines[-1] and place and place["file"] not in ours:
            lines[-1] = place[0]
    return lines if len(lines) == len(offsets) else unknown
