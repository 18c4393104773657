"""The oracle by hand and by a program with nothing in common with it; its bound by emulation and by sabotage."""

import itertools
import math

import numpy as np
import pytest

from paged_core import attention_error_bound, dense_attention

LN2, LN3 = math.log(2), math.log(3)
DTYPES = ("float32", "float16", "bfloat16")


def column(*values):
    """One head, one dim: [tokens, 1, 1]."""
    return np.array(values, float).reshape(-1, 1, 1)


def attend(q, k, v, **options):
    """With one head and one dim, as plain numbers."""
    return dense_attention(column(*q), column(*k), column(*v), **{"scale": 1.0, **options}).ravel().tolist()


# By hand. Logits of 0 and ln 3 are weights of 1/4 and 3/4, so values 0 and 8 give 6.


def test_two_keys():
    assert attend([1], [0, LN3], [0, 8]) == pytest.approx([6])


def test_one_key_gives_its_value():
    assert attend([5], [-7], [3]) == [3]


def test_a_query_of_zero_takes_the_mean():
    assert attend([0], [1, 2, 3, 4], [1, 2, 3, 6]) == pytest.approx([3])


def test_the_default_scale_is_one_over_the_root_of_the_head_dim():
    q, k, v = np.zeros((1, 1, 4)), np.zeros((2, 1, 4)), np.zeros((2, 1, 4))
    q[0, 0, 0], k[1, 0, 0], v[1] = 2, LN3, 8  # q.k = 2 ln 3, over sqrt(4)
    assert dense_attention(q, k, v).ravel() == pytest.approx([6] * 4)


def test_queries_sit_at_the_end_and_see_causally():
    # Three keys, two queries: positions 1 and 2. A query of zero takes the mean of what it sees.
    assert attend([0, 0], [0, 0, 0], [3, 5, 10]) == pytest.approx([4, 6])
    assert attend([0, 0], [0, 0, 0], [3, 5, 10], causal=False) == pytest.approx([6, 6])


def test_a_window_of_two():
    assert attend([0, 0, 0, 0], [0] * 4, [1, 3, 7, 9], sliding_window=2) == pytest.approx([1, 2, 5, 8])
    assert attend([0, 0], [0] * 4, [1, 3, 7, 9], sliding_window=1) == [7, 9]
    assert attend([0], [0] * 4, [1, 3, 7, 9], sliding_window=4) == attend([0], [0] * 4, [1, 3, 7, 9])


def test_a_softcap_of_two():
    uncapped = 2 * math.atanh(LN3 / 2)  # 2 tanh(uncapped / 2) = ln 3
    assert attend([1], [0, uncapped], [0, 8], softcap=2.0) == pytest.approx([6])
    assert attend([1], [-1e6, 1e6], [0, 8], softcap=LN3 / 2) == pytest.approx([6])  # saturated: -ln 3 / 2 and ln 3 / 2


def test_alibi_takes_slope_times_distance():
    # Distances 1 and 0; the newer key is favoured.
    assert attend([0], [0, 0], [0, 8], alibi_slopes=[LN3]) == pytest.approx([6])
    # After the cap, not before it: the logits are capped to about -0.01 and 0.01, and then biased by ln 3.
    assert attend([1], [-1e6, 1e6], [0, 8], alibi_slopes=[LN3 - 0.02], softcap=0.01) == pytest.approx([6])


def test_a_sink_takes_its_share_and_gives_nothing():
    # Two keys of logit 0 and a sink of ln 2: weights 1/4, 1/4, 2/4.
    assert attend([0], [0, 0], [0, 8], sinks=[LN2]) == pytest.approx([2])
    assert attend([0], [0, 0], [0, 8], sinks=[-np.inf]) == pytest.approx([4])
    assert attend([0], [0, 0], [0, 8], sinks=[1e9]) == [0]


def test_query_heads_share_the_kv_head_of_their_group():
    v = np.array([[[10.0], [20.0]]])  # one key, KV heads 0 and 1
    output = dense_attention(np.zeros((1, 6, 1)), np.zeros((1, 2, 1)), v)
    assert output.ravel().tolist() == [10, 10, 10, 20, 20, 20]


