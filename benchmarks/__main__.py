"""`python -m benchmarks NAME`: one of the benchmarks, printed as a table."""

from __future__ import annotations

import argparse
import os
from importlib import import_module

NAMES = ("attention", "engine", "mlx_lm", "scheduler", "viz")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--rounds", type=int, default=15, help="how often each candidate is timed (default 15)")
    arguments = parser.parse_args()
    # A peer's threads must not spin on, waiting for more, while the next candidate runs. Before anything starts them.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    import_module(f"benchmarks.{arguments.name}").main(arguments.rounds)


if __name__ == "__main__":
    main()
