"""The exercises: every solution is right; no stub is, as its notebook has it, nor are the mistakes that people make."""

import importlib
import linecache
import re
import subprocess
import sys
from itertools import count
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from paged_core.errors import PagedCoreError
from paged_core.exercises import block_allocator, metal
from paged_core.exercises.exercise import (
    Exercise,
    ExerciseError,
    Failure,
    NotSolved,
    TooManyLines,
    Verdict,
    WrongAnswer,
    attempt,
    close,
    same,
    trial,
)

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb") if path.stem[:2] >= "02")
_names = count()


def module_of(notebook):
    return importlib.import_module(f"paged_core.exercises.{notebook[3:]}")


def cells(notebook):
    """The code of the exercises, as the notebook has it."""
    cells = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code" and cell.id.startswith("exercise-")]


def solution(notebook):
    return (ROOT / "solutions" / f"{notebook}.py").read_text(encoding="utf-8")


def run(text):
    """What a text defines, its lines to be found as a notebook's are."""
    name = f"<cell {next(_names)}>"
    linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name
    names = {"np": np, "__name__": "__main__"}
    exec(compile(text, name, "exec"), names)
    return names


SHOWN = [  # (notebook, exercise, the name of its answer): the notebooks themselves say which
    (notebook, *found)
    for notebook in NOTEBOOKS
    for found in re.findall(r"^exercise\.(\w+)\.show\((\w+)\)$", "\n".join(cells(notebook)), re.M)
]
every_exercise = pytest.mark.parametrize("notebook, exercise, answer", SHOWN, ids=[f"{n}-{e}" for n, e, _ in SHOWN])


# ---- right and wrong


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_exercise_of_a_module_stands_in_its_notebook(notebook):
    known = {name for name, thing in vars(module_of(notebook)).items() if isinstance(thing, Exercise)}
    assert known == {exercise for where, exercise, _ in SHOWN if where == notebook}


@every_exercise
def test_the_solution_is_right(notebook, exercise, answer):
    exercise = getattr(module_of(notebook), exercise)
    verdict = exercise.check(run(solution(notebook))[answer])
    assert verdict.error is None
    assert re.fullmatch(
        rf"{re.escape(exercise.name)}: right\. \d+ cases, \d+ of {exercise.lines} lines\.", repr(verdict)
    )


@every_exercise
def test_the_stub_is_not(notebook, exercise, answer):
    exercise, stub = getattr(module_of(notebook), exercise), run("\n\n\n".join(cells(notebook)))[answer]
    with pytest.raises((NotSolved, WrongAnswer)) as raised:
        exercise.check(stub)
    assert raised.value.given and raised.value.picture
    verdict = exercise.show(stub)
    assert repr(verdict) == str(raised.value)
    assert "<img" in verdict._repr_mimebundle_()["text/html"]


@every_exercise
def test_the_notebook_states_the_budget_that_is_kept(notebook, exercise, answer):
    lines = getattr(module_of(notebook), exercise).lines
    text = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4)
    (at,) = (i for i, cell in enumerate(text.cells) if f"exercise.{exercise}.show(" in cell.source)
    assert f"at most {lines} lines" in text.cells[at].source
    assert f"At most {lines} lines" in text.cells[at - 1].source


