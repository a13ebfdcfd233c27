"""What quantization costs in accuracy: FP32, converted without training (PTQ), and after two epochs of it (QAT).

Every figure is of the converted integer model on examples that nothing was trained, calibrated or chosen on, beside
FP32 on the same ones; intervals are 95 % bootstraps over these examples, both models drawn together. Of QAT's rates,
and of no training beside them, the self-teacher's loss on dev examples chooses, each system and task for itself.
"""

import argparse
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from ml_core.distill.tasks.metrics import Array, Metric
from ml_core.errors import InputError
from ml_core.evals.bench import meta
from ml_core.evals.quant_report import report_subject
from ml_core.evals.quant_tasks import Subject, digits_subject, fraud_subject, text_subject
from ml_core.quant import Quantizer
from ml_core.seed import numpy_generator, seed_all

TASKS = ("digits", "sst2", "fraud", "report", "ag_news")
WORST = "quant/worst_task"
EPOCHS = 2
RATES = (1.0, 0.1)  # of the subject's own
_REPLICATES = 2_000
_LOG = logging.getLogger(__name__)

# what is measured: options of the Quantizer, and whether it is trained. "assay" and "ptq" are the 8 bits that ship.
SYSTEMS: dict[str, tuple[dict[str, Any], bool]] = {
    "assay": ({"bits": 8}, True),
    "ptq": ({"bits": 8}, False),
    "assay_static": ({"bits": 8, "activations": "tensor", "smooth": 0.5, "learn_weight_scales": True}, True),
    "ptq_static": ({"bits": 8, "activations": "tensor"}, False),
    "ptq_static_smooth": ({"bits": 8, "activations": "tensor", "smooth": 0.5}, False),
    "assay_int6": ({"bits": 6}, True),
    "ptq_int6": ({"bits": 6}, False),
    "assay_w4a8": ({"bits": 4, "activation_bits": 8, "learn_weight_scales": True}, True),
    "ptq_w4a8": ({"bits": 4, "activation_bits": 8}, False),
    "assay_int4": ({"bits": 4, "learn_weight_scales": True}, True),
    "ptq_int4": ({"bits": 4}, False),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--tasks, --systems, --text-data, --text-model, --quick, --out."""
    parser.add_argument("--tasks", default="digits,fraud,report", help=", ".join(TASKS))
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="some of them, by name")
    parser.add_argument("--text-data", type=Path, help="folder of TASK/{train,dev}.parquet, for sst2 and ag_news")
    parser.add_argument("--text-model", type=Path, help="folder of the text encoder (config.json, safetensors)")
    parser.add_argument("--quick", action="store_true", help="few examples: does it run?")
    parser.add_argument("--out", type=Path, help="write the result there too, after every task")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, quantize, measure. Raises InputError for tasks and systems that there are none of."""
    names, systems = (tuple(word for word in words.split(",") if word) for words in (args.tasks, args.systems))
    for given, known, what in ((names, TASKS, "tasks"), (systems, tuple(SYSTEMS), "systems")):
        if not given or (wrong := [name for name in given if name not in known]):
            raise InputError(f"{what}: {', '.join(wrong) if given else 'none'} is not among {', '.join(known)}")
    about = meta("quant", packages=("torch", "numpy", "timm", "transformers", "scikit-learn"))
    about |= {"quick": args.quick, "epochs": EPOCHS, "replicates": _REPLICATES, "tasks": {}}
    body: dict[str, Any] = {"meta": about, "rows": []}
    for name in names:
        seed_all(0)
        began = time.monotonic()
        subject = _subject(name, args)
        about["tasks"][name] = {"about": subject.about, "lr": subject.lr, "fp32_s": round(time.monotonic() - began)}
        body["rows"] += _measured(name, subject, systems)
        about["tasks"][name]["all_s"] = round(time.monotonic() - began)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(body | {"rows": body["rows"] + worst_rows(body["rows"])}, indent=1) + "\n")
    return body | {"rows": body["rows"] + worst_rows(body["rows"])}


