"""The pictures of memory say, in their own text, what the layouts' addresses say."""

import re

import numpy as np
import pytest
from matplotlib.colors import to_hex

from paged_core import PoolLayout
from paged_core.layouts import Geometry
from paged_core.viz.layouts import (
    LayoutExplorer,
    cost_chart,
    lane_map,
    line_map,
    lines_touched,
    loads_of,
    memory_map,
    regions,
    runs_of,
)
from paged_core.viz.style import LINE_COLORS

SMALL = Geometry(num_blocks=8, num_kv_heads=2, block_size=4, head_dim=8)
REAL = Geometry(num_blocks=64, num_kv_heads=8, block_size=16, head_dim=128)


def facts(picture) -> dict[str, str]:
    """{"HND K": "1 run, 1 line"} from a picture's alternative text."""
    return dict(re.findall(r"([A-Z_]+ [KV]) \[[^:]*: ([^;]*?)[;.](?: |$)", picture.alt))


def words(picture) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", str(picture))


@pytest.mark.parametrize("itemsize", [2, 4])
def test_regions_hold_every_element_of_a_block_exactly_once(itemsize):
    for region in regions(REAL, itemsize, block=3):
        layout, half = region.name.split()
        at = PoolLayout[layout].element_offset(half.lower(), REAL, itemsize, block=3, **region.coordinates)
        np.testing.assert_array_equal(at, region.start + np.arange(region.size))


def test_regions_show_k_alone_where_v_is_its_twin():
    names = [region.name for region in regions(SMALL, 4, block=0)]
    assert names == ["HND K", "NHD K", "X_SPLIT K", "X_SPLIT V", "INTERLEAVED K", "INTERLEAVED V"]


def test_lines_and_runs_by_hand():
    # Elements 14..17 of 4 bytes lie in bytes 56..71: across the border at 64.
    assert lines_touched([14, 15, 16, 17], 4) == 2
    assert lines_touched([14, 15, 16, 17], 4, line_bytes=128) == 1
    assert runs_of([[17, 16], [14, 15]]) == 1
    assert runs_of([0, 1, 3, 4, 9]) == 3
    assert runs_of([]) == lines_touched([], 4) == 0


def test_memory_map_names_the_chosen_element():
    picture = memory_map(SMALL, 4, block=5, colour_by="token", chosen={"head": 1, "token": 2, "dim": 3})
    assert facts(picture) == {
        "HND K": "element 371",  # ((5*2 + 1)*4 + 2)*8 + 3
        "NHD K": "element 363",  # ((5*4 + 2)*2 + 1)*8 + 3
        "X_SPLIT K": "element 363",  # (((5*2 + 1)*2 + 0)*4 + 2)*4 + 3
        "X_SPLIT V": "element 366",  # ((5*2 + 1)*8 + 3)*4 + 2
        "INTERLEAVED K": "element 691",  # (((5*2 + 0)*2 + 1)*4 + 2)*8 + 3
        "INTERLEAVED V": "element 755",
    }
    assert words(picture).count("320") == 4  # block 5 begins at 5*64 in four of the arrays


def test_memory_map_counts_the_runs_and_lines_of_an_access():
    read = facts(memory_map(SMALL, 4, block=5, colour_by="dim", only={"head": 1, "token": 2}))
    assert read["HND K"] == read["NHD K"] == read["INTERLEAVED V"] == "1 run, 1 line"
    assert read["X_SPLIT K"] == "2 runs, 2 lines"  # two groups of four dims
    assert read["X_SPLIT V"] == "8 runs, 2 lines"


def test_memory_map_writes_only_the_values_of_what_is_kept_apart():
    picture = memory_map(SMALL, 4, block=0, colour_by="dim", only={"head": 0, "token": 1})
    legend, cells = 8, 6 * 8
    assert (
        sum(word in "01234567" for word in words(picture) if len(word) == 1) == legend + cells + 5
    )  # five rulers say 0
    assert "head 0, token 1, every dim" in picture.title


def test_line_map_counts_whole_lines_and_what_is_used_of_them():
    write = facts(line_map(REAL, 2, only={"token": 2}, line_bytes=128))
    assert write["HND K"] == write["NHD K"] == write["INTERLEAVED K"] == "16 lines, used whole"
    assert write["X_SPLIT K"] == "128 lines, 16 of 128 bytes used"  # a group of 8 dims = 16 bytes, 8 heads x 16 groups
    assert write["X_SPLIT V"] == "256 lines, 8 of 128 bytes used"


