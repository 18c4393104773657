"""Notebook 05: which key a query sees, and how far off a logit may be."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from paged_core.exercises.exercise import Exercise, Trial, attempt, close, same, trial
from paged_core.reference import UNIT_ROUNDOFF, dense_attention
from paged_core.viz.answers import grids, held


def _masks(answer: Any) -> Iterator[Trial]:
    cases = product(range(1, 6), range(1, 9), (None, 1, 2, 3, 20))
    for queries, context, window in sorted(cases, key=lambda case: (case[0] * case[1], case[2] or 0)):
        if queries > context:
            continue
        # The oracle itself: with equal logits, and values that are the rows of an identity, an output is the weights.
        q, k = np.zeros((queries, 1, context)), np.zeros((context, 1, context))
        weights = dense_attention(q, k, np.eye(context)[:, None], sliding_window=window)[:, 0]
        expected = (weights > 0).tolist()
        got = attempt(answer, queries, context, window)
        given = f"queries {queries}, context {context}, window {window}"
        draw = partial(grids, expected, got, given=given, down="query", across="key", look=held, label=_sees)
        yield Trial(given, expected, got, same(expected, got), draw)


def _sees(value: object) -> str:
    return {True: "sees", False: ""}[value] if isinstance(value, bool) else "?"


def _bounds(answer: Any) -> Iterator[Trial]:
    """Bounds on the error of a logit: no smaller than derived, and no more than a thousandth larger."""
    rng, u = np.random.default_rng(5), UNIT_ROUNDOFF["float32"]
    cases = [([1.0], [1.0], 1.0), ([1.0, 1.0], [1.0, -1.0], 1.0), ([3.0, -2.0], [1.0, 2.0], -0.5), ([0.0], [7.0], 1.0)]
    for dim in (2, 3, 8, 64, 128):
        q, k = rng.standard_normal((2, dim)).round(2)
        cases.append((q.tolist(), k.tolist(), float(dim) ** -0.5))
    for q, k, scale in cases:
        n = (len(q) + 4) * u
        expected = float(n / (1 - n) * abs(scale) * np.abs(np.multiply(q, k)).sum())
        got = attempt(answer, np.array(q), np.array(k), scale, u)
        right = close(expected, got, relative=1e-3) and got >= expected * (1 - 1e-12)
        shown = f"{q} and k {k}" if len(q) < 4 else f"and k of {len(q)} dims"
        given = f"q {shown}, scale {scale:.4g}, u 2^-24"
        in_u = f"{got / u:.6g} u" if isinstance(got, float) else got
        yield trial(given, "the bound", f"{expected / u:.6g} u", in_u, lambda *_, right=right: right)


mask = Exercise("who sees whom", _masks, lines=4)
logit_bound = Exercise("a logit's bound", _bounds, lines=3)
