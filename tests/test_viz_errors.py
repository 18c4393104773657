"""The pictures of errors show what they were given, and tell right from wrong in words."""

import numpy as np
import pytest

from paged_core.cases import paged_case
from paged_core.viz.errors import ErrorAtLength, error_at_length, error_chart, error_maps, verdict, verdict_map
from paged_core.viz.style import LIGHT, LINE_COLORS


def rows(dtype, lost_at_the_end):
    return [
        ErrorAtLength(dtype, 1, error=0.0, bound=1e-4, share=0.0, lost_token=1e4),
        ErrorAtLength(dtype, 64, error=2e-7, bound=1e-4, share=2e-3, lost_token=1e3),
        ErrorAtLength(dtype, 4096, error=3e-7, bound=1e-3, share=3e-4, lost_token=lost_at_the_end),
    ]


def test_error_chart_draws_every_dtype_and_leaves_out_what_is_exactly_zero():
    picture = error_chart(rows("float32", 3.0) + rows("bfloat16", 0.5))
    left, right = picture.figure.axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["float32", "bfloat16"]
    lines = {tuple(line.get_xdata()): tuple(line.get_ydata()) for line in left.get_lines()}
    assert lines[1, 64, 4096] == (1e-4, 1e-4, 1e-3)  # the bound
    assert lines[64, 4096] == (2e-7, 3e-7)  # the error, without the zero at length 1
    assert sum(tuple(line.get_ydata()) == (1e4, 1e3, 0.5) for line in right.get_lines()) == 1
    assert {left.get_xscale(), left.get_yscale(), right.get_xscale(), right.get_yscale()} == {"log"}
    assert "float32, bfloat16 and contexts of 1 to 4096 tokens" in picture.alt
    assert left.get_xlabel() == "context length (tokens)"
    assert {line.get_color() for ax in (left, right) for line in ax.get_lines()} == {*LINE_COLORS[:2], LIGHT.ink}


def test_error_maps_say_which_is_wrong_and_hatch_nan():
    right = np.full((8, 2), 0.01)
    wrong, nan = right.copy(), right.copy()
    wrong[4:, 1] = 300.0
    nan[7] = np.inf
    maps = {"right": right, "swapped": wrong, "one long": nan}
    picture = error_maps(maps, first_position=6, block_size=4, title="Three tables")
    axes = picture.figure.axes[:3]
    assert [ax.get_title(loc="left") for ax in axes] == [
        "right: within the bound", "swapped: out of bounds", "one long: NaN",
    ]  # fmt: skip
    assert "right: within the bound; swapped: out of bounds; one long: NaN." in picture.alt
    assert [len(ax.patches) for ax in axes] == [0, 0, 2]  # two heads of the last query
    assert axes[1].images[0].get_array().shape == (2, 8)  # heads down, queries across
    assert axes[0].get_xticks().tolist() == [8, 12]  # where the blocks of 4 begin, from position 6 on
    assert axes[0].get_ylabel() == "query head"


def test_verdict_map_names_the_positions_that_are_wrong():
    share = np.full((6, 2), 0.5)
    share[2, 1], share[5, :] = 7.0, np.inf
    picture = verdict_map(share, first_position=6, block_size=4, title="One map")
    assert picture.alt.endswith("Wrong at the positions 8, 11.")
    drawn = str(picture)
    assert drawn.count('fill="url(#cross-danger)"') == 1 + 2  # the legend's, and two heads of the last query
    assert drawn.count(f'fill="{LINE_COLORS[1]}"') == 1 + 1
    assert ">8</text>" in drawn and ">12</text>" not in drawn  # blocks begin at 8, and at 12, which is past the end
    assert verdict_map(share[:2], first_position=6, block_size=4, title="Right").alt.endswith("All within the bound.")


def test_error_at_length_tells_the_answer_from_one_that_lost_a_token():
    case = paged_case(context_lens=[40], dtype="float16", sinks=True)
    row = error_at_length(case, case.attend())
    assert (row.dtype, row.length) == ("float16", 40)
    assert 0 < row.share <= 1 < row.lost_token
    assert row.error < row.bound
    shorter = paged_case(context_lens=[40], dtype="float16", sinks=True)
    lost = error_at_length(case, shorter.attend(context_lens=shorter.context_lens - 1))
    assert lost.share == pytest.approx(row.lost_token, rel=0.1)  # the same answer, by way of a length that is one short


@pytest.mark.parametrize(
    "share, words",
    [
        ([[0.0, 1.0]], "within the bound"),
        ([[0.0, 1.001]], "out of bounds"),
        ([[0.5, np.inf]], "NaN"),
        ([[2.0, np.inf]], "out of bounds, NaN"),
    ],
)
def test_verdict(share, words):
    assert verdict(share) == words