def test_lane_map_counts_the_lines_of_one_load():
    lanes = np.arange(32)
    picture = lane_map({"row": (lanes, lanes), "column": (lanes, 128 * lanes)}, 2, title="Two loads", line_bytes=128)
    assert "row : 1 line, 64 of 128 bytes used" in picture.alt
    assert "column : 32 lines, 2 of 128 bytes used" in picture.alt
    assert picture.alt.count("dashed: lines in between are left out") == 1
    assert {"0", "31"} <= set(words(picture))


def test_lane_map_refuses_what_would_not_fit_on_a_page():
    with pytest.raises(ValueError, match=r"loads\['wide'\]: expected at most 34 lines, got 40"):
        lane_map({"wide": (np.arange(40), 64 * np.arange(40))}, 1, title="Wide")


@pytest.mark.parametrize("axis", ["block", "lane", ""])
def test_an_axis_that_does_not_exist_is_refused(axis):
    with pytest.raises(ValueError, match=r"colour_by: expected one of head, token, dim"):
        memory_map(SMALL, 4, colour_by=axis)
    with pytest.raises(ValueError, match=r"access: expected one of head, token, dim"):
        line_map(SMALL, 4, only={axis: 0})


def test_pictures_are_small_enough_for_a_notebook():
    assert len(memory_map(SMALL, 4, colour_by="token", chosen={"head": 1, "token": 2, "dim": 3}).html) < 50_000
    assert len(line_map(REAL, 2, only={"token": 2}, line_bytes=128).html) < 60_000


def trace_records(rows):
    fields = [(name, int) for name in ("launch", "threadgroup", "simdgroup", "lane", "step")]
    return np.array(rows, [*fields, ("buffer", "U8"), ("index", int), ("is_write", bool)])


def test_loads_of_a_simdgroup_are_instructions_by_lanes():
    rows = [
        (0, 0, 0, 1, 5, "k_pool", 33, False),  # lane 1's second load, recorded first
        (0, 0, 0, 0, 0, "k_pool", 0, False),
        (0, 0, 0, 1, 1, "k_pool", 1, False),
        (0, 0, 0, 0, 4, "k_pool", 32, False),
        (0, 0, 0, 0, 6, "k_pool", 99, True),  # a store, another buffer, another simdgroup, another threadgroup
        (0, 0, 0, 0, 7, "v_pool", 99, False),
        (0, 0, 1, 0, 2, "k_pool", 99, False),
        (0, 1, 0, 0, 3, "k_pool", 99, False),
        (1, 0, 0, 0, 8, "k_pool", 99, False),  # and another launch
    ]
    assert loads_of(trace_records(rows), "k_pool").tolist() == [[0, 1], [32, 33]]
    assert loads_of(trace_records(rows), "k_pool", simdgroup=1).tolist() == [[99]]
    assert loads_of(trace_records(rows), "out").size == 0


def test_loads_of_lanes_that_are_out_of_step_are_refused():
    rows = [(0, 0, 0, lane, step, "k_pool", step, False) for step, lane in enumerate((0, 0, 1))]
    with pytest.raises(ValueError, match=r"equally many loads of k_pool by each lane, got \[2, 1\]"):
        loads_of(trace_records(rows), "k_pool")


def test_the_explorer_draws_what_its_controls_say_and_is_saved_as_the_picture():
    explorer = LayoutExplorer(SMALL, 4, block=5, chosen={"head": 1, "token": 2, "dim": 3})
    first = memory_map(SMALL, 4, block=5, colour_by="token", chosen={"head": 1, "token": 2, "dim": 3})
    assert explorer.picture.value.endswith(first.html) and first.alt in explorer.picture.value.removesuffix(first.html)
    bundle = explorer._repr_mimebundle_()
    assert bundle["text/html"].startswith(first.html)
    assert "application/vnd.jupyter.widget-view+json" in bundle
    explorer.colour_by.value = "dim"
    explorer.access.value = ("head", "token")
    explorer.at["token"].value = 0
    kept = memory_map(
        SMALL, 4, block=5, colour_by="dim", only={"head": 1, "token": 0}, chosen={"head": 1, "token": 0, "dim": 3}
    )
    assert explorer.picture.value.endswith(kept.html)


def test_costs_are_bars_in_nobodys_colour():
    times = {"write": {"HND": 1.0, "NHD": 2.0}, "read": {"HND": 3.0, "NHD": 4.0}}
    picture = cost_chart(times, title="Costs", reference=("copying it all", 50.0))
    bars = picture.figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == [1.0, 3.0, 2.0, 4.0]
    assert [to_hex(bar.get_facecolor()).upper() for bar in bars[::2]] == list(LINE_COLORS[:2])
    assert bars[0].get_hatch() != bars[2].get_hatch() and "a line for copying it all" in picture.alt
