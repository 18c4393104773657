"""Rotary position embeddings: how fast each pair of dimensions turns, in the variants that checkpoints ask for.

Dimensions i and i + head_dim/2 of a query or key at position p are turned by the angle p / period[i]. What differs
between models is the periods alone (and, in YaRN, one factor for all), so they are worked out once, at loading.
Sources: Su et al., RoFormer, 2021; Llama 3's rule, Meta, 2024; YaRN, Peng et al., 2023; and for what a
missing number means, transformers' modeling_rope_utils.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paged_core.errors import CheckpointError


class Rotation(NamedTuple):
    """How positions turn queries and keys."""

    periods: NDArray[np.float32]  # [head_dim / 2], in tokens per radian
    scale: float = 1.0  # of queries and keys alike
    is_plain: bool = False  # the periods follow from theta alone


def rotation(head_dim: int, theta: float, scaling: Mapping[str, Any], max_positions: int) -> Rotation:
    """The rotation that config.json's rope_theta and rope_scaling describe. CheckpointError for another variant."""
    with np.errstate(all="ignore"):  # what makes no sense is refused by what comes of it
        turn = _rotation(head_dim, theta, scaling, max_positions)
    if not (np.isfinite(turn.periods).all() and (turn.periods > 0).all()):
        raise CheckpointError(f"rope_theta {theta}, rope_scaling {dict(scaling)}: not every period is above zero")
    return turn


def _rotation(head_dim: int, theta: float, scaling: Mapping[str, Any], max_positions: int) -> Rotation:
    periods = theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))
    variant = scaling.get("rope_type") or scaling.get("type") or "default"
    try:
        match variant:
            case "default":
                return Rotation(periods, is_plain=True)
            case "linear":
                return Rotation(periods * np.float32(scaling["factor"]))
            case "llama3":
                return Rotation(_llama3(periods, scaling))
            case "yarn":
                return _yarn(periods, theta, scaling, max_positions)
    except KeyError as error:
        raise CheckpointError(f"rope_scaling: {variant} expects {error.args[0]!r}, got {dict(scaling)}") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"rope_scaling: {variant} cannot be worked out from {dict(scaling)}: {error}") from None
    raise CheckpointError(f"rope_scaling: expected default, linear, llama3 or yarn, got {variant!r}")


def _llama3(periods: NDArray[np.float32], scaling: Mapping[str, Any]) -> NDArray[np.float32]:
    """What turns slowly is slowed down by `factor`, what turns fast stays, and in between it is blended."""
    factor, low, high = (scaling[name] for name in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = scaling["original_max_position_embeddings"] / (2 * math.pi * periods)  # over the context first trained on
    share_kept = np.clip((turns - low) / (high - low), 0, 1)
    return (periods / ((1 - share_kept) / factor + share_kept)).astype(np.float32)


def _yarn(periods: NDArray[np.float32], theta: float, scaling: Mapping[str, Any], max_positions: int) -> Rotation:
    """NTK by parts: as Llama 3's, with a blend that is linear in the dimension; and logits made sharper."""
    factor, head_dim = scaling["factor"], 2 * len(periods)
    original = scaling.get("original_max_position_embeddings") or max_positions

    def dimension(turns: float) -> float:
        """Which pair of dimensions turns so often over the context first trained on."""
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    share_slowed = np.clip((np.arange(len(periods)) - first) / max(last - first, 0.001), 0, 1)
    slowed = periods / (share_slowed / factor + (1 - share_slowed))

    def sharpness(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    scale, mscale, all_dim = (scaling.get(name) for name in ("attention_factor", "mscale", "mscale_all_dim"))
    if scale is None:  # one of the two alone counts for nothing
        scale = sharpness(mscale) / sharpness(all_dim) if mscale and all_dim else sharpness(1)
    return Rotation(slowed.astype(np.float32), scale)
