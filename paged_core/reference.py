"""Dense attention in float64 NumPy: the oracle, and how far from it a float32 kernel may lie. No MLX, no pages."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paged_core.scalars import finite, positive

Float64 = NDArray[np.float64]

UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
SMALLEST_SUBNORMAL = {"float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}
SMALLEST_NORMAL_FLOAT32 = 2.0**-126


def dense_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    scale: float | None = None,
    causal: bool = True,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
) -> Float64:
    """Attention of one sequence, every step as the textbook has it.

    q [Lq, Hq, D], k and v [Lk, Hkv, D], any real dtype; returns float64 [Lq, Hq, D]. The queries sit at the end of the
    context: query i has position Lk - Lq + i. The options mean what they mean in `paged_attention`. A query that sees
    no key gives zeros. Keys and values that a query does not see are never touched, so NaN in them does not reach it.

    ValueError for shapes and options that do not fit. Source: Vaswani et al. 2017; GQA: Ainslie et al. 2023.
    """
    return _attend(q, k, v, scale, causal, sliding_window, softcap, sinks, alibi_slopes)[0]


def attention_error_bound(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    dtype: str,
    scale: float | None = None,
    causal: bool = True,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
) -> Float64:
    """How far a kernel that accumulates in float32 and stores `dtype` may lie from `dense_attention`, by element.

    Takes the *stored* (already rounded) inputs of `dense_attention`; returns float64 [Lq, Hq, D]. `dtype` is "float32",
    "float16" or "bfloat16". Derived, not tuned; u = 2^-24, gamma(n) = n u / (1 - n u) (Higham 2002, 3.1), L keys:

    1. a logit is a dot product of D terms, scaled, and perhaps capped and biased:
         |ds_i| <= gamma(D + 4) * scale * sum_d |q_d k_d|  +  8 u * (softcap + |alibi bias|)
       (tanh's slope is at most 1, so a cap never enlarges an error it is given).
    2. a weight is exp(s_i - max): rounding the difference adds u |s_i - max|, the exponential itself at most 4 u (two
       units in its last place). An online softmax multiplies all earlier weights with one more exponential, 4 u again,
       each time its maximum moves: at most L times. A factor common to all keys cancels in the ratio below, so it is
       the half of those that counts, either way:
         |dw_i| / w_i <= e_i = |ds_i| + u |s_i - max| + 4 u + 2 L u.
       An error in the maximum itself scales every weight alike, and cancels too.
    3. the output is a ratio of two sums over L keys, in any order, with rescaling on the way (one product and one sum a
       key), each of them off by the weights' own errors:
         |do| <= (sum_i p_i e_i |v_i|  +  |o| sum_i p_i e_i)  +  2 gamma(2 L + 8) sum_i p_i |v_i|.
    4. what is below 2^-126, the smallest normal float32, may be flushed to zero: a weight, and for each key two
       products and a sum: 2^-126 sum_i (|v_i| + 3).
    5. rounding to `dtype` adds u_dtype |o|, and half a spacing where numbers are subnormal.

    A first-order bound; the factor exp(2 max_i e_i) in front covers the higher orders.
    """
    if dtype not in UNIT_ROUNDOFF:
        raise ValueError(f"dtype: expected one of {', '.join(UNIT_ROUNDOFF)}, got {dtype!r}")
    output, terms = _attend(q, k, v, scale, causal, sliding_window, softcap, sinks, alibi_slopes, with_terms=True)
    accumulated = terms.weighted + np.abs(output) * terms.weights + terms.summed
    bound = np.exp(2 * terms.worst) * accumulated
    return bound + UNIT_ROUNDOFF[dtype] * (np.abs(output) + bound) + SMALLEST_SUBNORMAL[dtype]


class _Terms(NamedTuple):
    """What the bound is made of, for every query and head: [Lq, Hq, D], or [Lq, Hq, 1] where dims do not differ."""

    weighted: Float64  # sum_i p_i e_i |v_i|
    weights: Float64  # sum_i p_i e_i
    summed: Float64  # 2 gamma(2 L + 8) sum_i p_i |v_i|  +  2^-126 sum_i (|v_i| + 3)
    worst: Float64  # max_i e_i


def _attend(q, k, v, scale, causal, sliding_window, softcap, sinks, alibi_slopes, with_terms=False):
    """The output, and the terms of the bound where asked for. Query by query: each sees one contiguous run of keys."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    _check_shapes(q, k, v, causal)
    _check_features(q.shape[1], sliding_window, softcap, sinks, alibi_slopes)
    (num_queries, num_q_heads, head_dim), (num_keys, num_kv_heads, _) = q.shape, k.shape
    scale = head_dim**-0.5 if scale is None else scale
    slopes = None if alibi_slopes is None else np.asarray(alibi_slopes, np.float64).reshape(num_kv_heads, -1, 1)
    sinks = None if sinks is None else np.asarray(sinks, np.float64).reshape(num_kv_heads, -1, 1)
    u = UNIT_ROUNDOFF["float32"]

    output = np.zeros((num_queries, num_kv_heads, num_q_heads // num_kv_heads, head_dim))
    per_dim, per_head = output.shape, (*output.shape[:-1], 1)
    terms = _Terms(*(np.zeros(shape) for shape in (per_dim, per_head, per_dim, per_head)))
    for i in range(num_queries):
        position = num_keys - num_queries + i
        stop = position + 1 if causal else num_keys
        start = 0 if sliding_window is None else max(0, position - sliding_window + 1)
        if start >= stop:
            continue
        q_i = q[i].reshape(num_kv_heads, -1, head_dim)  # [kv head, query head of its group, D]
        k_seen, v_seen = k[start:stop], v[start:stop]  # [seen, kv head, D]
        s = scale * np.einsum("hgd,khd->hgk", q_i, k_seen)
        bias = np.zeros(stop - start) if slopes is None else slopes * (position - np.arange(start, stop))
        if softcap is not None:
            s = softcap * np.tanh(s / softcap)
        s = s - bias
        if sinks is not None:  # one more logit, whose value is zero
            s = np.concatenate([s, sinks], axis=-1)
        s_max = s.max(axis=-1, keepdims=True)
        w = np.exp(s - s_max)
        p = w / w.sum(axis=-1, keepdims=True)
        num_seen = stop - start
        output[i] = np.einsum("hgk,khd->hgd", p[..., :num_seen], v_seen)
        if not with_terms:
            continue
        products = np.einsum("hgd,khd->hgk", np.abs(q_i), np.abs(k_seen))
        ds = _gamma(head_dim + 4, u) * abs(scale) * products + 8 * u * ((softcap or 0.0) + np.abs(bias))
        if sinks is not None:
            ds = np.concatenate([ds, np.zeros_like(sinks)], axis=-1)
        below_max = np.where(p > 0, s_max - s, 0)  # a weight of zero, such as that of a sink of -inf, is exact
        e = ds + u * below_max + (4 + 2 * num_seen) * u
        terms.weighted[i] = np.einsum("hgk,khd->hgd", (p * e)[..., :num_seen], np.abs(v_seen))
        terms.weights[i] = (p * e).sum(axis=-1, keepdims=True)
        spread = np.einsum("hgk,khd->hgd", p[..., :num_seen], np.abs(v_seen))
        flushed = SMALLEST_NORMAL_FLOAT32 * (np.abs(v_seen).sum(axis=0) + 3 * num_seen)  # [kv head, D]
        terms.summed[i] = 2 * _gamma(2 * num_seen + 8, u) * spread + flushed[:, None]
        terms.worst[i] = e.max(axis=-1, keepdims=True)
    terms = _Terms(*(term.reshape(num_queries, num_q_heads, term.shape[-1]) for term in terms))
    return output.reshape(q.shape), terms


def _gamma(n: int, u: float) -> float:
    """The relative error that n roundings in a row can add up to."""
    return n * u / (1 - n * u)


def _check_shapes(q: Float64, k: Float64, v: Float64, causal: bool) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 3:
            raise ValueError(f"{name}: expected [tokens, heads, head_dim], got shape {x.shape}")
    if k.shape != v.shape or k.shape[2] != q.shape[2]:
        raise ValueError(f"k, v: expected equal shapes [Lk, Hkv, {q.shape[2]}], got {k.shape} and {v.shape}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"q: expected heads in a multiple of the {k.shape[1]} of k and v, got {q.shape[1]}")
    if causal and 0 < k.shape[0] < q.shape[0]:
        raise ValueError(f"q: expected at most the {k.shape[0]} tokens of its context, got {q.shape[0]}")


def _check_features(num_q_heads: int, sliding_window, softcap, sinks, alibi_slopes) -> None:
    if sliding_window is not None:
        positive("sliding_window", sliding_window)
    if softcap is not None and finite("softcap", softcap) <= 0:
        raise ValueError(f"softcap: expected a positive number, got {softcap}")
    for name, x in (("sinks", sinks), ("alibi_slopes", alibi_slopes)):
        if x is not None and np.shape(x) != (num_q_heads,):
            raise ValueError(f"{name}: expected shape [{num_q_heads}], got {list(np.shape(x))}")
