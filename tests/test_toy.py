"""The toy model tells right K and V from wrong ones."""

import numpy as np
import pytest

from paged_core.toy import TwoLayers

OURS, THEIRS = [3, 1, 4, 1, 5, 9, 2, 6, 5], [2, 7, 1, 8, 5, 9, 2, 6, 5]


@pytest.fixture
def model():
    return TwoLayers(num_blocks=8, block_size=4)


def off(model, tokens, blocks):
    """How far the answer is from the truth, in bounds."""
    truth, bound = model.truth(tokens)
    return (abs(model.answer(tokens, blocks) - truth) / bound).max()


def test_the_answer_is_the_truth_wherever_the_blocks_lie_and_however_they_were_filled(model):
    model.compute(OURS, [6, 0, 3])
    assert off(model, OURS, [6, 0, 3]) <= 1
    model.compute(OURS[:6], [2, 5])
    model.compute(OURS, [2, 5, 1], first=6)
    assert off(model, OURS, [2, 5, 1]) <= 1
    for x, y in zip(model.pool.read_blocks([6, 0]), model.pool.read_blocks([2, 5]), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_block_with_a_prefix_of_its_own_is_right_for_nobody_else(model):
    model.compute(OURS, [0, 1, 2])
    model.compute(THEIRS, [3, 4, 5])
    assert off(model, THEIRS, [3, 4, 5]) <= 1
    assert off(model, THEIRS, [3, 1, 5]) > 1000  # the same tokens in block 1, after other ones
