"""Figures of memory, tested as text and as the numbers that are drawn."""

from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from paged_core.viz import memory
from paged_core.viz.style import LIGHT, WASTED_COLOR, sequence_style
from paged_core.workload import SPAN, Contiguous, LengthHistogram, Pages, Request, simulate
from tests.test_workload import DATA

TOKEN_BYTES = 131_072
WORDS = {"title": "What is held", "alt": "Slots by step."}


@pytest.fixture(scope="module")
def stretches():
    requests = LengthHistogram(DATA, "conv").draw(300, seed=4)
    memories = {"to the maximum": Contiguous(65_536, lambda request: 16_384), "pages": Pages(65_536, 16)}
    return {name: simulate(requests, m, 300, watch=range(100, 300, 20)) for name, m in memories.items()}


def test_every_span_of_a_small_memory_is_a_box_with_its_count():
    tiny = [Request(0, 5, 3), Request(1, 2, 2), Request(2, 3, 6)]
    picture = memory.slot_map({"pages of 4": simulate(tiny, Pages(16, 4), 3, watch=range(3))}, **WORDS)
    texts = [element.text for element in ElementTree.fromstring(str(picture)).iter() if element.tag.endswith("}text")]
    # A holds 6, 7, 8 tokens; B 3, 4; C 4, then waits, then 5: the worked example of tests/test_workload.py
    assert [t for t in texts if t[0] in "ABC" and t[1:].strip().isdigit()] == [
        *("A 4", "A 2", "B 3", "C 4"), *("A 4", "A 3", "B 4"), *("A 4", "A 4", "C 4", "C 1"),
    ]  # fmt: skip
    assert [t for t in texts if t in ("1", "2", "3")] == [
        "2",
        "1",
        "1",
        "1",
        "2",
        "3",
    ]  # empty slots and two step numbers
    assert {"What is held", "pages of 4", "step 0", "reserved, empty", "free"} <= set(texts)
    assert picture.width > 600  # one panel of three steps is narrower than the legend below it
    assert sequence_style(2).color in str(picture) and "Slots by step." in str(picture)


def test_a_column_of_the_map_is_the_mean_colour_of_its_slots():
    budget = 2 * memory.ROWS  # two slots a pixel
    spans = np.array([(7, 0, 4, 3), (9, 10, 2, 1)], SPAN)
    column = memory._column(spans, budget, followed=9)
    written, wasted, free, followed = (
        np.array(to_rgb(c)) for c in (memory.USED_COLOR, WASTED_COLOR, LIGHT.paper, memory.FOLLOWED_COLOR)
    )
    assert column.shape == (memory.ROWS, 3)
    np.testing.assert_allclose(column[0], written)
    np.testing.assert_allclose(column[1], (written + wasted) / 2)
    np.testing.assert_allclose(column[2:5], [free] * 3)
    np.testing.assert_allclose(column[5], followed)  # never diluted: one slot of the followed request is enough
    np.testing.assert_allclose(column[6:], [free] * (memory.ROWS - 6))


def test_memory_over_time_has_a_panel_each_and_the_whole_budget(stretches):
    picture = memory.memory_over_time(stretches, token_bytes=TOKEN_BYTES, **WORDS)
    panels = picture.figure.axes
    assert [ax.get_title(loc="left") for ax in panels] == list(stretches)
    assert all(ax.images[0].get_array().shape == (memory.ROWS, 10, 3) for ax in panels)
    assert all(tuple(ax.images[0].get_extent()) == (100, 280, 8, 0) for ax in panels)  # GiB
    assert panels[0].get_ylabel() == "slots (GiB)"
    legend = [text.get_text() for text in picture.figure.legends[0].get_texts()]
    assert legend == ["written", "written by one request", "reserved, empty", "free"]
    assert picture.png().startswith(b"\x89PNG") and repr(picture) == "What is held. Slots by step."


def test_bars_add_up_to_the_budget(stretches):
    picture = memory.budget_bars(stretches, since=100, token_bytes=TOKEN_BYTES, **WORDS)
    ax = picture.figure.axes[0]
    widths = np.array([[bar.get_width() for bar in bars] for bars in ax.containers])
    assert widths.shape == (4, 2)
    # four means, each rounded down to a token
    np.testing.assert_allclose(widths.sum(axis=0), 8, atol=4 * TOKEN_BYTES / memory.GIB)
    assert widths[0, 0] == stretches["to the maximum"].mean("used", 100) * TOKEN_BYTES / memory.GIB
    assert [text.get_text() for text in ax.texts] == [f"{s.mean('running', 100)} requests" for s in stretches.values()]


def test_histogram_steps_hold_every_request():
    histogram = LengthHistogram(DATA, "conv")
    picture = memory.request_lengths({"conversation": histogram}, **WORDS)
    for ax, edges in zip(picture.figure.axes, (histogram.prompt_edges, histogram.output_edges), strict=True):
        (steps,) = ax.patches
        assert steps.get_data().values.sum() == pytest.approx(100)
        assert (steps.get_data().edges == edges).all()


def test_block_size_costs_draw_what_was_counted():
    requests = LengthHistogram(DATA, "conv").draw(200, seed=4)
    sweep = {size: simulate(requests, Pages(32_768, size), 120) for size in (1, 16, 256)}
    picture = memory.block_size_costs(sweep, {1: 64, 16: 4, 256: 1}, since=50, token_bytes=TOKEN_BYTES, **WORDS)
    at_once, costs, entries = picture.figure.axes
    assert at_once.lines[0].get_ydata().tolist() == [run.mean("running", 50) for run in sweep.values()]
    run = sweep[256]
    empty = (run.mean("to_come", 50) + run.mean("never", 50)) * TOKEN_BYTES / 1024 / run.mean("running", 50)
    assert costs.lines[0].get_xdata().tolist() == [16, 256]  # a block of one token is never partly empty
    assert costs.lines[0].get_ydata()[-1] == pytest.approx(empty)
    assert costs.lines[1].get_ydata().tolist() == [64 / 1024, 4 / 1024, 1 / 1024]
    assert entries.lines[0].get_ydata()[0] == 32_768 - sweep[1].mean("free", 50)
    assert [ax.get_xlabel() for ax in picture.figure.axes] == ["block size (tokens)"] * 3


def test_queues_are_means_over_ten_seconds():
    requests = LengthHistogram(DATA, "conv").draw(300, seed=4)
    stretch = simulate(requests, Contiguous(32_768, lambda request: 16_384), 400, step_s=0.05)
    picture = memory.queues({"to the maximum": stretch}, step_s=0.05, **WORDS)
    running, waiting = picture.figure.axes
    assert running.lines[0].get_ydata().tolist() == [sum(stretch.running[:200]) / 200, sum(stretch.running[200:]) / 200]
    assert waiting.lines[0].get_ydata()[1] == sum(stretch.waiting[200:]) / 200
    np.testing.assert_allclose(waiting.lines[0].get_xdata() * 60, [5, 15])