def test_an_empty_context_gives_zeros():
    nothing = np.zeros((0, 1, 2))
    assert dense_attention(np.ones((3, 2, 2)), nothing, nothing).tolist() == np.zeros((3, 2, 2)).tolist()
    assert dense_attention(np.ones((3, 2, 2)), nothing, nothing, sinks=[1, 2]).tolist() == np.zeros((3, 2, 2)).tolist()


def test_no_queries():
    nothing, k = np.zeros((0, 2, 8)), np.ones((5, 1, 8))
    assert dense_attention(nothing, k, k).shape == (0, 2, 8)
    assert attention_error_bound(nothing, k, k, dtype="float32").shape == (0, 2, 8)


def test_what_a_query_does_not_see_may_be_nan():
    q, k = np.ones((2, 1, 4)), np.ones((5, 1, 4))
    v = k.copy()
    for x in (k, v):
        x[:2] = np.nan  # slid out of both windows
        x[4] = np.nan  # the first query's future
    output = dense_attention(q, k, v, sliding_window=2)
    assert output[0].ravel().tolist() == [1] * 4
    assert np.isnan(output[1]).all()
    assert np.isfinite(attention_error_bound(q, k, v, sliding_window=2, dtype="float32")[0]).all()


def test_float64_whatever_comes():
    x = np.ones((1, 1, 8))
    for dtype in (np.float16, np.float32, np.float64, np.int32):
        assert dense_attention(x.astype(dtype), x.astype(dtype), x.astype(dtype)).dtype == np.float64
    assert dense_attention(x.tolist(), x.tolist(), x.tolist()).dtype == np.float64


# By a program: every sum a loop, every number a Python float.


def naive_attention(q, k, v, scale=None, causal=True, sliding_window=None, softcap=None, sinks=None, alibi_slopes=None):
    (num_queries, num_q_heads, head_dim), (num_keys, num_kv_heads, _) = q.shape, k.shape
    output = np.zeros(q.shape)
    for i, head in itertools.product(range(num_queries), range(num_q_heads)):
        kv_head = head // (num_q_heads // num_kv_heads)
        q_pos = num_keys - num_queries + i
        weights = {}
        for k_pos in range(num_keys):
            if causal and k_pos > q_pos:
                continue
            if sliding_window is not None and k_pos <= q_pos - sliding_window:
                continue
            s = math.fsum(float(q[i, head, d]) * float(k[k_pos, kv_head, d]) for d in range(head_dim))
            s *= 1 / math.sqrt(head_dim) if scale is None else scale
            if softcap is not None:
                s = softcap * math.tanh(s / softcap)
            if alibi_slopes is not None:
                s -= float(alibi_slopes[head]) * (q_pos - k_pos)
            weights[k_pos] = math.exp(s)
        total = math.fsum(weights.values()) + (0.0 if sinks is None else math.exp(float(sinks[head])))
        for d in range(head_dim):
            output[i, head, d] = math.fsum(w * float(v[k_pos, kv_head, d]) for k_pos, w in weights.items()) / total
    return output


