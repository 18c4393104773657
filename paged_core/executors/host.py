"""The host's C++ compiler: finds it, compiles kernels with it, keeps what it made.

Compiled libraries lie in the user's cache folder under a name made of two hashes: of everything that went in (source,
headers, flags, compiler, CPU) and of what came out. So an entry that is stale is never asked for, one that was
truncated or altered is recognised before it is loaded, and processes that compile the same thing at once each put a
whole file in place.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

from platformdirs import user_cache_path

from paged_core.errors import ExecutorUnavailable, KernelError
from paged_core.executors import source

COMPILERS = ("c++", "g++", "clang++")
CACHE_VARIABLE = "PAGED_CORE_CACHE"  # another folder than the user's cache folder


class Compiler(NamedTuple):
    path: str
    version: str  # what it says of itself

    @property
    def is_clang(self) -> bool:
        return "clang" in self.version


@cache
def compiler() -> Compiler | None:
    """$CXX where set, else the first of c++, g++ and clang++ on PATH that answers; None without any."""
    named = os.environ.get("CXX")
    for name in (named,) if named else COMPILERS:
        if path := shutil.which(name):
            answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            if answer.returncode == 0:
                return Compiler(path, answer.stdout)
    return None


def why_not() -> str | None:
    """Why nothing can be compiled here; None when it can."""
    if compiler() is not None:
        return None
    if named := os.environ.get("CXX"):
        return f"$CXX names {named!r}, which is no compiler that runs here"
    return f"no C++ compiler on PATH (looked for {', '.join(COMPILERS)}; $CXX names another)"


@cache
def cpu() -> str:
    """What `-march=native` depends on: the CPU's model and abilities."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(dict.fromkeys(x for x in lines if x.startswith(("model name", "flags", "CPU part", "Features"))))


# Sums may be regrouped, or no sum could be vectorised; infinities and NaN keep their meaning. Not -ffast-math: a
# library linked with it makes the thread that loads it flush subnormal numbers to zero, NumPy's float64 too.
FAST_SUMS = ("-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros", "-freciprocal-math")


@cache
def optimised() -> tuple[str, ...]:
    """The flags for code that has to be fast on this CPU."""
    tuning = [
        "-march=native",
        # g++ would fuse turns of the loop over keys, and then gather from four rows at once what lies in each in line
        "-fno-loop-unroll-and-jam",
    ]
    if "avx512f" in cpu():
        tuning.append("-mprefer-vector-width=512")
    return ("-O3", *FAST_SUMS, *filter(accepts, tuning))


def vector_width() -> int:
    """Floats in one of this CPU's vectors: 16 with AVX-512, 8 with AVX, else 4 (SSE, NEON)."""
    abilities = cpu().split()
    return 16 if "avx512f" in abilities else 8 if "avx" in abilities else 4


def accepts(flag: str) -> bool:
    """Does this machine's compiler take `flag`?"""
    built = compiler()
    if built is None:
        return False
    command = [built.path, "-Werror", flag, "-x", "c++", "-fsyntax-only", "-"]
    return subprocess.run(command, input="", text=True, capture_output=True, check=False).returncode == 0


def library(name: str, text: str, flags: tuple[str, ...], mode: int = ctypes.DEFAULT_MODE) -> ctypes.CDLL:
    """The shared library of `built_library`, loaded."""
    return ctypes.CDLL(str(built_library(name, text, flags)), mode)


def built_library(name: str, text: str, flags: tuple[str, ...], link_flags: tuple[str, ...] = ()) -> Path:
    """The shared library compiled from C++ `text`, from the cache where it is there and whole.

    `name` is for people who look into the folder. `text` may include any file of kernels/host. KernelError when the
    compiler refuses it, with the compiler's own words; ExecutorUnavailable when there is no compiler.
    """
    built = compiler()
    if built is None:
        raise ExecutorUnavailable(why_not())
    headers = {path.name: path.read_bytes() for path in sorted((source.kernels_folder() / "host").iterdir())}
    went_in = repr((text, headers, flags, link_flags, built, cpu()))
    stem = f"{name}-{_digest(went_in.encode())}"
    folder = cache_folder()
    for path in folder.glob(f"{stem}-*.so"):
        if path.name == f"{stem}-{_digest(path.read_bytes())}.so":
            return path
        path.unlink(missing_ok=True)  # truncated or altered
    with tempfile.TemporaryDirectory(dir=folder) as work:
        cpp, compiled, linked = (Path(work) / f"kernel.{ending}" for ending in ("cpp", "o", "so"))
        cpp.write_text(text, encoding="utf-8")
        include = f"-I{source.kernels_folder() / 'host'}"
        common = (built.path, "-std=c++17", "-fPIC", "-pthread", "-w")
        _run(*common, *flags, include, "-c", str(cpp), "-o", str(compiled))
        _run(*common, "-shared", *link_flags, str(compiled), "-o", str(linked))
        path = folder / f"{stem}-{_digest(linked.read_bytes())}.so"
        os.replace(linked, path)  # in one step: nobody ever sees half a file
    return path


def _run(*command: str) -> None:
    english = {**os.environ, "LC_ALL": "C"}
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=english)
    if answer.returncode:
        raise KernelError(answer.stderr.strip() or f"{command[0]} failed with status {answer.returncode}")


@cache
def cache_folder() -> Path:
    """The folder for compiled kernels; a temporary one, for this process, where the user's cannot be written."""
    named = os.environ.get(CACHE_VARIABLE)
    folder = Path(named) if named else user_cache_path("paged_core")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="paged_core-"))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:20]
