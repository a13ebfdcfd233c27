"""CUDA graphs in sixteen buckets: what a replay saves, what padding to a bucket costs, what memory the graphs share."""

import argparse
import time
from functools import partial
from typing import Any

import torch
from torch import nn

from ml_core.evals.bench import BenchError, row
from ml_core.evals.bench_superops import D, Encoder
from ml_core.layers.fuse import fuse
from ml_core.seed import torch_generator
from ml_core.serving.graphs import GraphRunner

LENGTHS = tuple(range(32, 513, 32))  # sixteen buckets of one text
TOLERANCE = 5e-3  # relative RMS of a padded replay against the same text alone, fp16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--seconds."""
    parser.add_argument("--seconds", type=float, default=0.3, help="time spent on each figure")


class Masked(nn.Module):
    """The encoder on a padded text: padding is seen by nobody."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """x (b n d); real (b n), True where a token is one."""
        for block in self.encoder.blocks:
            x = block(x, key_mask=real)
        return self.encoder.norm(x)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Capture, check, time. Raises BenchError without CUDA, or where a replay is wrong."""
    if not torch.cuda.is_available():
        raise BenchError("graphs: there is no CUDA here, and nothing else to measure")
    from ml_core.evals.gpu import cuda_times, gpu_meta

    model = _model()
    start = time.perf_counter()
    runner = GraphRunner(
        lambda x, real: model(x, real),
        device="cuda",
        examples=[_inputs(n) for n in LENGTHS],
        axes={"x": (None, "n", None), "real": (None, "n")},
        outputs=[(None, "n", None)],
    )
    rows = [_row("graphs/16_buckets", "capture", "s", [time.perf_counter() - start])]
    rows.append(_row("graphs/16_buckets", "pool", "bytes", [float(runner.pool.bytes)]))
    for n in (32, 100, 128, 500, 512):
        given = _inputs(n)
        with torch.no_grad():
            alone, replayed = model(**given), runner(**given)
            assert isinstance(replayed, torch.Tensor)
            off = float((replayed - alone).double().norm() / alone.double().norm())
            if not off <= TOLERANCE:
                raise BenchError(f"graphs: a replay of {n} tokens is {off:.1e} off, more than {TOLERANCE}")
            launched = cuda_times(partial(model, **given), seconds=args.seconds)
            times = cuda_times(partial(runner, **given), seconds=args.seconds)
        case = f"graphs/b1n{n}_masked"
        rows += [_row(case, "ms", "ms", times), _row(case, "ms", "ms", launched, system="assay_launched")]
    return {"meta": gpu_meta("graphs") | {"report": runner.report()}, "rows": rows}


@torch.no_grad()
def _model() -> Masked:
    torch.manual_seed(0)
    encoder = Encoder()
    for block in encoder.blocks:
        nn.init.normal_(block.attn.dpe.table)
    fused, _ = fuse(encoder.to("cuda", torch.float16).eval())
    return Masked(fused).eval()


def _inputs(n: int) -> dict[str, torch.Tensor]:
    x = torch.randn(1, n, D, generator=torch_generator(0, "bench", "graphs", n))
    return {"x": x.to("cuda", torch.float16), "real": torch.ones(1, n, dtype=torch.bool, device="cuda")}


def _row(case: str, metric: str, unit: str, values: list[float], *, system: str = "assay") -> dict[str, Any]:
    return row(case, system=system, metric=metric, unit=unit, values=values)
