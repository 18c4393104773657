"""The charts of notebook 10: their words say what their lines do."""

import numpy as np

from paged_core.viz import models


def test_the_words_say_which_logits_are_within_the_bound():
    chart = models.logit_errors({"a": [0.1, 1.0], "b": np.array([0.1, 1.1])}, first=7, title="Logits")
    assert repr(chart) == (
        "Logits. Difference over bound, token by token, on a log axis; up to 1 is rounding. a: within; b: beyond"
    )
    (axes,) = chart.figure.axes
    assert [line.get_xdata().tolist() for line in axes.get_lines()[1:]] == [[7, 8], [7, 8]]
    assert chart.png().startswith(b"\x89PNG")


def test_the_words_say_how_many_tokens_a_second():
    chart = models.tokens_per_second({"ours": {1: 700.4, 8: 3000}, "theirs": {1: 350}}, title="Speed")
    assert repr(chart) == "Speed. ours: 700 at 1, 3,000 at 8; theirs: 350 at 1"
    (axes,) = chart.figure.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "8"]
    ours, theirs = axes.get_lines()
    assert ours.get_linestyle() != "None" and ours.get_markerfacecolor() != "none"
    assert theirs.get_linestyle() == "None" and theirs.get_markerfacecolor() == "none"  # what lies below it shows
