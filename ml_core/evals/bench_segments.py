"""Segmented attention: against the definition, what a long stream keeps in memory, and what is recalled of it."""

import argparse
import logging
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ml_core.evals.bench import BenchError, meta, row, timed
from ml_core.evals.needle import NeedleConfig, fit, recall
from ml_core.layers.segments import SegmentedAttention, SegmentedBlock, stream
from ml_core.seed import torch_generator

_LOG = logging.getLogger(__name__)
TOLERANCE = 1e-10  # largest difference from the definition, float64
# trained up to `length`, asked at 8 times that: 256 and 2,048 on a CPU, 4,096 and 32,768 on a GPU
NEEDLES = {
    "cpu": NeedleConfig(),
    "cuda": NeedleConfig(d=128, segment=256, length=4_096, batch=32, steps=12_000),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--device, --d, --layers, --segment, --inputs, --seeds, --steps, --seconds."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--segment", type=int, default=1_024)
    parser.add_argument("--inputs", type=int, default=100, help="long inputs that are read for recall")
    parser.add_argument("--seeds", type=int, default=1, help="models trained for recall")
    parser.add_argument("--seconds", type=float, default=0.5, help="time spent on each figure of the kernel's")
    parser.add_argument("--steps", type=int, default=0, help="of training; 0: what the task's settings say")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Check against the definition, then measure. Raises BenchError where they disagree."""
    _gate()
    device = torch.device(args.device)
    if device.type == "cuda":
        from ml_core.evals import segments_gpu
        from ml_core.evals.gpu import gpu_meta

        timed_rows, about = segments_gpu.run(seconds=args.seconds), gpu_meta("segments")
    else:
        timed_rows, about = [], meta("segments")
    return {"meta": about, "rows": [*timed_rows, *_memory(args, device=device), *_needles(args, device=device)]}


class PeakBytes(TorchDispatchMode):
    """The most bytes of tensors made inside that were alive at once, on any device; views count with what they view."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def dense(layer: SegmentedAttention, x: Tensor) -> Tensor:
    """The layer by its definition, causal, on (1 n d): one matrix over all tokens and all summaries, O(n²) memory."""
    n, size = x.shape[1], layer.segment
    q, k, v = (
        y.unflatten(-1, (layer.h, -1)).transpose(1, 2)[0] for y in (layer.q_proj(x), layer.k_proj(x), layer.v_proj(x))
    )
    at = torch.arange(n, device=x.device)
    own = at // size
    away = at[:, None] - at[None, :]
    near = own[:, None] - own[None, :] <= layer.neighbours
    reach = layer.dpe.table.shape[1] // 2
    bias = layer.dpe.table[:, away.clamp(-reach, reach) + reach]
    bias = torch.where(near, bias, layer.sink_bias[:, None, None])
    seen = (away >= 0) & (near | (at < layer.sinks)[None, :])
    count = int(own[-1]) + 1
    shares = torch.einsum("hnk,hk->hn", k, layer.pool)[:, None].expand(-1, count, -1)
    shares = shares.masked_fill(own[None, :] != torch.arange(count, device=x.device)[:, None], -torch.inf).softmax(-1)
    apart = own[:, None] - torch.arange(count, device=x.device)[None, :]
    far = layer.far_bias[:, apart.clamp(-16, 16) + 16]
    keys, values = torch.cat([k, shares @ k], 1), torch.cat([v, shares @ v], 1)
    visible = torch.cat([seen, apart > layer.neighbours], 1)
    scores = q @ keys.transpose(-1, -2) * q.shape[-1] ** -0.5 + torch.cat([bias, far], -1)
    out = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ values
    return layer.out_proj(out.transpose(0, 1).flatten(1))[None]


def _gate() -> None:
    for neighbours, sinks, n in ((1, 4, 250), (0, 0, 64), (2, 3, 999)):
        torch.manual_seed(0)
        layer = SegmentedAttention(24, 3, segment=32, neighbours=neighbours, sinks=sinks).double().eval()
        for bias in (layer.dpe.table, layer.sink_bias, layer.far_bias):
            nn.init.normal_(bias)
        x = torch.randn(1, n, 24, dtype=torch.float64, generator=torch_generator(0, "bench", "segments", n))
        with torch.no_grad():
            wanted = dense(layer, x)
            off = max(float((layer(x, path=path) - wanted).abs().max()) for path in ("loop", "whole"))
        if not off < TOLERANCE:
            raise BenchError(f"segments: {off:.1e} off the definition at n {n}, more than {TOLERANCE}")


def _memory(args: argparse.Namespace, *, device: torch.device) -> list[dict[str, Any]]:
    """Peak of a stream of 4,096 tokens and of 32,768, weights included, and the time that each takes."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    blocks = nn.ModuleList(
        SegmentedBlock(args.d, args.d // 64, 4 * args.d, segment=args.segment) for _ in range(args.layers)
    )
    blocks = blocks.to(device, dtype).eval()
    weights = sum(p.numel() * p.element_size() for p in blocks.parameters())
    rows, peaks = [], {}
    for length in (4_096, 32_768):

        @torch.no_grad()
        def once(count: int = length // args.segment) -> None:
            parts = (torch.ones(1, args.segment, args.d, device=device, dtype=dtype) for _ in range(count))
            for _ in stream(blocks, parts):
                pass
            if device.type == "cuda":
                torch.cuda.synchronize()

        with PeakBytes() as mode:
            once()
        peaks[length] = weights + mode.peak
        times = timed(once, seconds=0.1, least=3)
        case = f"segments/stream_{length // 1024}k"
        rows.append(row(case, system="assay", metric="ms", unit="ms", values=times))
        rows.append(row(case, system="assay", metric="peak", unit="bytes", values=[float(peaks[length])]))
    ratio = [peaks[32_768] / peaks[4_096]]
    return [*rows, row("segments/memory_32k_over_4k", system="assay", metric="ratio", unit="1", values=ratio)]


def _needles(args: argparse.Namespace, *, device: torch.device) -> list[dict[str, Any]]:
    """Recall at the length that was trained and at 2 and 8 times that, one value a model."""
    config = NEEDLES[device.type]
    if args.steps:
        config = NeedleConfig(**{**vars(config), "steps": args.steps})
    found: dict[int, list[float]] = {config.length * times: [] for times in (1, 2, 8)}
    for seed in range(args.seeds):
        model = fit(config, seed=seed, device=device, say=_LOG.info)
        for length, values in found.items():
            values.append(recall(model, length=length, inputs=args.inputs, seed=seed, device=device))
    return [
        row(f"segments/needle_{_short(length)}", system="assay", metric="accuracy", unit="share", values=values)
        for length, values in found.items()
    ]


def _short(length: int) -> str:
    return f"{length // 1024}k" if length >= 1_024 else str(length)
