"""Evaluations and benchmarks. `eval NAME` is evals/NAME.py, `bench NAME` is evals/bench_NAME.py (found by its name).

Each such module has `add_arguments(parser: argparse.ArgumentParser) -> None` and `run(args: argparse.Namespace) ->
dict`, JSON-ready; its docstring is the command's help. A benchmark returns `{"meta": ..., "rows": [...]}` as
architecture.md, section 5, says (`bench.py` makes both) and raises BenchError before any timing where results disagree.
"""
