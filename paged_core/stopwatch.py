"""How long things take, on a machine that has other things to do as well."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from time import perf_counter
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


def least_milliseconds(works: Mapping[Name, Callable[[], object]], rounds: int) -> dict[Name, float]:
    """The shortest time of each, taken in turns: a busy moment of the machine meets all of them."""
    least = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, work in works.items():
            start = perf_counter()
            work()
            least[name] = min(least[name], 1e3 * (perf_counter() - start))
    return least
