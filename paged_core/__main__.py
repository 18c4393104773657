"""python -m paged_core: what this machine can run, and a demonstration."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from paged_core import demo, executors
from paged_core.errors import PagedCoreError
from paged_core.sampling import Sampling


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 all is well, 1 the answer was wrong, 2 the question was."""
    parser = argparse.ArgumentParser(prog="paged-core", description="Paged KV-cache attention.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("demo", help="watch a pool fill, and paged attention equal dense attention")
    command.add_argument("--executor", metavar="NAME", help="only this one (default: each that can run here)")
    command.add_argument("--fast", action="store_true", help="no pauses")
    command.set_defaults(run=_demo)

    command = commands.add_parser("generate", help="have a trained model go on from your words, out of a paged cache")
    command.add_argument("prompt", nargs="+", help="some text; several are answered at once")
    command.add_argument(
        "--model", metavar="FOLDER", help="a Hugging Face folder, or a name on its hub (default: ours)"
    )
    command.add_argument("--max-new-tokens", type=int, default=100, metavar="N", help="tokens at most (default: 100)")
    command.add_argument("--temperature", type=float, default=0.7, metavar="T", help="0: always the likeliest (0.7)")
    command.add_argument(
        "--top-p", type=float, default=0.9, metavar="P", help="share of the probability to draw from (0.9)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="another one, another answer (0)")
    command.add_argument(
        "--num-blocks", type=int, default=512, metavar="N", help="blocks of 16 tokens in the pool (512)"
    )
    command.add_argument("--executor", default="auto", metavar="NAME", help="what runs the kernels (auto)")
    command.set_defaults(run=_generate)

    command = commands.add_parser("executors", help="which executors can run here, and why the others cannot")
    command.set_defaults(run=_executors)

    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments)
    except (PagedCoreError, ValueError) as error:
        print(f"paged-core: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except (
        BrokenPipeError
    ):  # the reader has seen enough; let the interpreter's own last flush find nothing to complain of
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _demo(arguments: argparse.Namespace) -> int:
    return 0 if demo.run(arguments.executor, fast=arguments.fast) else 1


def _generate(arguments: argparse.Namespace) -> int:
    from paged_core import generate  # it draws in a tokenizer's library

    generate.run(
        arguments.prompt,
        model=arguments.model,
        max_new_tokens=arguments.max_new_tokens,
        sampling=Sampling(arguments.temperature, top_p=arguments.top_p, seed=arguments.seed),
        num_blocks=arguments.num_blocks,
        executor=arguments.executor,
    )
    return 0


def _executors(arguments: argparse.Namespace) -> int:
    for name in executors.NAMES:
        reason = executors.why_not(name)
        print(f"{name:<10}  {'can run here' if reason is None else f'cannot run here: {reason}'}")
    print(f'"auto" is {demo.auto_executor()}.')  # last, for the environment may name one that cannot run
    return 0


if __name__ == "__main__":
    sys.exit(main())