def random_case(num_queries, num_keys, num_q_heads=4, num_kv_heads=2, head_dim=8, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (num_queries, num_q_heads), (num_keys, num_kv_heads), (num_keys, num_kv_heads)
    return [rng.standard_normal((*shape, head_dim)).astype(np.float32) for shape in shapes]


OPTIONS = {
    "scale": 0.7,
    "sliding_window": 3,
    "softcap": 1.5,
    "sinks": np.array([0.3, -1.0, 2.0, 0.0]),
    "alibi_slopes": np.array([0.5, 0.25, 0.125, 0.0625]),
}
SUBSETS = [subset for n in range(len(OPTIONS) + 1) for subset in itertools.combinations(OPTIONS, n)]


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_every_combination_of_options_agrees_with_a_plain_loop(names):
    options = {name: OPTIONS[name] for name in names}
    for num_queries, num_keys in ((1, 7), (5, 5), (3, 9), (1, 1)):
        q, k, v = random_case(num_queries, num_keys)
        for causal in (True, False):
            np.testing.assert_allclose(
                dense_attention(q, k, v, causal=causal, **options),
                naive_attention(q, k, v, causal=causal, **options),
                rtol=0, atol=1e-14,
            )  # fmt: skip


@pytest.mark.parametrize("num_q_heads, num_kv_heads", [(1, 1), (6, 6), (6, 3), (6, 2), (6, 1)])
def test_head_counts_agree_with_a_plain_loop(num_q_heads, num_kv_heads):
    q, k, v = random_case(2, 6, num_q_heads, num_kv_heads)
    np.testing.assert_allclose(dense_attention(q, k, v), naive_attention(q, k, v), rtol=0, atol=1e-14)


# The bound: honest float32 arithmetic lies inside, mistakes lie outside.


def float32_attention(q, k, v, tile, sliding_window=None, softcap=None, sinks=None, alibi_slopes=None):
    """An online softmax over tiles of keys, every intermediate number rounded to float32."""
    f32 = np.float32
    (num_queries, num_q_heads, head_dim), (num_keys, num_kv_heads, _) = q.shape, k.shape
    output = np.zeros(q.shape, f32)
    for i, head in itertools.product(range(num_queries), range(num_q_heads)):
        kv_head = head // (num_q_heads // num_kv_heads)
        q_pos = num_keys - num_queries + i
        first = 0 if sliding_window is None else max(0, q_pos - sliding_window + 1)
        top, total = (f32(-np.inf), f32(0)) if sinks is None else (f32(sinks[head]), f32(1))
        acc = np.zeros(head_dim, f32)
        for start in range(first, q_pos + 1, tile):
            keys = np.arange(start, min(start + tile, q_pos + 1))
            s = np.zeros(len(keys), f32)
            for d in range(head_dim):  # one product and one sum at a time
                s = s + q[i, head, d].astype(f32) * k[keys, kv_head, d].astype(f32)
            s = s * f32(head_dim**-0.5)
            if softcap is not None:
                s = f32(softcap) * np.tanh(s / f32(softcap))
            if alibi_slopes is not None:
                s = s - f32(alibi_slopes[head]) * (q_pos - keys).astype(f32)
            new_top = max(top, s.max())
            rescale, w = np.exp(top - new_top), np.exp(s - new_top)
            total, acc, top = total * rescale, acc * rescale, new_top
            for w_i, v_i in zip(w, v[keys, kv_head].astype(f32), strict=True):
                total = total + w_i
                acc = acc + w_i * v_i
        assert acc.dtype == total.dtype == f32
        output[i, head] = acc / total
    return output


def stored(x, dtype):
    """`x` rounded to `dtype`, as float32. bfloat16, which NumPy lacks, is the upper half of a float32."""
    if dtype != "bfloat16":
        return x.astype(dtype).astype(np.float32)
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


FEATURES = {
    "plain": {},
    "window": {"sliding_window": 9},
    "softcap": {"softcap": 2.0},
    "alibi": {"alibi_slopes": np.array([0.5, 0.25, 0.125, 0.0625], np.float32)},
    "sinks": {"sinks": np.array([0.3, -1.0, 2.0, 0.0], np.float32)},
}


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_keys, head_dim", [(1, 64), (40, 8), (40, 256), (300, 64)])
def test_float32_arithmetic_lies_within_the_bound(feature, dtype, num_keys, head_dim):
    q, k, v = (stored(x, dtype) for x in random_case(1, num_keys, head_dim=head_dim))
    options = FEATURES[feature]
    expected = dense_attention(q, k, v, **options)
    bound = attention_error_bound(q, k, v, dtype=dtype, **options)
    for tile in (1, 32):
        output = stored(float32_attention(q, k, v, tile, **options), dtype)
        assert (np.abs(output - expected) <= bound).all()


def two_keys_apart(delta):
    """The output for values of 1 and -1 whose logits differ by `delta`."""
    return np.tanh(delta / 2)


def test_long_dot_products_of_large_numbers_lie_within_the_bound():
    """Logits of some 500, each off by many roundings: what a head_dim of 512 costs when nothing cancels."""
    v = np.stack([np.ones((1, 512)), -np.ones((1, 512))])
    for seed in range(20):
        rng = np.random.default_rng(seed)
        q, k = (rng.uniform(0.5, 1.5, (n, 1, 512)).astype(np.float32) for n in (1, 2))
        s = np.zeros(2, np.float32)
        for d in range(512):
            s = s + q[0, 0, d] * k[:, 0, d]
        error = np.abs(two_keys_apart(float(s[0]) - float(s[1])) - dense_attention(q, k, v, scale=1.0))
        assert (error <= attention_error_bound(q, k, v, scale=1.0, dtype="float32")).all()


def test_a_tanh_made_of_exponentials_lies_within_the_bound():
    """(1 - e) / (1 + e) loses digits near zero, where a large cap has its logits: an error of some u * softcap."""
    f32, cap = np.float32, np.float32(1000)
    v = np.stack([np.ones((1, 8)), -np.ones((1, 8))])
    for logits in np.random.default_rng(0).uniform(-1, 1, (20, 2)).astype(f32):
        q, k = np.eye(1, 8, dtype=f32)[None], np.zeros((2, 1, 8), f32)
        k[:, 0, 0] = logits
        e = np.exp(-2 * (logits / cap))
        capped = cap * ((f32(1) - e) / (f32(1) + e))
        error = np.abs(
            two_keys_apart(float(capped[0]) - float(capped[1])) - dense_attention(q, k, v, scale=1.0, softcap=cap)
        )
        assert (error <= attention_error_bound(q, k, v, scale=1.0, softcap=cap, dtype="float32")).all()


def with_rows(x, rows, new):
    changed = x.copy()
    changed[rows] = new
    return changed


SINKS, SLOPES = np.array([0.3, -1.0, 2.0, 0.0]), np.array([0.5, 0.25, 0.125, 0.0625])
MISTAKES = {  # name: (options that are right, what a wrong kernel would compute instead)
    "one wrong block": ({}, lambda q, k, v, other: dense_attention(
        q, with_rows(k, slice(0, 16), other[:16]), with_rows(v, slice(0, 16), other[16:32]))),
    "one key too few": ({}, lambda q, k, v, other: dense_attention(q, k[1:], v[1:])),
    "one key too many": ({}, lambda q, k, v, other: dense_attention(
        q, np.concatenate([k, other[:1]]), np.concatenate([v, other[1:2]]))),
    "the slot past the end, zeros": ({}, lambda q, k, v, other: dense_attention(
        q, np.concatenate([k, 0 * k[:1]]), np.concatenate([v, 0 * v[:1]]))),
    "values one token late": ({}, lambda q, k, v, other: dense_attention(q, k, np.roll(v, 1, axis=0))),
    "blocks in another order, with ALiBi": ({"alibi_slopes": SLOPES}, lambda q, k, v, other: dense_attention(
        q, np.roll(k, 16, axis=0), np.roll(v, 16, axis=0), alibi_slopes=SLOPES)),
    "a window one too wide": ({"sliding_window": 16}, lambda q, k, v, other: dense_attention(
        q, k, v, sliding_window=17)),
    "a window one too narrow": ({"sliding_window": 16}, lambda q, k, v, other: dense_attention(
        q, k, v, sliding_window=15)),
    "no window": ({"sliding_window": 16}, lambda q, k, v, other: dense_attention(q, k, v)),
    "no cap": ({"softcap": 2.0}, lambda q, k, v, other: dense_attention(q, k, v)),
    "no ALiBi": ({"alibi_slopes": SLOPES}, lambda q, k, v, other: dense_attention(q, k, v)),
    "ALiBi before the cap": ({"alibi_slopes": SLOPES, "softcap": 2.0}, lambda q, k, v, other: naive_bias_then_cap(
        q, k, v, SLOPES, 2.0)),
    "slopes of the wrong heads": ({"alibi_slopes": SLOPES}, lambda q, k, v, other: dense_attention(
        q, k, v, alibi_slopes=SLOPES[::-1])),
    "no sinks": ({"sinks": SINKS}, lambda q, k, v, other: dense_attention(q, k, v)),
    "query heads dealt out to KV heads in turn": ({}, lambda q, k, v, other: dense_attention(
        q[:, [0, 2, 1, 3]], k, v)[:, [0, 2, 1, 3]]),
    "no scale": ({}, lambda q, k, v, other: dense_attention(q, k, v, scale=1.0)),
    "a scale a thousandth off": ({}, lambda q, k, v, other: dense_attention(q, k, v, scale=1.001 * 64**-0.5)),
}  # fmt: skip


def naive_bias_then_cap(q, k, v, slopes, cap):
    s = np.einsum("ihd,jhd->ihj", q, np.repeat(k, 2, axis=1)) / math.sqrt(q.shape[2])
    s = s - slopes[None, :, None] * np.arange(len(k))[::-1]
    w = np.exp(cap * np.tanh(s / cap))
    return np.einsum("ihj,jhd->ihd", w / w.sum(-1, keepdims=True), np.repeat(v, 2, axis=1))


SUBTLE = {"the slot past the end, zeros", "no sinks", "a scale a thousandth off"}
HOW_FAR = [  # which mistakes, stored as, at how many keys
    *itertools.product([name for name in MISTAKES if name not in SUBTLE], DTYPES, [32, 200, 1000]),
    # These change each output by about one in as many as there are keys. In half precision that is less than what
    # storing the output rounds away, and no bound can show it; a NaN in the slot past the end does.
    *itertools.product(sorted(SUBTLE), ["float32"], [32, 200]),
]


@pytest.mark.parametrize("mistake, dtype, num_keys", HOW_FAR)
def test_mistakes_lie_outside_the_bound(mistake, dtype, num_keys):
    """Even when the mistaken kernel makes no rounding error at all."""
    q, k, v = (stored(x, dtype).astype(np.float64) for x in random_case(1, num_keys, head_dim=64))
    other = stored(np.random.default_rng(1).standard_normal((32, 2, 64)), dtype).astype(np.float64)
    options, mistaken = MISTAKES[mistake]
    error = np.abs(mistaken(q, k, v, other) - dense_attention(q, k, v, **options))
    bound = attention_error_bound(q, k, v, dtype=dtype, **options)
    assert (error > bound).any()


def test_a_query_that_sees_one_key_of_its_future_lies_outside_the_bound():
    q, k, v = random_case(20, 20, head_dim=64)
    error = np.abs(dense_attention(q[:-1], k, v) - dense_attention(q[:-1], k[:-1], v[:-1]))
    bound = attention_error_bound(q[:-1], k[:-1], v[:-1], dtype="bfloat16")
    assert (error > bound).any(axis=(1, 2)).all()  # every single query shows it


def test_the_bound_stays_finite_with_a_sink_that_weighs_nothing():
    q, k, v = random_case(1, 20)
    without = attention_error_bound(q, k, v, dtype="float32")
    with_sink = attention_error_bound(q, k, v, dtype="float32", sinks=[-np.inf] * 4)
    np.testing.assert_allclose(with_sink, without, rtol=1e-12)


# Refusals


@pytest.mark.parametrize(
    "changed, error, message",
    [
        ({"q": np.ones((2, 8))}, ValueError, r"q: expected \[tokens, heads, head_dim\], got shape \(2, 8\)"),
        ({"v": np.ones((5, 2, 16))}, ValueError, r"k, v: expected equal shapes \[Lk, Hkv, 8\]"),
        ({"q": np.ones((2, 4, 16))}, ValueError, r"k, v: expected equal shapes \[Lk, Hkv, 16\]"),
        ({"q": np.ones((2, 3, 8))}, ValueError, r"q: expected heads in a multiple of the 2 of k and v, got 3"),
        ({"q": np.ones((6, 4, 8))}, ValueError, r"q: expected at most the 5 tokens of its context, got 6"),
        ({"sliding_window": 0}, ValueError, r"sliding_window: expected a positive integer, got 0"),
        ({"sliding_window": 2.5}, TypeError, r"sliding_window: expected a positive integer, got 2.5"),
        ({"softcap": 0.0}, ValueError, r"softcap: expected a positive number, got 0.0"),
        ({"softcap": -3.0}, ValueError, r"softcap: expected a positive number, got -3.0"),
        ({"sinks": np.zeros(2)}, ValueError, r"sinks: expected shape \[4\], got \[2\]"),
        ({"alibi_slopes": np.zeros(8)}, ValueError, r"alibi_slopes: expected shape \[4\], got \[8\]"),
    ],
)
def test_the_oracle_refuses(changed, error, message):
    arguments = {"q": np.ones((2, 4, 8)), "k": np.ones((5, 2, 8)), "v": np.ones((5, 2, 8)), **changed}
    with pytest.raises(error, match=message):
        dense_attention(**arguments)
    with pytest.raises(error, match=message):
        attention_error_bound(**arguments, dtype="float32")


def test_a_dtype_without_a_bound():
    x = np.ones((1, 1, 8))
    with pytest.raises(ValueError, match="dtype: expected one of float32, float16, bfloat16, got 'float8'"):
        attention_error_bound(x, x, x, dtype="float8")
