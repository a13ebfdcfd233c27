"""Runs one benchmark by name: tests/bench/<name>.py, else `python -m ml_core bench <name> --json`."""

import importlib
import logging
import runpy
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]


def main(words: list[str]) -> int:
    """`--list` prints the names that live here; any other first word is the benchmark to run, the rest its options."""
    if words[:1] == ["--list"]:
        print(" ".join(sorted(_names())))
        return 0
    name, *options = words
    sys.path[:0] = [str(_ROOT), str(_ROOT / "platform"), str(_ROOT / "tests" / "support")]
    if name in _names():
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
        sys.argv = [name, *options]
        result = importlib.import_module(f"tests.bench.{name.replace('-', '_')}").main()
        return int(result or 0)
    sys.argv = ["ml_core", "bench", name, "--json", *options]
    runpy.run_module("ml_core", run_name="__main__")
    return 0


def _names() -> set[str]:
    return {path.stem.replace("_", "-") for path in _HERE.glob("*.py") if path.stem != "run"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
