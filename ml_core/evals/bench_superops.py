"""The 4 × 768 student on super-operators beside torch's own encoder: time, launches, and CUDA graphs' share of it.

On a GPU in fp16, as engine.md section 2 has it: each product's path is measured first, blocks are held against float64,
then timed eagerly and replayed. On a CPU the same in fp32, without graphs.
"""

import argparse
import copy
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ml_core.evals.bench import BenchError, meta, row, timed
from ml_core.evals.encoder_paths import TOLERANCE, measure_block
from ml_core.kernels.norm_qkv.paths import TABLE
from ml_core.layers.blocks import Block
from ml_core.layers.fuse import fuse, super_ops
from ml_core.layers.launches import count_launches
from ml_core.layers.superops import dispatch
from ml_core.seed import torch_generator
from ml_core.serving.graphs import runner_for

D, H, FFN, LAYERS, MAX_N = 768, 12, 3072, 4, 512
SHAPES = ((1, 128), (1, 512), (32, 128))
MODES = ("default", "reduce-overhead", "max-autotune")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--device, --seconds, --shapes, --measure, --no-compile."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=0.5, help="time spent on each figure")
    parser.add_argument("--shapes", nargs="+", default=[f"{b}x{n}" for b, n in SHAPES], help="BATCHxTOKENS")
    parser.add_argument("--measure", type=Path, help="write the measured paths to this file")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile's modes out")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure paths, check, then time. Raises BenchError where a system is wrong."""
    bench = _Bench(args)
    rows = [each for shape in args.shapes for each in bench.rows(*(int(size) for size in shape.split("x")))]
    if args.measure:
        TABLE.save(args.measure)
    if bench.cuda:
        from ml_core.evals.gpu import gpu_meta, roofline

        about, rows = gpu_meta("superops"), [*roofline(), *rows]
    else:
        about = meta("superops")
    return {"meta": about | {"paths": bench.paths}, "rows": rows}


class Encoder(nn.Module):
    """Blocks behind each other, and a last norm: the student without its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(D, H, FFN, max_n=MAX_N) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(D)

    def forward(self, x: Tensor) -> Tensor:
        """(b n d)."""
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class _Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.device = torch.device(args.device)
        self.cuda = self.device.type == "cuda"
        self.dtype = torch.float16 if self.cuda else torch.float32
        self.seconds, self.modes = args.seconds, () if args.no_compile else MODES
        self.paths: dict[str, list[str]] = {}
        torch.manual_seed(0)
        plain = Encoder()
        for block in plain.blocks:
            nn.init.normal_(block.attn.dpe.table)
        self.wide = copy.deepcopy(plain).to(self.device, torch.float64).eval()
        self.plain = plain.to(self.device, self.dtype).eval()
        self.fused, _ = fuse(copy.deepcopy(self.plain))
        layer = nn.TransformerEncoderLayer(D, H, FFN, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.peer = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False).to(self.device, self.dtype).eval()

    @torch.no_grad()
    def rows(self, b: int, n: int) -> list[dict[str, Any]]:
        """All systems on b × n tokens."""
        x = torch.randn(b, n, D, generator=torch_generator(0, "bench", "superops", b, n)).to(self.device, self.dtype)
        name = f"b{b}n{n}"
        measure_block(self.fused.blocks[0], x, clock=self._clock)
        taken = dispatch(next(iter(super_ops(self.fused).values())), x)
        self.paths[name] = [str(choice) for choice in taken.values()]
        graph = runner_for(
            self.device,
            lambda x: self.fused(x),
            examples=[{"x": x}],
            axes={"x": (None, None, None)},
            outputs=[(None,) * 3],
        )
        systems: dict[str, Callable[[], Tensor]] = {
            "assay": lambda: graph(x=x),  # type: ignore[dict-item]
            "assay_launched": lambda: self.fused(x),
            "assay_unfused": lambda: self.plain(x),
        }
        self._gate(systems, x=x, name=name)
        systems |= {"torch_encoder": self._peer(x, train=True), "torch_fastpath": self._peer(x, train=False)}
        found = []
        for system, call in systems.items():
            times = self._times(call)
            found.append(row(f"encoder4x768/{name}", system=system, metric="ms", unit="ms", values=times))
            if system != "assay":
                launches = [float(count_launches(call))]
                found.append(row(f"encoder4x768/{name}", system=system, metric="launches", unit="1", values=launches))
        found += self._compiled(x, name=name)
        return [*found, *self._saved(found, name=name)]

    def _saved(self, found: list[dict[str, Any]], *, name: str) -> list[dict[str, Any]]:
        """What a replay saves of the latency of the same kernels, launched one by one."""
        if not self.cuda:
            return []
        ms = {each["system"]: each["value"] for each in found if each["metric"] == "ms"}
        saved = [100 * (1 - ms["assay"] / ms["assay_launched"])]
        return [row(f"graphs/{name}", system="assay", metric="latency_saved_pct", unit="%", values=saved)]

    def _gate(self, systems: dict[str, Callable[[], Tensor]], *, x: Tensor, name: str) -> None:
        wanted = self.wide(x.double())
        for system, call in systems.items():
            off = float((call().double() - wanted).norm() / wanted.norm())
            if not off <= TOLERANCE[self.dtype]:
                raise BenchError(f"{name}: {system} is off by {off:.1e} (relative RMS), more than allowed")

    def _peer(self, x: Tensor, *, train: bool) -> Callable[[], Tensor]:
        # in training mode (dropout is 0) the layers run one by one, in eval mode by torch's own fused path
        model = copy.deepcopy(self.peer).train(train)
        return lambda: model(x)

    def _compiled(self, x: Tensor, *, name: str) -> list[dict[str, Any]]:
        found = []
        for mode in self.modes:
            for system, model in (("torch_encoder", copy.deepcopy(self.peer).train()), ("assay_unfused", self.plain)):
                torch._dynamo.reset()
                compiled = partial(torch.compile(model, mode=mode), x)
                times = self._times(compiled)
                called = f"{system}_compiled_{mode}"
                found.append(row(f"encoder4x768/{name}", system=called, metric="ms", unit="ms", values=times))
        return found

    def _times(self, call: Callable[[], object]) -> list[float]:
        if not self.cuda:
            return timed(call, seconds=self.seconds)
        from ml_core.evals.gpu import cuda_times

        return cuda_times(call, seconds=self.seconds)

    def _clock(self, call: Callable[[], object]) -> float:
        if not self.cuda:
            return statistics.median(timed(call, seconds=0.02))
        from ml_core.evals.gpu import replayed_ms

        return replayed_ms(call)
