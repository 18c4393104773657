"""python -m paged_core: the demo shows the allocator's own state and can fail; wrong questions get a sentence."""

import io
import re
import subprocess
import sys

import pytest

from paged_core import demo
from paged_core.__main__ import main
from paged_core.executors import NAMES, VARIABLE, available_executors


@pytest.fixture
def played():
    """The scene as it stands when the story has been told."""
    scene = demo.Scene()
    for _ in demo.story(scene):
        pass
    return scene


def test_the_picture_is_the_state():
    scene = demo.Scene()
    scene.append("A", 9)
    scene.append("B", 5)
    scene.append("A", 4)  # 13 tokens: a fourth block, 5, for B has 3 and 4
    lines = demo.draw(scene.allocator, scene.seqs, colour=False)
    blocks = re.findall(r"\[(.{4})\]", "\n".join(lines))
    assert blocks == ["AAAA", "AAAA", "AAAA", "BBBB", "B...", "A..."] + ["    "] * 14
    assert "in use  6" in lines[0]
    assert "free 14" in lines[0]
    assert lines[-3] == "A  13 tokens   block table 0 1 2 5"
    assert lines[-2] == "B   5 tokens   block table 3 4"
    assert lines[-1] == ""


def test_colour_changes_nothing_but_colour(played):
    plain, coloured = (demo.draw(played.allocator, played.seqs, colour=colour) for colour in (False, True))
    assert plain != coloured
    assert plain == [re.sub(r"\033\[[\d;]*m", "", line) for line in coloured]


def test_the_story_fills_the_pool_and_reuses_what_was_freed(played):
    assert played.allocator.peak_in_use == played.allocator.capacity
    assert sorted(played.seqs) == ["A", "C"]
    assert played.seqs["A"].blocks == [0, 1, 2, 5, 7, 9, 11, 13, 15, 17, 19, 18]
    assert played.seqs["C"].blocks == [16, 14]


def test_every_executor_here_agrees_with_dense(played):
    out = io.StringIO()
    assert demo.verdict(played, out, available_executors(), demo.auto_executor())
    shown = {line.split()[0] for line in out.getvalue().splitlines() if line.startswith("  ")}
    assert shown >= set(NAMES)
    assert "Equal:" in out.getvalue()


@pytest.mark.parametrize("wrong", [(0, 6), (11, 14)])
def test_a_wrong_block_table_is_found_out(played, wrong):
    """The first entry of A's table led to a block that B left behind; the last one to a block of C's."""
    entry, block = wrong
    played.seqs["A"].blocks[entry] = block
    out = io.StringIO()
    assert not demo.verdict(played, out, ["ops"], "ops")
    assert "NOT equal" in out.getvalue()


def test_without_a_terminal_only_the_key_frames_are_written_at_once():
    out = io.StringIO()
    assert demo.run("ops", out=out)
    text = out.getvalue()
    assert "\033" not in text
    assert text.count("pool   20 blocks") == 8
    assert "PoolExhausted: 1 block(s) needed, 0 of 20 free" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 120


def test_in_a_terminal_every_frame_covers_the_one_before(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for name, value in (("COLUMNS", "100"), ("TERM", "xterm-256color")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    demo.run("ops", fast=True, out=out)
    frames = re.split(r"\033\[(\d+)A", out.getvalue())
    assert len(frames) > 100  # some fifty moves, and the heights between them
    heights = {frame.count("\n") for frame in frames[:-1:2]}
    assert heights == set(map(int, frames[1::2]))
    assert len(heights) == 1
    monkeypatch.setenv("COLUMNS", "70")  # lines would wrap, and redrawing in place would smear
    demo.run("ops", fast=True, out=(narrow := Terminal()))
    assert not re.search(r"\033\[\d+A", narrow.getvalue())


def test_executors_lists_each_with_its_reason(capsys):
    assert main(["executors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == list(NAMES)
    for line in lines[:-1]:
        name, said = line.split(maxsplit=1)
        assert said == "can run here" if name in available_executors() else said.startswith("cannot run here: ")
    assert lines[-1] == f'"auto" is {demo.auto_executor()}.'


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "the following arguments are required: COMMAND"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["demo", "--executor", "abacus"], 'executor: expected "auto" or one of metal, cuda'),
    ],
)
def test_a_wrong_command_line_gets_a_sentence_and_status_2(arguments, message):
    """In a process of its own: what a person sees, with no traceback in it."""
    done = subprocess.run([sys.executable, "-m", "paged_core", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_executor_from_the_environment_that_does_not_exist_gets_a_sentence(monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, "abacus")
    assert main(["demo"]) == 2
    assert capsys.readouterr().err.startswith(f'paged-core: {VARIABLE}: expected "auto" or one of')


def test_a_wrong_answer_is_status_1(monkeypatch):
    monkeypatch.setattr(demo, "run", lambda *_, **__: False)
    assert main(["demo"]) == 1