MISTAKES = {  # (notebook, exercise, answer): what to change in the solution, and to what
    ("02_block_allocator", "free_list", "FreeList"): [
        ("[::-1]", ""),  # the highest block first
        ("pop()", "pop(0)"),  # a queue
        ("n > len", "n >= len"),  # the last block is never handed out
        ("n > len(self.stack)", "not self.stack"),  # some, then none
        ("self.stack += blocks", "self.stack += blocks[::-1]"),
        ("self.stack += blocks", "self.stack = blocks"),
        ("PoolExhausted(n, len(self.stack), self.capacity)", "MemoryError"),
        ("[self.stack.pop() for _ in range(n)]", "[self.stack.pop() for _ in range(n)] or None"),
    ],
    ("02_block_allocator", "culprit", "culprit"): [
        ("left[block] -= 1", "pass"),  # listed twice
        ("dict(enumerate(ref_counts))", "list(ref_counts)"),  # has no get
        ("left.get(block, 0)", "ref_counts[block]"),  # -1 is the last block
        ("dict(enumerate(ref_counts))", "dict(enumerate(ref_counts[:-1]))"),
        ("left = dict(enumerate(ref_counts))", "left = dict(enumerate(ref_counts)); ref_counts.clear()"),
        ("return block", "return True"),
    ],
    ("03_block_tables", "slots", "slots"): [
        ("context - new, context", "context - new + 1, context + 1"),  # off by one
        ("context - new, context", "new"),  # the first tokens, not the newest
        ("p % block_size", "p"),
        ("blocks[p // block_size] * block_size", "p // block_size * block_size"),  # no table
        ("[blocks[p // block_size] * block_size", "[blocks[-1] * block_size"),
        ("for p in positions]", "for p in reversed(positions)]"),  # the wrong order
    ],
    ("03_block_tables", "grow", "grow"): [
        ("-(-target_len // block_size)", "target_len // block_size"),  # forgot the last partial block
        ("-(-target_len // block_size)", "target_len // block_size + 1"),  # a block too many for a full one
        ("needed - len(blocks)", "needed"),  # not the missing ones alone
        ("needed > max_blocks", "needed >= max_blocks"),
        ("needed > max_blocks", "needed > max_blocks + 1"),
        ("blocks += allocator", "blocks = blocks + allocator"),  # somebody else's list
        ("if needed > len(blocks):\n        blocks += allocator.allocate_n(needed - len(blocks))",
         "while needed > len(blocks):\n        blocks.append(allocator.allocate())"),  # some, then none
        ("raise SequenceTooLong", "raise ValueError"),
    ],
    ("03_block_tables", "whose", "whose"): [
        ("range(lens[seq])", "range(len(table) * block_size)"),  # beyond the last token
        ("range(lens[seq])", "range(lens[seq] - 1)"),
        ("return seq, position\n", "return position, seq\n"),
        ("+ position % block_size", ""),
    ],
    ("04_pool_layouts", "x_split", "x_split_k"): [
        ("divmod(dim, x)", "(dim // x, dim)"),
        ("divmod(dim, x)", "divmod(dim, g.head_dim // x)"),
        ("(g.head_dim // x)", "g.head_dim"),
        ("* g.block_size + token", "+ token"),
        ("block * g.num_kv_heads + head", "head * g.num_kv_heads + block"),
        ("(groups_before * g.block_size + token)", "float(groups_before * g.block_size + token)"),
    ],
    ("04_pool_layouts", "any_layout", "element"): [
        ("zip(axes, shape, strict=True)", "zip(at, shape)"),  # another order than the axes'
        ("zip(axes, shape, strict=True)", "zip(axes[::-1], shape[::-1])"),
        ("offset * size + at[axis]", "(offset + at[axis]) * size"),
        ("offset * size + at[axis]", "(offset * size + at[axis]) % 2**31"),  # int32
    ],
    ("05_attention_correctness", "mask", "mask"): [
        ("np.arange(context - queries, context)", "np.arange(queries)"),
        ("distance >= 0", "distance > 0"),  # not itself
        ("distance < (", "distance <= ("),  # one too wide
        (" & (distance < (window or context))", ""),
        ("(distance >= 0) & ", ""),  # the future
        ("return (distance >= 0)", "return 1 * (distance >= 0)"),  # numbers
    ],
    ("05_attention_correctness", "logit_bound", "logit_bound"): [
        ("abs(q) @ abs(k)", "abs(q @ k)"),  # cancellation does not help
        ("abs(scale)", "scale"),  # negative
        ("len(q) + 4", "len(q)"),
        ("/ (1 - n * u) ", "* 2"),  # a bound, but not this one
        ("/ (1 - n * u) ", ""),  # too small, by the seventh digit
        ("abs(scale) * ", ""),
    ],
    ("06_inside_the_kernel", "rescale", "rescale"): [
        ("total[h] *= rescale;", ""),
        ("acc[h][i] *= rescale", "acc[h][0] *= rescale"),
        ("exp(top[h] - tile_top)", "exp(tile_top - top[h])"),
        ("top[h] = tile_top;\n", "\n"),
    ],
    ("06_inside_the_kernel", "follow", "follow"): [
        ("min(tile + j, end - 1)", "tile + j"),  # the poison past the end
        ("min(tile + j, end - 1)", "min(tile + j, end - 2)"),
        ("seq * problem.max_blocks + ", ""),  # the first sequence's table for all
        ("v_vector(block, kv_head, position % problem.block_size)", "v_vector(block, kv_head, 0)"),
        ("position / problem.block_size];", "tile / problem.block_size];"),  # the page of the tile's first key
    ],
    ("07_long_contexts", "merge", "merge_e"): [
        ("exp(a[0] - top), exp(b[0] - top)", "1, 1"),
        ("exp(a[0] - top), exp(b[0] - top)", "exp(top - a[0]), exp(top - b[0])"),
        ("a[2] * scale_a + b[2] * scale_b", "a[2] + b[2]"),
        ("if top == -inf:", "if False:"),  # NaN
        ("top = max(a[0], b[0])", "top = a[0]"),
        ("exp(a[0] - top), exp(b[0] - top)", "exp(a[0]) / exp(top), exp(b[0]) / exp(top)"),  # overflows
    ],
    ("07_long_contexts", "add", "add"): [
        ("if (partial_total[at] != 0.0f)", ""),  # NaN where nobody has a key
        ("exp(partial_top[at] - top) *", ""),
        ("partial_top[at] - top", "top - partial_top[at]"),
        ("+= exp", "= exp"),  # the last one only
    ],
    ("08_sharing", "keys", "keys"): [
        ("found[-1], tokens", "start, tokens"),  # no parent
        ("len(tokens) + 1, block_size", "len(tokens) + block_size, block_size"),  # a partial block has no key
        ("len(tokens) + 1", "len(tokens)"),  # the last full block has one
        ("return found[1:]", "return found"),
        ("tokens[end - block_size : end]", "tokens[:end]"),
        ("found = [start]", "found = [b'']"),  # another tenant's
    ],
    ("08_sharing", "eviction_order", "eviction_order"): [
        ("reversed(blocks)", "blocks"),
        ("order.pop(block, None)\n", "pass\n"),  # who leaves again keeps the old place
        ('if what == "leaves":', "if True:"),
        ("list(order)", "list(order)[::-1]"),
    ],
    ("09_running_out", "gives_way", "gives_way"): [
        ("while served < last:", "while served < last - 1:"),  # the last one never gives way to itself
        ("free += held[last]", "free += 1"),
        ("victims.append(last)", "victims.insert(0, last)"),
        ("last -= 1", "last = max(range(last), key=held.__getitem__)"),  # the largest
        ("free > 0", "free > 1"),
    ],
    ("09_running_out", "admitted", "admitted"): [
        ("break", "continue"),  # overtaking
        ("if running + count else 0", ""),
        ("if running + count else 0", "if running else 0"),
        ("blocks > free - (", "blocks >= free - ("),
        ("free - blocks, count", "free, count"),
    ],
    ("10_a_real_model", "rows", "rows"): [
        ("sorted(range(len(new)), key=lambda seq: new[seq] > 1)", "range(len(new))"),  # as they came
        ("new[seq] > 1", "new[seq]"),  # the short ones first, among prompts too
        ("computed[seq] + i", "i"),  # every sequence from its beginning
        ("computed[seq] + i", "computed[seq] + i + 1"),
        ("(seq, computed[seq] + i)", "(computed[seq] + i, seq)"),
    ],
    ("10_a_real_model", "nucleus", "nucleus"): [
        ("1 + int(", "int("),  # the one that reaches the share is left out
        ("(shares < top_p)", "(weights / weights.sum() > 1 - top_p)"),
        (" - logits[order[0]]", ""),  # zero over zero
        ("-logits[token]", "logits[token]"),  # the least likely first
        ("-logits[token]", "(-logits[token], -token)"),  # ties the other way round
        ("(shares < top_p)", "(np.cumsum(weights) < top_p)"),  # weights, not shares
    ],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # an answer may divide nothing by nothing
@pytest.mark.parametrize(
    "notebook, exercise, answer, before, after",
    [(*where, *change) for where, changes in MISTAKES.items() for change in changes],
)
def test_a_plausible_mistake_is_found(notebook, exercise, answer, before, after):
    text = solution(notebook)
    assert before in text
    with pytest.raises(WrongAnswer) as raised:
        getattr(module_of(notebook), exercise).check(run(text.replace(before, after))[answer])
    assert raised.value.given and raised.value.picture
    assert "expected" in str(raised.value)
    assert str(raised.value.expected) != str(raised.value.got)  # as it is read


def test_no_exercise_is_without_mistakes():
    assert set(MISTAKES) == set(SHOWN)


# ---- what somebody is told


def verdict_on(text, name="culprit"):
    return block_allocator.culprit.show(run(text)[name])


def test_the_smallest_case_is_told_in_figures():
    verdict = verdict_on("def culprit(ref_counts, blocks):\n    return None\n")
    assert repr(verdict) == (
        "the culprit: not right yet.\n  given     ref_counts [0], blocks [0]\n  expected  0\n  got       None"
    )
    assert (verdict.error.given, verdict.error.expected, verdict.error.got) == ("ref_counts [0], blocks [0]", 0, None)


@pytest.mark.parametrize(
    "body, told",
    [
        ("while True: pass", "no end after 1,000,000 steps: is there a loop without an end?, at `while True: pass`"),
        ("while True:\n        try: 1 / 0\n        except Exception: pass", "no end after 1,000,000 steps"),
        ("return culprit(ref_counts, blocks)", "RecursionError: it calls itself without an end, at `"),
        ("return 1 / 0", "ZeroDivisionError: division by zero, at `return 1 / 0`"),
        ("raise SystemExit", "SystemExit, at `raise SystemExit`"),
        ("return ref_count", "NameError: name 'ref_count' is not defined, at `return ref_count`"),
        ("return object()", "<object object>"),  # without its address: the same in every run
        ("return [i for i in iter(lambda: 0, 1)]", "no end after 1,000,000 steps"),
        ("yield 1", "a generator, not what it yields"),
        ("return None if sum(ref_counts) else '0'", "expected  0\n  got       '0'"),  # the right number, as a string
        ("blocks.append(blocks); return blocks", "RecursionError"),
    ],
)
def test_whatever_an_answer_does_becomes_words(body, told):
    verdict = verdict_on(f"def culprit(ref_counts, blocks):\n    {body}\n")
    assert isinstance(verdict.error, WrongAnswer)
    assert told in repr(verdict)
    assert verdict.error.picture is not None
    assert sys.gettrace() is None or "count" not in repr(sys.gettrace())


@pytest.mark.parametrize("caught", ["except:", "except BaseException:"])
def test_an_answer_may_not_catch_what_stops_it(caught):
    verdict = verdict_on(f"def culprit(a, b):\n    while True:\n        try: 1 / 0\n        {caught} pass\n")
    assert isinstance(verdict.error, WrongAnswer) and "name the exception" in repr(verdict)
    assert verdict._repr_mimebundle_() == {"text/plain": repr(verdict)}


def test_what_it_printed_is_told_for_the_case_that_failed():
    verdict = verdict_on("def culprit(ref_counts, blocks):\n    print('looking at', blocks)\n    return None\n")
    assert repr(verdict).endswith("printed\n    looking at [0]")


def test_the_stop_button_still_stops():
    with pytest.raises(KeyboardInterrupt):
        verdict_on("def culprit(ref_counts, blocks):\n    raise KeyboardInterrupt\n")


@pytest.mark.parametrize("answer", [None, 3, "x", print, lambda ref_counts, blocks: None, int, block_allocator])
def test_what_is_no_answer_is_told_so(answer):
    with pytest.raises(NotSolved, match="expected a function or class, written in a cell with its name, got"):
        block_allocator.culprit.check(answer)


@pytest.mark.parametrize("body", ["...", '"""Mine."""', "size = 3"])
def test_a_class_that_was_only_begun_is_told_so(body):
    exec(f"class FreeList:\n    {body}", cell := {"__name__": "__main__"})
    with pytest.raises(NotSolved, match="the class 'FreeList' has no method yet"):
        block_allocator.free_list.check(cell["FreeList"])


def test_a_lambda_is_told_from_a_function():
    with pytest.raises(NotSolved, match="got a lambda, which has no name"):
        block_allocator.culprit.check(lambda ref_counts, blocks: None)


@pytest.mark.parametrize("body", ["...", "pass", "raise NotImplementedError", '"""Mine."""', '"""Mine."""\n    ...'])
def test_what_was_not_begun_is_not_called_wrong(body):
    verdict = verdict_on(f"def culprit(ref_counts, blocks):\n    {body}\n")
    assert isinstance(verdict.error, NotSolved)
    assert repr(verdict).startswith("the culprit: not solved yet.")


def test_a_right_answer_may_be_too_long_but_not_for_its_comments():
    text = solution("02_block_allocator")
    longer = text.replace("    for block in blocks:", "    n = 0\n    for block in blocks:")
    with pytest.raises(TooManyLines, match=r"^the culprit: right, but in 7 lines; 6 are enough\.$"):
        block_allocator.culprit.check(run(longer)["culprit"])
    with pytest.raises(TooManyLines):  # nor does a semicolon make one line of two
        block_allocator.culprit.check(run(longer.replace("n = 0\n    for", "n = 0; n = 1\n    for"))["culprit"])
    commented = text.replace("    for block", "    # one by one\n\n    # ... in order\n    for block")
    documented = commented.replace("blocks):\n    left", 'blocks):\n    """Two\n\n    lines."""\n    left')
    assert block_allocator.culprit.check(run(documented)["culprit"]).error is None


def test_an_error_is_both_of_this_package_and_a_failed_assertion_and_renders_without_our_lines():
    error = ExerciseError("a free list: not right yet.")
    assert isinstance(error, PagedCoreError) and isinstance(error, AssertionError)
    assert error._render_traceback_() == ["ExerciseError: a free list: not right yet."]


def test_a_verdict_that_is_right_is_one_line_and_no_picture():
    verdict = block_allocator.culprit.show(run(solution("02_block_allocator"))["culprit"])
    assert verdict._repr_mimebundle_() == {"text/plain": "the culprit: right. 309 cases, 6 of 6 lines."}


def test_a_picture_says_in_words_what_it_shows():
    verdict = verdict_on("def culprit(ref_counts, blocks):\n    return None\n")
    assert verdict.error.picture.title == "the culprit: not right yet"
    assert "expected 0, got None" in verdict.error.picture.alt
    assert isinstance(verdict, Verdict)


def test_arrays_and_tuples_with_the_right_contents_are_right_and_true_is_not_one():
    assert attempt(lambda: (np.int32(3), np.array([1, 2]))) == [3, [1, 2]]
    assert same([1, [2]], [1, [2]]) and not same(1, True) and not same(1, 1.0) and not same([1], (1,))
    assert close([1.0, 2.0], [1, 2.0 + 1e-12]) and not close(1.0, float("nan")) and not close(1.0, True)
    assert not close(float("inf"), float("-inf")) and close(float("-inf"), float("-inf"))
    assert isinstance(attempt(lambda: [][0]), Failure)
    assert not trial("", "", 1, attempt(lambda: [][0])).right


# ---- kernels


def test_a_kernel_that_does_not_end_compile_or_stay_in_its_buffers_is_told_so(monkeypatch):
    monkeypatch.setattr(metal, "SECONDS", 1.0)
    exercise = module_of("06_inside_the_kernel").follow
    for text, told in (
        ("for (;;) {}", "did not end within 1 s"),
        ("for (int j = 0; j < KEYS; ++j) k[j] = v_pol;", "error: "),
        ("for (int j = 0; j < KEYS; ++j) k[j] = v[j] = k_pool + 1000000;", "StrayAccess"),
        ("", "not solved yet"),
    ):
        assert told in repr(exercise.show(text)), text


def test_an_answer_in_metal_is_a_string():
    with pytest.raises(NotSolved, match="expected a string of Metal, got None"):
        module_of("06_inside_the_kernel").follow.check(None)


def test_where_the_kernel_read_comes_from_its_trace():
    text = solution("06_inside_the_kernel").replace("tile + j, end - 1", "tile + j + 1, end - 1")
    error = module_of("06_inside_the_kernel").follow.show(run(text)["follow"]).error
    assert error.given == "a sequence of 3 tokens in blocks [1], block_size 3"
    assert (error.expected, error.got) == ([3, 4, 5], [4, 5, 5])


# ---- the house


def test_nothing_below_imports_the_exercises():
    program = "import sys, paged_core, paged_core.viz; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not [name for name in done.stdout.split() if name.startswith("paged_core.exercises")]
    for path in (ROOT / "paged_core").rglob("*.py"):
        if path.parent.name != "exercises":
            assert "paged_core.exercises" not in path.read_text(encoding="utf-8"), path


# ---- in a notebook


def test_in_a_real_kernel_sources_are_found_and_an_error_is_its_message():
    """Where a class has no file, and a traceback would otherwise show this package's lines."""
    stub = cells("02_block_allocator")[0]
    notebook = nbformat.v4.new_notebook()
    for source in (stub, stub.replace(".show(", ".check("), "%time\n1 + 1"):
        notebook.cells.append(nbformat.v4.new_code_cell(source))
    NotebookClient(notebook, timeout=60, kernel_name="python3", allow_errors=True).execute()
    shown, raised, _ = (cell.outputs[-1] for cell in notebook.cells)
    assert set(shown.data) == {"text/html", "text/plain"}
    assert raised.ename == "WrongAnswer"
    assert raised.traceback == [f"WrongAnswer: {shown.data['text/plain']}"]
