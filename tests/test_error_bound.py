"""The derived bound holds where the derivation is put under most strain, and stays tight enough to be of use."""

import numpy as np
import pytest

from paged_core import attention_error_bound, dense_attention

U = 2.0**-24
FLOAT32 = np.float32


def online_softmax_float32(q, k, v, exp):
    """One head, one query, every step rounded to float32, keys first to last: q [D], k and v [L, D] -> [D]."""
    scale = FLOAT32(q.size**-0.5)
    top, total, acc = FLOAT32(-np.inf), FLOAT32(0), np.zeros_like(q)
    for k_i, v_i in zip(k, v, strict=True):
        s = FLOAT32(0)
        for q_d, k_d in zip(q, k_i, strict=True):
            s += q_d * k_d
        s *= scale
        new_top = max(top, s)
        rescale, w = exp(top - new_top), exp(s - new_top)
        total = total * rescale + w
        acc = acc * rescale + w * v_i
        top = new_top
    return acc / total


def exp_always_too_large(x):
    """An exponential that errs as far as the derivation allows, and always the same way."""
    return FLOAT32(np.exp(np.float64(x)) * (1 + 3.4 * U))  # rounding adds the rest of the 4 u


@pytest.mark.parametrize("exp", [lambda x: np.exp(x, dtype=FLOAT32), exp_always_too_large])
@pytest.mark.parametrize("slope", [1e-6, 1e-3, 0.05])
def test_a_maximum_that_moves_at_every_key_stays_within_the_bound(exp, slope):
    length, head_dim = 600, 8
    q = np.ones(head_dim, FLOAT32)
    k = np.outer(slope * np.arange(1, length + 1), np.ones(head_dim)).astype(FLOAT32)  # each logit tops the last
    v = np.where(np.arange(length)[:, None] < length // 2, 1, -1) * np.ones((1, head_dim), FLOAT32)
    dense = (x[:, None].astype(FLOAT32) for x in (q[None], k, v))
    q64, k64, v64 = dense
    output = online_softmax_float32(q, k, v.astype(FLOAT32), exp)
    error = np.abs(output - dense_attention(q64, k64, v64)[0, 0])
    assert (error <= attention_error_bound(q64, k64, v64, dtype="float32")[0, 0]).all()


def test_a_weight_below_the_smallest_normal_may_be_flushed_to_zero():
    # Logits 0 and -88: the second key's weight is exp(-88) = 6e-39, under 2^-126 = 1.2e-38. Only it carries a value.
    q = np.full((1, 1, 16), 1.0)
    k = np.stack([np.zeros((1, 16)), np.full((1, 16), -22.0)])
    v = np.stack([np.zeros((1, 16)), np.ones((1, 16))])
    expected = dense_attention(q, k, v)
    assert (0 < expected).all() and (expected < 2.0**-126).all()
    assert (expected <= attention_error_bound(q, k, v, dtype="float32")).all()  # so an output of 0 is allowed


@pytest.mark.parametrize("length", [1, 16, 256, 1024])
def test_the_bound_grows_like_eight_roundings_a_key_and_no_faster(length):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((n, 1, 64)).astype(FLOAT32) for n in (1, length, length))
    spread = dense_attention(q, k, np.abs(v))  # sum_i p_i |v_i|
    bound = attention_error_bound(q, k, v, dtype="float32")
    assert (bound >= 4 * length * U * spread).all()
    # 2 gamma(64 + 4) of logits whose terms add up to about 6 make the constant
    assert (bound <= (8 * length + 1500) * U * spread).all()


@pytest.mark.parametrize(("dtype", "u"), [("float16", 2.0**-11), ("bfloat16", 2.0**-8)])
def test_storing_in_half_precision_adds_its_own_rounding(dtype, u):
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((n, 2, 64)) for n in (1, 5, 5))
    added = attention_error_bound(q, k, v, dtype=dtype) - attention_error_bound(q, k, v, dtype="float32")
    output = np.abs(dense_attention(q, k, v))
    assert (added >= 0.99 * (u - U) * output).all()
    assert (added <= 1.01 * u * output + 1e-7).all()
