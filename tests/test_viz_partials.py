"""Figures of long contexts, tested as text and as the numbers that are drawn."""

from xml.etree import ElementTree

import numpy as np
import pytest

from paged_core.executors.launch import GPU, cpu
from paged_core.viz import partials


def words(picture):
    return [element.text for element in ElementTree.fromstring(str(picture)).iter() if element.tag.endswith("}text")]


def test_the_merge_by_hand():
    picture = partials.merge_picture([[(1, 3), (3, 5), (2, 2)], [(0, 8), (4, 1), (2, 6)]], title="Two partials")
    shown = words(picture)
    # 2^-2 + 1 + 2^-1 = 7/4 and 3/4 + 5 + 1 = 27/4; 2^-4 + 1 + 2^-2 = 21/16 and 1/2 + 1 + 3/2 = 3; 3 is one below 4.
    for text in (
        "top 3",
        "total 7/4",
        "acc 27/4",
        "top 4",
        "total 21/16",
        "acc 3",
        "× 1/2",
        "× 1",
        "total 7/8",
        "acc 27/8",
    ):
        assert text in shown, text
    assert "merged:  top 4,  total 35/16,  acc 51/8,  output 102/35" in shown
    assert "output 102/35" in picture.alt


def test_shares_are_measured_from_the_common_top():
    top, total = np.array([[0.0, np.log(3), -np.inf]]), np.array([[1.0, 1.0, 0.0]])
    np.testing.assert_allclose(partials.softmax_shares(top, total), [[0.25, 0.75, 0]])
    no_key = partials.softmax_shares(np.full((1, 3), -np.inf), np.zeros((1, 3)))
    np.testing.assert_array_equal(no_key, [[0, 0, 0]])


def test_a_partition_without_a_key_is_drawn_as_empty():
    top = np.log([[[1.0, 3.0, 4.0]], [[1.0, 1.0, 1.0]]])
    total = np.array([[[1.0, 1.0, 1.0]], [[1.0, 0.0, 0.0]]])
    picture = partials.partition_map(top, total, [8, 1], title="Partitions")
    shown = words(picture)
    assert shown.count("empty") == 2 and shown.count("3 keys") == 2 and shown.count("2 keys") == 1
    assert {"1 key", "12%", "38%", "50%", "100%"} <= set(shown)
    assert "2 of them without a key" in picture.alt


def test_the_map_prints_the_rules_own_numbers():
    picture = partials.rule_map({"a GPU": GPU, "a CPU": cpu(threads=2, width=8)}, 8, [1, 64], [256, 8192], title="Rule")
    gpu, two_threads = (axes for axes in picture.figure.axes)
    assert [text.get_text() for text in gpu.texts] == ["1", "32", "1", "1"]
    assert [text.get_text() for text in two_threads.texts] == ["1"] * 4
    assert gpu.get_title(loc="left") == "a GPU: 256 threadgroups are enough"
    assert [label.get_text() for label in gpu.get_xticklabels()] == ["256", "8k"]


def test_times_are_drawn_as_measured_with_the_rules_choice():
    picture = partials.partition_times({("one", 1): 9.0, ("one", 2): 5.0, ("one", 8): 4.0}, {"one": 8}, title="Times")
    line, ring = picture.figure.axes[0].lines
    np.testing.assert_array_equal(line.get_xydata(), [[1, 9], [2, 5], [8, 4]])
    np.testing.assert_array_equal(ring.get_xydata(), [[8, 4]])


@pytest.mark.parametrize("size, calls, read", [(48, "1 call", 48), (16, "3 calls", 96), (7, "7 calls", 195)])
def test_a_triangle_says_what_is_read(size, calls, read):
    picture = partials.chunk_triangles(48, [size], title="Chunks")
    assert f"{calls}, {read} keys read" in words(picture)
    count = calls.split()[0]
    assert picture.alt == f"chunks of {size}, {count} of them: {read} keys are read, {read - 48} of them again"


def test_a_mixed_batch_shows_each_row_with_its_position():
    picture = partials.mixed_batch([9, 21, 6], [0, 5, 6, 12], title="One call")
    shown = words(picture)
    rows = shown[shown.index("every token in the pages; the queries, outlined, are the newest") + 1 :]
    assert shown.count("20") == 2  # B's query, among the rows and at the end of its context
    assert {"chunk of a prompt", "decode", "prompt"} <= set(rows)
    assert "A: rows 0 to 4, positions 4 to 8; B: rows 5 to 5, positions 20 to 20; C: rows 6 to 11" in picture.alt


def test_a_timeline_has_a_bar_a_step_and_names_the_longest():
    times = {("all at once", 0): 380.0, ("chunks", 0): 10.0, ("chunks", 1): 20.0, ("chunks", 2): 31.0}
    picture = partials.step_timeline(times, title="Steps")
    bars = picture.figure.axes[0].patches
    assert [bar.get_width() for bar in bars] == [380.0, 10.0, 20.0, 31.0]
    assert [bar.get_x() for bar in bars] == [0.0, 0.0, 10.0, 30.0]
    assert {text.get_text() for text in picture.figure.axes[0].texts} == {"longest wait 380 ms", "longest wait 31 ms"}
