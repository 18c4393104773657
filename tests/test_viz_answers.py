"""An answer beside what was expected: what is drawn, marked, and said in words."""

import re

from paged_core.viz.answers import Input, Row, compared, cut, grids, held, written
from paged_core.viz.svg import Svg


def texts(picture: Svg) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", str(picture))


def drawn(rows, **options):
    return compared(rows, title="slots: not right yet", given="a table", **options)


def test_rows_end_at_the_first_that_differs_and_say_so_in_words():
    picture = drawn([Row("one", [1, 2], [1, 2]), Row("two", [3, 4], [3, 5]), Row("three", 1, 2)])
    assert "one" in texts(picture) and "two" in texts(picture) and "three" not in texts(picture)
    assert picture.alt == "Given a table: one: expected [1, 2], got [1, 2]. two: expected [3, 4], got [3, 5]."
    assert str(picture).count('stroke-width="4"') == 2  # the cell that differs, on either side


def test_of_many_rows_the_last_are_shown():
    picture = drawn([Row(f"step {i}", [i], [i]) for i in range(30)] + [Row("step 30", [30], [31])])
    assert "22 before, all as expected" in texts(picture)
    assert "step 21" not in texts(picture) and "step 22" in texts(picture) and "step 30" in texts(picture)


def test_of_many_cells_those_around_the_difference_are_shown():
    picture = drawn([Row("keys", list(range(100)), [*range(50), 7, *range(51, 100)])])
    assert "49" in texts(picture) and "7" in texts(picture) and "20" not in texts(picture)
    assert texts(picture).count("...") == 4  # before and after, on either side


def test_a_list_that_ends_too_early_has_a_hole():
    assert str(drawn([Row("keys", [1, 2], [1])])).count('stroke-dasharray="4 3"') == 1


def test_true_is_not_one_and_words_are_written_out():
    picture = drawn([Row("a", [1], [True]), Row("b", 1, 1)])
    assert "b" not in texts(picture)
    assert "ZeroDivisionError" in " ".join(texts(drawn([Row("a", [1], "ZeroDivisionError: division by zero")])))


def test_what_went_in_is_drawn_in_the_look_of_its_place():
    picture = drawn([Row("a", 1, 2)], inputs=[Input("blocks", [7, 9], lambda i: "nan" if i else "free")])
    assert {"blocks", "7", "9"} <= set(texts(picture))


def test_grids_mark_what_differs_and_write_out_what_is_no_grid():
    options = {"title": "mask", "given": "2 queries", "down": "query", "across": "key", "look": held, "label": str}
    expected = [[True, False], [True, True]]
    assert "first difference: query 0, key 1; 2 of 4 differ" in texts(
        grids(expected, [[True, True], [True, False]], **options)
    )
    assert "first difference" not in " ".join(texts(grids(expected, expected, **options)))
    for wrong in (None, [[True, False]], "what", [[True], [True, True]]):
        assert written(wrong) in " ".join(texts(grids(expected, wrong, **options))).replace("&#x27;", "'")


def test_numbers_are_written_shortly_and_objects_without_their_address():
    assert written([1.36787944117, b"\x01\xff", "x"]) == "[1.36788, 01ff, x]"
    assert written([8, 8.0, float("inf"), float("nan"), True]) == "[8, 8.0, inf, nan, True]"
    assert written(object()) == "<object object>"
    assert cut("n" * 400) == "n" * 146 + " ..."
