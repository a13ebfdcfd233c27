"""Distillation: CE, plain KD, FitNets, MiniLM relations, DFAD as published, DFAD, and each mend left out, per case."""

import argparse
import json
import logging
import os
from pathlib import Path
from typing import Any, Protocol

from ml_core.config import from_mapping, to_mapping
from ml_core.distill.tasks.request import Request, Tuned
from ml_core.distill.tasks.results import CaseResult
from ml_core.distill.tasks.systems import names_expand
from ml_core.errors import InputError
from ml_core.evals.bench import meta
from ml_core.evals.distill_rows import REPLICATES, rows_of

FAMILIES = ("digits", "fraud", "text", "films")
_LOG = logging.getLogger(__name__)


class Trainer(Protocol):
    """Who trains: train and evals stand side by side, so the command line hands the one to the other."""

    def measure(self, request: Request, *, tuned: Tuned) -> list[CaseResult]:
        """All cells of the request, those that are there already included."""

    def tune(self, request: Request, *, case: str) -> Tuned:
        """Settings chosen on the dev split of the case."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--tasks, --systems, --seeds, --quick, --tune, --tuned, --out, --work, --device, and where the files are."""
    parser.add_argument("--tasks", default="digits,fraud", help=f"{', '.join(FAMILIES)}, or (parts of) cases' names")
    parser.add_argument("--systems", default="six", help='names, "six", "ablate" (every mend left out), "variants"')
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small splits and two epochs: does it run?")
    parser.add_argument("--tune", metavar="CASE", help="first choose settings on this case's dev split")
    parser.add_argument("--tuned", type=Path, help="JSON of settings that --tune chose (WORK/tuned.json unless given)")
    parser.add_argument("--out", type=Path, help="write the result there too")
    parser.add_argument("--merge", action="store_true", help="keep the rows of other cases that --out has already")
    parser.add_argument("--work", type=Path, default=Path("var/bench/distill"), help="ledger, logits, teachers, caches")
    parser.add_argument("--device", default="auto", help="cuda where there is one")
    parser.add_argument("--cache", action="store_true", help="teacher's features from the disk: pays on a CPU")
    parser.add_argument("--graphs", action="store_true", help="training steps as CUDA graphs: small students on a GPU")
    parser.add_argument("--worker", action="store_true", help="stop, without rows, when others are at all that is left")
    parser.add_argument("--recorded", action="store_true", help="rows of what --work holds, wherever it was trained")
    parser.add_argument("--replicates", type=int, default=REPLICATES)
    parser.add_argument("--text-data", type=Path, help="folder of TASK/{train,dev}.parquet")
    parser.add_argument("--teacher", type=Path, help="folder of the text teacher (config.json, safetensors, tokenizer)")
    parser.add_argument("--student", type=Path, help="folder of the 6 x 384 student's start; random without")
    parser.add_argument("--general", type=Path, help="folder of other students' starts, from recipes text_general_*")
    parser.add_argument("--films", type=Path, help="folder of chest films with labels.csv")
    parser.add_argument("--stem", type=Path, help="EfficientNet-Lite0 tensors (safetensors); random without")


def run(args: argparse.Namespace, *, trainer: Trainer) -> dict[str, Any]:
    """Measure, and write `--out`; interrupted and called again it goes on with the cells that the ledger lacks."""
    request = Request(
        tasks=_words(args.tasks),
        systems=tuple(names_expand(_words(args.systems))),
        seeds=args.seeds,
        quick=args.quick,
        work=args.work,
        device=args.device,
        cached=args.cache,
        graphs=args.graphs,
        text_data=args.text_data,
        teacher=args.teacher,
        student=args.student,
        general=args.general,
        films=args.films,
        stem=args.stem,
        waits=not args.worker,
        recorded=args.recorded,
    )
    if args.seeds < 1:
        raise InputError("seeds: at least one")
    if args.worker and args.out:
        raise InputError("worker: computes no rows, so there is nothing to write to --out")
    if args.recorded and (args.worker or args.tune):
        raise InputError("recorded: trains nothing, so it goes with neither --worker nor --tune")
    path = args.tuned or args.work / "tuned.json"
    if args.tune:
        path = args.work / "tuned.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")  # other processes may be tuning too
        partial.write_text(json.dumps(to_mapping(trainer.tune(request, case=args.tune)), indent=1))
        partial.replace(path)
    if args.tuned and not path.exists():
        raise InputError(f"tuned: {path} does not exist")
    tuned = from_mapping(Tuned, json.loads(path.read_text())) if path.exists() else Tuned()
    results = trainer.measure(request, tuned=tuned)
    about = meta("distill", packages=("torch", "numpy", "timm", "transformers", "lightgbm", "scikit-learn"))
    about |= {"tuned": to_mapping(tuned), "seeds": args.seeds, "quick": args.quick, "replicates": args.replicates}
    # the cells' own: rows may be computed elsewhere than their students were trained
    about["device"] = ", ".join(sorted({cell.device for result in results for cell in result.cells}))
    rows = [row | {"run": about["date"]} for row in rows_of(results, replicates=args.replicates)]
    body: dict[str, Any] = {"meta": about, "rows": rows}
    if args.out:
        if args.merge and args.out.exists():
            body = merged(json.loads(args.out.read_text()), new=body)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(_text(body))
        _LOG.info("wrote %s", args.out)
    return body


def merged(old: dict[str, Any], *, new: dict[str, Any]) -> dict[str, Any]:
    """`new` with the rows of those cases of `old` that it does not have; meta.earlier keeps the runs they are of."""
    cases = {row["case"] for row in new["rows"]}
    kept = [row for row in old["rows"] if row["case"] not in cases]
    runs = {row["run"] for row in kept}
    before = [{key: value for key, value in old["meta"].items() if key != "earlier"}, *old["meta"].get("earlier", [])]
    earlier = [about for about in before if about["date"] in runs]
    return {"meta": new["meta"] | {"earlier": earlier}, "rows": kept + new["rows"]}


def _text(body: dict[str, Any]) -> str:
    """The result as JSON, a line a row."""
    rows = ",\n".join(json.dumps(row) for row in body["rows"])
    return f'{{"meta": {json.dumps(body["meta"], indent=1)},\n"rows": [\n{rows}\n]}}\n'


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
