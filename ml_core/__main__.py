"""Command line: python -m ml_core {train,distill,quantize,eval,bench,measure,describe}, each with --json."""

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ml_core.errors import EngineError, InputError, RunError

EVALS = ("fraud", "report")
TABLES = Path("var") / "cache" / "engines"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. With --json the last line of stdout is one JSON object."""
    arguments, rest = _parser().parse_known_args(argv)
    if rest and arguments.command not in {"eval", "bench"}:
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    try:
        # whatever a library prints is a log: stdout belongs to the result
        with contextlib.redirect_stdout(sys.stderr):
            status, result = arguments.run(arguments, rest)
    except EngineError as error:
        status, result = 2, {"error": error.code, "message": str(error)}
        print(f"{error.code}: {error}", file=sys.stderr)
    wants_json = arguments.json or "--json" in rest
    if wants_json:
        print(json.dumps(result))
    elif status == 0:
        print(_readable(result))
    return status


def bench_names() -> list[str]:
    """The benchmarks that exist: ml_core/evals/bench_NAME.py."""
    folder = Path(__file__).parent / "evals"
    return sorted(path.stem.removeprefix("bench_") for path in folder.glob("bench_*.py"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ml_core", description="The engine of Assay, by hand.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = _command(commands, "train", _train, "run a training folder: spec.json in, artifact/ out")
    train.add_argument("folder", type=Path)

    distill = _command(commands, "distill", _distill, "distil a student by a named recipe")
    distill.add_argument("--recipe", required=True, help="its name, as in recipes.py")
    distill.add_argument("--out", type=Path, help="folder of the run (var/runs/RECIPE unless given)")
    distill.add_argument("--seed", type=int, default=0)
    distill.add_argument("--input", action="append", default=[], metavar="NAME=PATH", help="an input of the recipe")
    distill.add_argument("params", nargs="*", metavar="param=value")

    quantize = _command(commands, "quantize", _quantize, "turn a float artifact into an INT8 one, without training")
    quantize.add_argument("artifact", type=Path)
    quantize.add_argument("--out", type=Path, required=True)

    evaluate = _command(commands, "eval", _eval, "measure a student on data: eval {fraud,report} ...", add_help=False)
    evaluate.add_argument("name", choices=EVALS)

    bench = _command(commands, "bench", _bench, f"run a benchmark: {', '.join(bench_names())}", add_help=False)
    bench.add_argument("name", choices=bench_names())

    describe = _command(commands, "describe", _describe, "say what an artifact is, and which engine serves it here")
    describe.add_argument("artifact", type=Path)
    describe.add_argument("--tables", type=Path, default=TABLES, help=f"folder of measured tables ({TABLES})")

    measure = _command(commands, "measure", _measure, "measure which engine serves an artifact fastest on this machine")
    measure.add_argument("artifact", type=Path)
    measure.add_argument("--tables", type=Path, default=TABLES, help=f"folder of measured tables ({TABLES})")
    measure.add_argument("--rounds", type=int, default=7, help="how often every engine is timed for each shape")
    measure.add_argument("--seconds", type=float, default=0.1, help="how long each time")
    return parser


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Any,
    text: str,
    *,
    add_help: bool = True,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text, add_help=add_help, allow_abbrev=False)
    command.add_argument("--json", action="store_true", help="print the result as one JSON object, last on stdout")
    command.set_defaults(run=run)
    return command


def _train(arguments: argparse.Namespace, rest: list[str]) -> tuple[int, dict[str, Any]]:
    from ml_core.recipes import recipe
    from ml_core.train.runner import run_folder, summary

    if not arguments.folder.is_dir():
        raise RunError(f"{arguments.folder} is not a folder")
    status = run_folder(arguments.folder, defaults=recipe)
    return status, dict(summary(arguments.folder))


def _distill(arguments: argparse.Namespace, rest: list[str]) -> tuple[int, dict[str, Any]]:
    from dataclasses import replace

    from ml_core.contracts import RunSpec
    from ml_core.recipes import distillation
    from ml_core.train.runner import spec_write

    base = distillation(arguments.recipe)
    params = {name: _number(text) for name, text in map(_pair, arguments.params)}
    inputs = {name: str(Path(text).resolve()) for name, text in map(_pair, arguments.input)}
    folder = arguments.out or Path("var") / "runs" / arguments.recipe
    if not isinstance(base, RunSpec):
        from ml_core.train.distill.named import named_run

        return 0, named_run(base, folder=folder, seed=arguments.seed, inputs=inputs, params=params)
    spec = replace(base, seed=arguments.seed, params={**base.params, **params}, inputs={**base.inputs, **inputs})
    arguments.folder = folder
    spec_write(arguments.folder, spec=spec)
    return _train(arguments, rest)


def _quantize(arguments: argparse.Namespace, rest: list[str]) -> tuple[int, dict[str, Any]]:
    from dataclasses import asdict

    from ml_core.quant.artifact import quantize_artifact

    description, layers = quantize_artifact(arguments.artifact, out=arguments.out)
    return 0, {"model": asdict(description), "layers": [asdict(layer) for layer in layers]}


def _eval(arguments: argparse.Namespace, rest: list[str]) -> tuple[int, dict[str, Any]]:
    return _module(f"ml_core.evals.{arguments.name}", prog=f"eval {arguments.name}", rest=rest)


def _bench(arguments: argparse.Namespace, rest: list[str]) -> tuple[int, dict[str, Any]]:
    seams: dict[str, Any] = {}
    if arguments.name == "distill":
        # evals stand beside train and cannot import it: a benchmark of trainings is handed the trainer
        seams["trainer"] = import_module("ml_core.train.distill.catalogue")
    return _module(f"ml_core.evals.bench_{arguments.name}", prog=f"bench {arguments.name}", rest=rest, **seams)


def _describe(arguments: argparse.Namespace, rest: list[str]) -> tuple[int, dict[str, Any]]:
    from dataclasses import asdict

    from ml_core import artifacts
    from ml_core.serving.engines.artifact import described as lines_of

    manifest = artifacts.read(arguments.artifact)
    described = asdict(artifacts.describe(arguments.artifact))
    files = {name: asdict(entry) for name, entry in manifest.files.items()}
    engines = {"engines": lines_of(arguments.artifact, tables_in=arguments.tables)}
    return 0, described | {"config": manifest.config, "git_revision": manifest.git_revision, "files": files} | engines


def _measure(arguments: argparse.Namespace, rest: list[str]) -> tuple[int, dict[str, Any]]:
    from ml_core.config import to_mapping
    from ml_core.serving.engines.artifact import measure_artifact
    from ml_core.serving.engines.table import lines

    if arguments.rounds < 1:
        raise InputError(f"rounds: {arguments.rounds} is not at least 1")
    table, path = measure_artifact(
        arguments.artifact, into=arguments.tables, rounds=arguments.rounds, seconds=arguments.seconds
    )
    return 0, {"file": str(path), "engines": lines(table), "table": to_mapping(table)}


def _module(name: str, *, prog: str, rest: list[str], **seams: Any) -> tuple[int, dict[str, Any]]:
    """Parse the rest with the module's own arguments, and run it (evals/__init__.py has the contract)."""
    module = import_module(name)
    parser = argparse.ArgumentParser(prog=f"python -m ml_core {prog}", description=module.__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object, last on stdout")
    module.add_arguments(parser)
    return 0, module.run(parser.parse_args(rest), **seams)


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise InputError(f"{text!r} is not of the form name=value")
    return name, value


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _readable(result: dict[str, Any]) -> str:
    if isinstance(result.get("rows"), list):
        lines = [
            f"{row['case']:<40} {row['system']:<24} {row['metric']:<14} {row['value']:>12.4g} {row['unit']}"
            for row in result["rows"]
        ]
        return "\n".join(lines)
    if isinstance(result.get("engines"), list):
        about = {name: value for name, value in result.items() if name not in ("engines", "table")}
        return "\n".join([json.dumps(about, indent=1), *result["engines"]])
    return json.dumps(result, indent=1)


if __name__ == "__main__":
    sys.exit(main())