def worst_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each system the row of its largest loss, as the case WORST."""
    found = []
    losses = [row for row in rows if row["metric"] == "loss_pct"]
    for system in dict.fromkeys(row["system"] for row in losses):
        worst = max((row for row in losses if row["system"] == system), key=lambda row: row["value"])
        found.append(worst | {"case": WORST, "task": worst["case"].removeprefix("quant/")})
    return found


def loss_interval(exact: Array, given: Array, labels: Array, *, metric: Metric) -> tuple[float, float, float]:
    """Loss in percent of the exact model's figure, with a paired 95 % bootstrap interval over examples."""
    values = [metric(outputs, labels) for outputs in (exact, given)]
    n = len(labels)
    rng = numpy_generator(0, "quant", "bootstrap")

    def loss(weight: Array) -> float:
        whole, part = (value(weight) for value in values)
        return 100.0 * (whole - part) / whole if whole else 0.0

    drawn = [loss(np.bincount(rng.integers(n, size=n), minlength=n).astype(np.float64)) for _ in range(_REPLICATES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return loss(np.ones(n)), float(low), float(high)


def _measured(name: str, subject: Subject, systems: tuple[str, ...]) -> list[dict[str, Any]]:
    exact = subject.answers(subject.model.eval())
    size = sum(each.numel() * each.element_size() for each in subject.model.parameters())
    rows = []
    for case, (metric, outputs, labels) in exact.items():
        value = metric(outputs, labels)(np.ones(len(labels)))
        rows.append(_row(case, "fp32", _name(metric), value, "share", n=len(labels)))
        rows.append(_row(case, "fp32", "bytes", size, "B", n=1))
    for system in systems:
        options, trained = SYSTEMS[system]
        began = time.monotonic()
        quantizer, rate = _quantizer(subject, options, trained=trained)
        model, report = quantizer.convert()
        for case, (metric, outputs, labels) in subject.answers(model).items():
            value = metric(outputs, labels)(np.ones(len(labels)))
            loss, low, high = loss_interval(exact[case][1], outputs, labels, metric=metric)
            rows.append(_row(case, system, "loss_pct", loss, "%", n=len(labels), low=low, high=high))
            rows.append(_row(case, system, _name(metric), value, "share", n=len(labels)))
            rows.append(_row(case, system, "bytes", sum(layer.bytes_after for layer in report), "B", n=1))
            if trained:
                rows.append(_row(case, system, "rate", rate, "1", n=1))
            _LOG.info("%s %s: %.4f, loss %.2f %% (%.2f to %.2f)", case, system, value, loss, low, high)
        _LOG.info("%s %s: %.0f s", name, system, time.monotonic() - began)
    return rows


def _quantizer(subject: Subject, options: dict[str, Any], *, trained: bool) -> tuple[Quantizer, float]:
    """Calibrated and, if trained, the best on dev examples of each rate's and of none; and its rate (0: none)."""
    best, chosen, least = _calibrated(subject, options), 0.0, math.inf
    for rate in (subject.lr * share for share in RATES) if trained else ():
        quantizer = _calibrated(subject, options).fit(
            subject.batches,
            epochs=EPOCHS,
            outputs=subject.outputs,
            lr=rate,
            steps=EPOCHS * sum(1 for _ in subject.batches(0)),
            held_out=subject.held_out,
        )
        assert quantizer.held_out_losses is not None
        before, after = quantizer.held_out_losses
        _LOG.info("rate %g: %.3g on dev examples, %.3g before", rate, after, before)
        if after < min(before, least):
            best, chosen, least = quantizer, rate, after
    return best, chosen


def _calibrated(subject: Subject, options: dict[str, Any]) -> Quantizer:
    seed_all(1)
    quantizer = Quantizer(subject.model, patches=True, **options)
    return quantizer.calibrate(subject.batches, outputs=subject.outputs)


def _row(
    case: str, system: str, metric: str, value: float, unit: str, *, n: int, low: float | None = None,
    high: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    value = float(value)
    ends = {"low": value if low is None else low, "high": value if high is None else high}
    return {"case": case, "system": system, "metric": metric, "value": value, "unit": unit, **ends, "n": n}


def _name(metric: Metric) -> str:
    return str(getattr(metric, "__name__", "metric"))


def _subject(name: str, args: argparse.Namespace) -> Subject:
    if name == "digits":
        return digits_subject(quick=args.quick)
    if name == "fraud":
        return fraud_subject(quick=args.quick)
    if name == "report":
        return report_subject(quick=args.quick)
    if args.text_data is None or args.text_model is None:
        raise InputError(f"text_data, text_model: {name} needs both")
    return text_subject(name, data=args.text_data, folder=args.text_model, quick=args.quick)
