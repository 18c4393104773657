"""What an exercise is: trials of an answer, the fewest first, how many lines it may have, and a verdict.

An answer is somebody's first attempt, and may do anything: it runs for a limited number of steps, its exceptions become
part of the verdict, and whatever it gives is compared as plain Python.
"""

from __future__ import annotations

import ast
import io
import linecache
import math
import sys
import tokenize
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import partial
from html import escape
from pathlib import Path
from textwrap import dedent, indent
from types import CodeType
from typing import Any, NamedTuple

from paged_core.errors import PagedCoreError
from paged_core.viz.answers import Input, Row, compared, cut, written
from paged_core.viz.svg import Svg

_PACKAGE = str(Path(__file__).parents[1])
MAX_STEPS = 1_000_000  # of Python's own machine, for one call of an answer: a hundred times what any needs


class ExerciseError(PagedCoreError, AssertionError):
    """An answer that is not right (yet).

    It is a PagedCoreError like all of this package, and an AssertionError because that is what a test is: whoever marks
    answers with pytest or unittest sees a failure, not an error of the marking.

    `given` says in words what went in where `expected` and `got` differ, in the smallest case found; `picture` shows
    that case. All are None where none was tried.
    """

    def __init__(self, message: str, trial: Trial | None = None, picture: Svg | None = None) -> None:
        self.given: str | None = trial.given if trial else None
        self.expected: Any = trial.expected if trial else None
        self.got: Any = trial.got if trial else None
        self.picture = picture
        super().__init__(message)

    def _render_traceback_(self) -> list[str]:
        """What a notebook prints: the message. Where in this package it was raised helps nobody."""
        return [f"{type(self).__name__}: {self}"]


class NotSolved(ExerciseError):
    """The stub as it stands in the notebook, or something that is no answer at all."""


class WrongAnswer(ExerciseError):
    """An answer that gives something else than expected, raises, or does not end."""


class TooManyLines(ExerciseError):
    """An answer that is right, and longer than it may be."""


class Trial(NamedTuple):
    """What became of one case: in words, and in a picture under a title."""

    given: str
    expected: Any
    got: Any
    right: bool
    draw: Callable[..., Svg]  # of the picture's title


def trial(
    given: str, words: str, expected: Any, got: Any, equal: Callable[[Any, Any], bool] | None = None,
    inputs: Sequence[Input] = (),
) -> Trial:  # fmt: skip
    """A case with one answer. In the picture `words` name it and `inputs` are drawn; `equal` is `same` unless given."""
    equal = equal or same
    draw = partial(compared, [Row(words, expected, got)], given=given, inputs=inputs, equal=equal)
    return Trial(given, expected, got, equal(expected, got), draw)


class Failure:
    """In place of what a call gives, where it raised or did not end. Equal to nothing."""

    def __init__(self, error: BaseException, words: str) -> None:
        self.error, self.words = error, words

    def __str__(self) -> str:
        return self.words

    __repr__ = __str__


class Quoted(str):
    """A string that an answer gave: it is told with its quotation marks, for '8' is not 8."""

    __str__ = str.__repr__


class Verdict:
    """What is to be said of an answer; `error` is what `check` raises, None when it is right."""

    def __init__(self, words: str, error: ExerciseError | None) -> None:
        self.words, self.error = words, error

    def __repr__(self) -> str:
        return self.words

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        if self.error is None or self.error.picture is None:
            return {"text/plain": self.words}
        words = f"<details><summary>In words</summary><pre>{escape(self.words)}</pre></details>"
        return {"text/html": self.error.picture.html + words, "text/plain": self.words}


class Exercise:
    """`trials` runs an answer on case after case, the smallest first; `lines` is what the answer may have of them.

    `marker` begins a comment in the answer's language: "#" for a function or class, "//" for a string of Metal.
    """

    def __init__(self, name: str, trials: Callable[[Any], Iterator[Trial]], *, lines: int, marker: str = "#") -> None:
        self.name, self.trials, self.lines, self.marker = name, trials, lines, marker

    def __repr__(self) -> str:
        return f"the exercise {self.name!r}, {self.lines} lines at the most"

    def show(self, answer: Any) -> Verdict:
        """The verdict, for a notebook to display. Raises nothing, whatever the answer does."""
        try:
            return self.check(answer)
        except ExerciseError as error:
            return Verdict(str(error), error)

    def check(self, answer: Any) -> Verdict:
        """The verdict on an answer that is right; an ExerciseError, with the smallest case found, for any other."""
        lines, blank = self._read(answer)
        count, trials = 0, self.trials(answer)
        while True:
            with redirect_stdout(io.StringIO()) as printed:
                trial = next(trials, None)
            if trial is None:
                break
            count += 1
            if trial.right:
                continue
            kind, verdict = (NotSolved, "not solved yet") if blank else (WrongAnswer, "not right yet")
            message = f"{self.name}: {verdict}.\n  given     {trial.given}\n  expected  {written(trial.expected)}\n"
            message += f"  got       {written(trial.got, 600)}"
            if printed.getvalue():
                message += "\n  printed\n" + indent(cut(printed.getvalue().rstrip(), 600), "    ")
            raise kind(message, trial, trial.draw(title=f"{self.name}: {verdict}")) from None
        if lines > self.lines:
            raise TooManyLines(f"{self.name}: right, but in {lines} lines; {self.lines} are enough.")
        cases = f"{count} cases" if count > 1 else "1 case"
        return Verdict(f"{self.name}: right. {cases}, {lines} of {self.lines} lines.", None)

    def _read(self, answer: Any) -> tuple[int, bool]:
        """How many lines the answer has, comments apart, and whether that is none. NotSolved for what is no answer."""
        if self.marker != "#":
            if not isinstance(answer, str):
                raise NotSolved(f"{self.name}: expected a string of Metal, got {written(answer)}")
            code = [line.split("//")[0] for line in answer.splitlines()]
            return sum(bool(line.strip()) for line in code), not "".join(code).strip()
        return _lines_of(self.name, answer)


