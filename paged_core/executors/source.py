"""The kernels' source: what kernels/*.metal say, cut into the parts that executors put together."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

FILES = ("layouts.metal", "attention.metal")
_MARK = re.compile(r"^//// kernel (\w+)\n", re.MULTILINE)


class Part(NamedTuple):
    """A stretch of a file: where it begins, and its text."""

    file: str
    line: int
    text: str


class KernelSource(NamedTuple):
    """Metal source: what all kernels share, and the body of each kernel by name."""

    shared: tuple[Part, ...]
    bodies: dict[str, Part]

    @property
    def header(self) -> str:
        """What all kernels share, as one text."""
        return "\n".join(part.text for part in self.shared)

    @property
    def digest(self) -> str:
        """Tells this text from any other. MLX remembers compiled kernels by their names."""
        texts = (self.header, *(part.text for part in self.bodies.values()))
        return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8]


def kernels_folder() -> Path:
    """Where the .metal files are: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    return next(folder for folder in (package / "_kernels", package.parent / "kernels") if folder.is_dir())


def files() -> dict[str, str]:
    """The text of each of the kernels' files, by name: read it, change a copy, and give that to `edited.run_edited`."""
    return {name: (kernels_folder() / name).read_text(encoding="utf-8") for name in FILES}


def parse(texts: Mapping[str, str]) -> KernelSource:
    """Cut Metal texts, by file name, at their `//// kernel NAME` lines. ValueError when a kernel stands there twice."""
    shared: list[Part] = []
    bodies: dict[str, Part] = {}
    for file, text in texts.items():
        before, *rest = _MARK.split(text)
        shared.append(Part(file, 1, before))
        line = 1 + before.count("\n")
        for name, body in zip(rest[::2], rest[1::2], strict=True):
            if name in bodies:
                raise ValueError(f"{file}: line {line}: kernel {name} stands there twice")
            bodies[name] = Part(file, line + 1, body)
            line += 1 + body.count("\n")
    return KernelSource(tuple(shared), bodies)


@cache
def kernel_source() -> KernelSource:
    """The package's own kernels."""
    return parse(files())
