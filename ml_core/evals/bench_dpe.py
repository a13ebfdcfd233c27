"""DPE attention on this machine, forward and backward. On the CPU, fp32: naive, torch's SDPA with the bias written out,
and ours by blocks. On a GPU: see dpe_gpu.py.
"""

import argparse
from typing import Any

import torch
from torch import Tensor

from ml_core.evals.bench import BenchError, meta, row, timed
from ml_core.kernels.dpe_attention.op import Backend, dpe_attention
from ml_core.seed import torch_generator

SYSTEMS: tuple[Backend, ...] = ("naive", "sdpa", "blockwise")
TOLERANCE = 1e-4  # relative RMS of fp32 against float64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--device, --tokens, --seconds."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, nargs="+", help="default: 32 128 512 2048, on a GPU 8192 32768")
    parser.add_argument("--seconds", type=float, default=0.5, help="time spent on each figure")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Check all systems against naive in float64, then time them. Raises BenchError where they disagree."""
    if torch.device(args.device).type == "cuda":
        from ml_core.evals import dpe_gpu

        return dpe_gpu.run(args.tokens or [8192, 32768], seconds=args.seconds)
    rows = []
    for n in args.tokens or [32, 128, 512, 2048]:
        for causal in (False, True):
            q, k, v, table = _inputs(n)
            case = f"b1 h12 n{n} k64 {'causal' if causal else 'full'}"
            for system in SYSTEMS:
                _gate(case, inputs=(q, k, v, table), causal=causal, system=system)
            for system in SYSTEMS:
                rows += _times(case, inputs=(q, k, v, table), causal=causal, system=system, seconds=args.seconds)
    return {"meta": meta("dpe"), "rows": rows}


def _inputs(n: int) -> tuple[Tensor, ...]:
    generator = torch_generator(0, "bench", "dpe", n)
    q, k, v = (torch.randn(1, 12, n, 64, generator=generator) for _ in range(3))
    return q, k, v, torch.randn(12, 2 * n - 1, generator=generator)


def _gate(case: str, *, inputs: tuple[Tensor, ...], causal: bool, system: Backend) -> None:
    exact = dpe_attention(*(item.double() for item in inputs), causal=causal, backend="naive")
    got = dpe_attention(*inputs, causal=causal, backend=system).double()
    error = float((got - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt())
    if not error < TOLERANCE:
        raise BenchError(f"{case}: {system} is off by {error:.2e} (relative RMS), more than {TOLERANCE}")


def _times(
    case: str, *, inputs: tuple[Tensor, ...], causal: bool, system: Backend, seconds: float
) -> list[dict[str, Any]]:
    def forward() -> Tensor:
        with torch.no_grad():
            return dpe_attention(*inputs, causal=causal, backend=system)

    leaves = tuple(item.clone().requires_grad_() for item in inputs)

    def both() -> None:
        dpe_attention(*leaves, causal=causal, backend=system).sum().backward()

    return [
        row(case, system=system, metric="forward", unit="ms", values=timed(forward, seconds=seconds)),
        row(case, system=system, metric="forward+backward", unit="ms", values=timed(both, seconds=seconds)),
    ]