def attempt(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a call gives, as plain Python; a Failure where it raises, or does not end.

    Steps are counted rather than seconds, so that a verdict is the same on every machine. What never ends *inside* one
    of Python's own functions, such as sum(itertools.count()), takes no step and is not stopped.
    """
    steps, tracer = 0, sys.gettrace()

    def count(frame, event, argument):
        nonlocal steps
        frame.f_trace_opcodes = True  # `while True: pass` never comes to a new line
        steps += 1
        if steps > MAX_STEPS:
            raise _Stopped
        return count

    try:
        sys.settrace(count)
        try:
            result = call(*arguments, **options)
        finally:
            sys.settrace(tracer)
        return plain(result)
    except KeyboardInterrupt:
        raise
    except _Stopped as error:
        words = f"no end after {MAX_STEPS:,} steps: is there a loop without an end?"
        return Failure(error, words + _where(error))
    except RecursionError as error:
        return Failure(error, f"RecursionError: it calls itself without an end{_where(error)}")
    except BaseException as error:  # SystemExit too: an answer ends itself, not the notebook
        said = f": {error}" if str(error) else ""
        return Failure(error, f"{type(error).__name__}{cut(said)}{_where(error)}")


class _Stopped(BaseException):
    """Not an Exception: an answer's own `except Exception` must not catch it."""


def plain(value: Any) -> Any:
    """`value` as Python's own lists and numbers, so that an array or a tuple with the right contents is right."""
    if isinstance(value, str):
        return Quoted(value)
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if hasattr(value, "tolist") and not isinstance(value, type):  # NumPy's and MLX's arrays and numbers
        return value.tolist()
    return value


def same(expected: Any, got: Any) -> bool:
    """Equal, and of the same kind: True is not 1, and 2.0 is no block id."""
    if isinstance(expected, list):
        return isinstance(got, list) and len(got) == len(expected) and all(map(same, expected, got))
    return (isinstance(got, str) if isinstance(expected, str) else type(got) is type(expected)) and got == expected


def close(expected: Any, got: Any, relative: float = 1e-9) -> bool:
    """Numbers, or lists of them, that agree but for rounding. A NaN agrees with nothing."""
    if isinstance(expected, list):
        return isinstance(got, list) and len(got) == len(expected) and all(map(close, expected, got))
    if isinstance(got, bool) or not isinstance(got, int | float):
        return False
    return math.isclose(got, expected, rel_tol=relative)


def _where(error: BaseException) -> str:
    """The line of the answer's own text at which it happened."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    file = next((file for file, _ in frames if not file.startswith(_PACKAGE)), "")
    text = next((linecache.getline(file, line).strip() for name, line in reversed(frames) if name == file), "")
    return f", at `{text}`" if text else ""


def _code_of(answer: Any) -> CodeType | None:
    """The code of a function, or of a class's first method."""
    parts = [answer, *vars(answer).values()] if isinstance(answer, type) else [answer]
    return next((part.__code__ for part in parts if isinstance(getattr(part, "__code__", None), CodeType)), None)


def _lines_of(name: str, answer: Any) -> tuple[int, bool]:
    """Lines with code in the body of a function or class (a semicolon counts as a line's end), and whether it is
    empty. NotSolved when the text cannot be had."""
    code = _code_of(answer)
    text = "".join(linecache.getlines(code.co_filename)) if code else ""
    try:
        found = [
            node
            for node in ast.walk(ast.parse(dedent(text)))
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            and node.name == getattr(answer, "__name__", None)
            and code
            and node.lineno <= code.co_firstlineno <= (node.end_lineno or 0)
        ]
    except SyntaxError:
        found = []
    if not found:
        what = f"{answer.__name__!r}" if isinstance(answer, type) else type(answer).__name__
        if isinstance(answer, type) and not code and answer.__module__ != "builtins":
            raise NotSolved(f"{name}: the class {what} has no method yet")
        if getattr(answer, "__name__", "") == "<lambda>":
            what = "a lambda, which has no name"
        raise NotSolved(f"{name}: expected a function or class, written in a cell with its name, got {what}")
    handlers = (node for node in ast.walk(found[-1]) if isinstance(node, ast.ExceptHandler))
    if any(node.type is None or ast.unparse(node.type) == "BaseException" for node in handlers):
        raise WrongAnswer(f"{name}: `except:` would also catch what ends an endless loop: name the exception.")
    body = found[-1].body
    if (
        isinstance(body[0], ast.Expr)
        and isinstance(body[0].value, ast.Constant)
        and isinstance(body[0].value.value, str)
    ):
        body = body[1:]
    if not body:
        return 0, True
    first, last = body[0].lineno, body[-1].end_lineno or 0
    lines: set[int] = set()
    semicolons = 0
    for token in tokenize.generate_tokens(io.StringIO(dedent(text)).readline):
        if first <= token.start[0] <= last and token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
            semicolons += token.string == ";"
    return len(lines) + semicolons, all(ast.unparse(node) in _NOTHING_YET for node in body)


_NOTHING_YET = ("...", "pass", "raise NotImplementedError", "raise NotImplementedError()")
_NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
