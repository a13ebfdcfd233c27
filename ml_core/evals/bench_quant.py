"""Quantization: latency of linear layers on this CPU by each engine, and with --loss what it costs in accuracy.

Latency: QuantLinear by each integer engine against fp32 and bf16. Loss: bench_quant_loss, on the tasks named.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from ml_core.evals import bench_quant_loss
from ml_core.evals.bench import BenchError, meta, row, timed
from ml_core.quant.layers import QuantLinear
from ml_core.quant.scheme import engines_cpu, quantize_weight
from ml_core.seed import torch_generator

# (rows, in, out): the fraud student's widths, then the report student's
SHAPES = (
    (1, 64, 256),
    (32, 64, 256),
    (1000, 64, 256),
    (10000, 64, 256),
    (50000, 128, 128),
    (1, 384, 1536),
    (16, 384, 1536),
    (197, 384, 384),
    (197, 384, 1536),
    (3152, 384, 1536),
    (3152, 1536, 384),
)
LEAST_SQNR_DB = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--seconds, --loss, and those of bench_quant_loss."""
    parser.add_argument("--seconds", type=float, default=0.3, help="time spent on each figure; 0 leaves latency out")
    parser.add_argument("--loss", action="store_true", help="train, quantize and measure --tasks too (many minutes)")
    bench_quant_loss.add_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Check that the engines give the same answer, near fp32's, then time. Raises BenchError where they do not.

    With `loss` the rows and the description of bench_quant_loss stand behind.
    """
    rows = []
    with torch.no_grad():
        for shape in SHAPES if args.seconds else ():
            rows += _shape(shape, seconds=args.seconds)
    about = meta("quant")
    if args.loss:
        losses = bench_quant_loss.run(args)
        about, rows = losses["meta"], rows + losses["rows"]
    return {"meta": about, "rows": rows}


def _shape(shape: tuple[int, int, int], *, seconds: float) -> list[dict[str, Any]]:
    m, i, o = shape
    case = f"m{m} i{i} o{o}"
    generator = torch_generator(0, "bench", "quant", case)
    x = torch.randn(m, i, generator=generator)
    exact = nn.Linear(i, o)
    half = nn.Linear(i, o).bfloat16()
    half.load_state_dict(exact.state_dict())
    levels, scale = quantize_weight(exact.weight)
    systems: dict[str, nn.Module] = {
        f"int8 {engine}": QuantLinear(levels, scale, exact.bias, engine=engine) for engine in engines_cpu()
    }
    systems["int8 as served"] = QuantLinear(levels, scale, exact.bias)
    _gate(case, x=x, exact=exact, systems=systems)
    halved = x.bfloat16()
    calls: dict[str, Callable[[], Any]] = {name: partial(module, x) for name, module in systems.items()}
    calls |= {"fp32": partial(exact, x), "bf16": partial(half, halved)}
    return [
        row(case, system=name, metric="latency", unit="ms", values=timed(call, seconds=seconds))
        for name, call in calls.items()
    ]


def _gate(case: str, *, x: torch.Tensor, exact: nn.Module, systems: dict[str, nn.Module]) -> None:
    wanted = exact(x)
    outputs = {name: module(x) for name, module in systems.items()}
    first = next(iter(outputs.values()))
    for name, output in outputs.items():
        if not torch.allclose(output, first, rtol=1e-5, atol=1e-5):
            raise BenchError(f"{case}: {name} disagrees with the other integer engines")
        ratio = 10 * torch.log10(wanted.pow(2).sum() / (output - wanted).pow(2).sum())
        if not ratio > LEAST_SQNR_DB:
            raise BenchError(f"{case}: {name} is only {float(ratio):.1f} dB above its quantization noise")
