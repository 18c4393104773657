"""The choice of a token: from what it draws, how often, and on what it depends."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paged_core import Sampling

# softmax of these is 8/15, 4/15, 2/15, 1/15, for tokens 2, 0, 3, 1
LOGITS = np.log(np.array([4, 1, 8, 2], np.float32))


def drawn(sampling, count=3000):
    return Counter(sampling.choose(LOGITS, 0, position) for position in range(count))


def test_temperature_0_takes_the_likeliest_and_of_equals_the_first():
    assert Sampling().choose(LOGITS, 0, 0) == 2
    assert Sampling().choose(np.array([1, 5, 5, 0], np.float32), 3, 9) == 1


def test_it_draws_as_often_as_softmax_says():
    counts = drawn(Sampling(temperature=1.0))
    for token, share in {2: 8 / 15, 0: 4 / 15, 3: 2 / 15, 1: 1 / 15}.items():
        assert abs(counts[token] / 3000 - share) < 4 * (share * (1 - share) / 3000) ** 0.5  # four standard deviations


def test_a_temperature_of_a_half_squares_the_odds():
    counts = drawn(Sampling(temperature=0.5))  # 64, 16, 4, 1 of 85
    assert abs(counts[2] / 3000 - 64 / 85) < 0.032 and abs(counts[0] / 3000 - 16 / 85) < 0.029


@pytest.mark.parametrize(
    "options, tokens",
    [
        ({"top_k": 1}, {2}),
        ({"top_k": 3}, {2, 0, 3}),
        ({"top_k": 99}, {0, 1, 2, 3}),
        ({"top_p": 0.5}, {2}),  # 8/15 is more than half already
        ({"top_p": 0.6}, {2, 0}),  # 8/15 is not 0.6, 12/15 is
        ({"top_p": 0.81}, {2, 0, 3}),
        ({"top_k": 2, "top_p": 0.6}, {2}),  # of the two, 8 in 12
        ({"top_p": 1e-9}, {2}),
        ({"temperature": 1e-310}, {2}),
    ],
)
def test_it_draws_from_those_it_should(options, tokens):
    assert set(drawn(Sampling(**{"temperature": 1.0} | options))) == tokens


def test_a_draw_depends_on_seed_stream_and_position_alone():
    def draws(seed=0, stream=0, first=0):
        return [Sampling(1.0, seed=seed).choose(LOGITS, stream, first + i) for i in range(40)]

    assert draws() == draws()
    assert draws(first=1)[:-1] == draws()[1:]
    assert draws() != draws(seed=1) and draws() != draws(stream=1) and draws(seed=1) != draws(stream=1)
    assert draws(stream=1) != draws(first=1)  # nor is one stream another's, later


def test_of_equals_the_first_are_the_top_k():
    logits = np.tile(np.array([0, 1, 2, 2], np.float32), 500)
    choices = {Sampling(1.0, top_k=5).choose(logits, 0, position) for position in range(100)}
    assert choices == {2, 3, 6, 7, 10}


@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=20),
    st.floats(0.01, 10), st.integers(1, 25), st.floats(0.001, 1), st.integers(0, 9),
)  # fmt: skip
def test_a_token_is_always_one_of_the_top_k(logits, temperature, top_k, top_p, position):
    logits = np.array(logits, np.float32)
    token = Sampling(temperature, top_k, top_p).choose(logits, 0, position)
    assert (logits > logits[token]).sum() < top_k


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"temperature": -0.1}, ValueError, "temperature: expected 0 or more, got -0.1"),
        ({"temperature": float("nan")}, ValueError, "temperature: expected a finite number"),
        ({"temperature": "hot"}, TypeError, "temperature: expected a finite number, got 'hot'"),
        ({"top_k": 0}, ValueError, "top_k: expected a positive integer, got 0"),
        ({"top_p": 0}, ValueError, "top_p: expected more than 0 and at most 1, got 0"),
        ({"top_p": 1.1}, ValueError, "top_p: expected more than 0 and at most 1, got 1.1"),
        ({"seed": -1}, ValueError, "seed: expected an integer of 0 or more, got -1"),
        ({"seed": 2**128}, ValueError, "seed: expected less than 2\\*\\*128, got 3402"),
    ],
)
def test_what_makes_no_sense_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        Sampling(**options)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused(temperature, bad):
    with pytest.raises(ValueError, match=f"logits: expected finite numbers, got {bad} for token 1"):
        Sampling(temperature).choose(np.array([1, bad, 2], np.float32), 0, 0)
