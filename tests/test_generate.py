"""python -m paged_core generate, as a person runs it: the shipped model answers."""

import re
import subprocess
import sys

import pytest

pytest.importorskip("tokenizers", reason="the tokenizer's library is not installed: pip install '.[models]'")

from paged_core.__main__ import main
from paged_core.generate import _Words
from paged_core.models import load


def test_generate_model_answers_from_the_shipped_checkpoint():
    command = [sys.executable, "-m", "paged_core", "generate", "In the beginning", "--max-new-tokens", "20"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said.stderr == ""
    text, _, count = said.stdout.strip().rpartition("\n\n")
    assert text.startswith("In the beginning") and len(text.split()) > 12
    assert re.fullmatch(r"20 tokens for 1 prompt in [\d.]+ s, [\d,]+ a second; 2 of 512 blocks at most", count)


def answer(capsys, *arguments):
    assert main(["generate", *arguments, "--max-new-tokens", "12"]) == 0
    return capsys.readouterr().out.rpartition("\n\n")[0]


def test_generate_engine_answers_several_as_it_answers_one(capsys):
    one, two = answer(capsys, "And God said,"), answer(capsys, "And God said,", "The LORD")
    assert two.startswith(one + "\n\nThe LORD")


def test_generate_engine_is_seeded(capsys):
    one = answer(capsys, "And God said,")
    assert answer(capsys, "And God said,") == one != answer(capsys, "And God said,", "--seed", "1")
    greedy = answer(capsys, "And God said,", "--temperature", "0")
    assert greedy == answer(capsys, "And God said,", "--temperature", "0", "--seed", "1")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([""], "prompt: expected some text to go on from, got none"),
        (["a", "--model", "nowhere"], "nowhere: no such folder"),
        (["a", "--temperature", "-1"], "temperature: expected 0 or more, got -1.0"),
        (["a", "--max-new-tokens", "2000"], "the model has 1024 positions"),
        (["a", "--max-new-tokens", "200", "--num-blocks", "2"], "need 13 blocks of 16; the pool has 2"),
        (["a", "--executor", "gpu"], 'executor: expected "auto" or one of'),
    ],
)
def test_generate_engine_says_what_is_wrong(capsys, arguments, message):
    assert main(["generate", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("paged-core: ") and message in said.err


def test_generate_model_holds_half_a_letter_back():
    tokenizer = load().tokenizer
    ids = tokenizer.encode("é").ids  # two bytes, and no token for both
    words = _Words(tokenizer, [])
    assert len(ids) == 2 and [words.after(token) for token in ids] == ["", "é"]
    assert words.after(0) == ""  # the token that ends an answer is no text
