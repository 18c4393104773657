"""The periods of every rotary variant, as transformers 5.24 works them out (modeling_rope_utils) for heads of 16."""

import numpy as np
import pytest

from paged_core.models.rope import rotation

SMALL = {"original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0} | SMALL
SLOWED = (126.491, 400.0, 1264.91, 4000.0, 12649.1)


@pytest.mark.parametrize(
    "scaling, scale, periods",
    [
        ({}, 1.0, (1.0, 3.16228, 10.0, 31.6228, 100.0, 316.228, 1000.0, 3162.28)),
        ({"type": "linear", "factor": 2.0}, 1.0, (2.0, 6.32456, 20.0, 63.2455, 200.0, 632.456, 2000.0, 6324.55)),
        (
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | SMALL,
            1.0,
            (1.0, 4.09191, 76.6739, 252.982, 800.0, 2529.82, 8000.0, 25298.2),
        ),
        (YARN, 1.138629, (1.0, 4.21637, 20.0, *SLOWED)),
        (YARN | {"beta_fast": None, "beta_slow": None, "mscale": None}, 1.138629, (1.0, 4.21637, 20.0, *SLOWED)),
        (YARN | {"beta_fast": 8, "beta_slow": 2}, 1.138629, (1.0, 5.05964, 40.0, *SLOWED)),
        (YARN | {"truncate": False}, 1.138629, (1.0, 5.03566, 39.0698, *SLOWED)),
        (YARN | {"mscale": 0.7}, 1.138629, (1.0, 4.21637, 20.0, *SLOWED)),  # one of the two alone counts for nothing
        (YARN | {"mscale": 0.7, "mscale_all_dim": 1.0}, 0.963475, (1.0, 4.21637, 20.0, *SLOWED)),
        (YARN | {"attention_factor": 1.25}, 1.25, (1.0, 4.21637, 20.0, *SLOWED)),
    ],
    ids=str,
)
def test_model_rotates_as_transformers_does(scaling, scale, periods):
    turn = rotation(16, 10_000.0, scaling, max_positions=256)
    assert turn.is_plain == (scaling == {})
    np.testing.assert_allclose(turn.periods, periods, rtol=5e-6)
    assert turn.scale == pytest.approx(scale, rel=1e-6)
