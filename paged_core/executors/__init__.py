"""The executors: each turns an AttentionCall into an array. This file knows their names, order and how to choose one.

An executor is a module with two functions:
    why_not() -> str | None      None when it can run on this machine, else the reason, as a sentence
    run(call) -> mx.array        the attention of `call`
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib import import_module
from types import ModuleType

from paged_core.errors import ExecutorUnavailable

NAMES = ("metal", "cuda", "native", "ops", "simulator")  # best first; the simulator is for looking, not for speed
AUTO = NAMES[:-1]
VARIABLE = "PAGED_CORE_EXECUTOR"


def available_executors() -> list[str]:
    """The executors that can run on this machine, best first."""
    return [name for name in NAMES if why_not(name) is None]


def why_not(name: str) -> str | None:
    """Why the executor `name` cannot run here, as a sentence; None when it can."""
    return _module(name).why_not()


def choose(name: str = "auto") -> ModuleType:
    """The executor called `name`. "auto" is $PAGED_CORE_EXECUTOR where that is set, else the first of metal, cuda,
    native and ops that can run. ValueError for a name that does not exist, ExecutorUnavailable for one that cannot run.
    """
    source = "executor"
    if name == "auto":
        name, source = os.environ.get(VARIABLE) or "auto", VARIABLE
    if name == "auto":
        name = _best()
    elif name not in NAMES:
        raise ValueError(f'{source}: expected "auto" or one of {", ".join(NAMES)}, got {name!r}')
    module = _module(name)
    if reason := module.why_not():
        raise ExecutorUnavailable(f"{source}: {name} cannot run here: {reason}")
    return module


@cache
def _best() -> str:
    best = next(name for name in AUTO if why_not(name) is None)
    if best == "ops":
        reasons = "; ".join(f"{name}: {why_not(name)}" for name in AUTO if name != "ops")
        warnings.warn(f"paged_attention runs in plain MLX operations, correct but slow ({reasons})", stacklevel=4)
    return best


@cache
def _module(name: str) -> ModuleType:
    return import_module(f"paged_core.executors.{name}")
