"""DPE attention on a GPU: tuned, held against float64, then timed beside its peers, each tuned in the same run.

Peers: torch's flash attention without any bias (the floor), with the bias written out, and FlexAttention reading the
table, over block sizes and stages. b 1, h 12, k 64, bf16, as in engine.md section 2.
"""

import itertools
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ml_core.evals.bench import BenchError, row
from ml_core.evals.gpu import cuda_times, fastest, gpu_meta, peak_bytes, roofline
from ml_core.kernels.dpe_attention import naive
from ml_core.kernels.dpe_attention.op import dpe_attention
from ml_core.seed import torch_generator

H, K = 12, 64
_LOG = logging.getLogger(__name__)
SLACK = 4.0  # of naive's own error in bf16
WRITTEN_OUT = 8192  # tokens up to which a bias of h · n² in bf16 fits beside its gradient
FLOPS = {"fwd": 4, "fwdbwd": 14}  # times h · n² · k: two products forward, five more backward, two flops each


def run(tokens: list[int], *, seconds: float) -> dict[str, Any]:
    """Rows of every system at every length. Raises BenchError where one is wrong."""
    rows, tuned = roofline(), {}
    for n in tokens:
        inputs = _inputs(n)
        tuned[f"n{n}"] = _tune(inputs)
        _gate(_inputs(1000))
        systems = _systems(inputs, tuned=tuned[f"n{n}"])
        for name, (forward, both) in systems.items():
            for what, call in (("fwd", forward), ("fwdbwd", both)):
                if call is None:
                    continue
                case, times = f"dpe/n{n}/{what}", cuda_times(call, seconds=seconds)
                speed = [FLOPS[what] * H * K * n**2 / ms / 1e9 for ms in times]
                rows.append(row(case, system=name, metric="ms", unit="ms", values=times))
                rows.append(row(case, system=name, metric="tflops", unit="TFLOP/s", values=speed))
                rows.append(row(case, system=name, metric="peak", unit="bytes", values=[peak_bytes(call)]))
    return {"meta": gpu_meta("dpe") | {"tuned": tuned}, "rows": rows}


def _inputs(n: int) -> tuple[Tensor, ...]:
    generator = torch_generator(0, "bench", "dpe", n)
    q, k, v, do = (torch.randn(1, H, n, K, generator=generator).to("cuda", torch.bfloat16) for _ in range(4))
    return q, k, v, torch.randn(H, 2 * n - 1, generator=generator).cuda(), do


def _tune(inputs: tuple[Tensor, ...]) -> dict[str, list[str]]:
    """Try all candidates of ours at this length, and let the kernels take the best from now on."""
    from ml_core.kernels.dpe_attention import launch
    from ml_core.kernels.dpe_attention.positions import Masks

    q, k, v, table, do = inputs
    settings: dict[str, Any] = {"scale": K**-0.5}
    forward, said = fastest(
        launch.FORWARD, lambda tiles: lambda: launch.forward(q, k, v, table, Masks(), tiles=tiles, **settings)
    )
    out, sums = launch.forward(q, k, v, table, Masks(), tiles=forward, **settings)
    plan = launch.backward_plan(q, deterministic=False)

    def backward(tiles: launch.Tiles) -> Callable[[], object]:
        tried = replace(plan, keys=tiles)
        return lambda: launch.backward(
            q, k, v, table, out, sums, do, None, Masks(), plan=tried, **settings
        )  # fmt: skip

    keys, more = fastest(launch.KEYS, backward)
    launch.prefer(forward=forward, keys=keys)
    _LOG.info("n %d: forward %s; keys %s", q.shape[2], said, more)
    return {"forward": said, "keys": more, "taken": [str(forward), str(keys)]}


def _gate(inputs: tuple[Tensor, ...]) -> None:
    """Our kernels against float64, forward and all gradients. Peers are taken at their word."""
    wanted = _results(inputs, lambda *x: naive.dpe_attention(*x), dtype=torch.float64)
    plain = _results(inputs, lambda *x: naive.dpe_attention(*x), dtype=torch.bfloat16)
    for system, call in (
        ("assay", dpe_attention),
        ("assay_ordered", lambda *x: dpe_attention(*x, deterministic=True)),
    ):
        got = _results(inputs, call, dtype=torch.bfloat16)
        for name, ours, theirs, right in zip(("out", "q", "k", "v", "table"), got, plain, wanted, strict=True):
            error, allowed = _off(ours, right), SLACK * _off(theirs, right)
            if not error <= allowed:
                raise BenchError(f"{system}: {name} is off by {error:.1e}, more than {allowed:.1e}")


def _results(inputs: tuple[Tensor, ...], call: Callable[..., Tensor], *, dtype: torch.dtype) -> list[Tensor]:
    q, k, v, table, do = inputs
    leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
    bias = table.detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    out = call(*leaves, bias)
    out.backward(do.to(out.dtype))
    return [out.detach(), *(x.grad for x in (*leaves, bias) if x.grad is not None)]


def _off(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())


Pair = tuple[Callable[[], object], Callable[[], object] | None]


def _systems(inputs: tuple[Tensor, ...], *, tuned: dict[str, list[str]]) -> dict[str, Pair]:
    """Forward, and forward with backward, of each system."""
    q, k, v, table, do = inputs
    n = q.shape[2]
    found: dict[str, Pair] = {
        "assay": _pair(dpe_attention, q, k, v, table, do=do),
        "assay_ordered": _pair(lambda *x: dpe_attention(*x, deterministic=True), q, k, v, table, do=do),
        "sdpa_no_bias": _pair(_flash, q, k, v, do=do),
    }
    if n <= WRITTEN_OUT:
        found["sdpa_bias"] = _pair(_written_out, q, k, v, table, do=do)
    found["flex_attention"] = _flex(q, k, v, table, do=do, tuned=tuned)
    return found


def _pair(call: Callable[..., Tensor], *tensors: Tensor, do: Tensor) -> Pair:
    leaves = [x.detach().clone().requires_grad_() for x in tensors]

    def forward() -> Tensor:
        with torch.no_grad():
            return call(*tensors)

    def both() -> None:
        for leaf in leaves:
            leaf.grad = None
        call(*leaves).backward(do)

    return forward, both


def _flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return functional.scaled_dot_product_attention(q, k, v)


def _written_out(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    bias = naive.distance_bias(table.to(q.dtype), n=q.shape[2], m=k.shape[2])[None]
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _flex(q: Tensor, k: Tensor, v: Tensor, table: Tensor, *, do: Tensor, tuned: dict[str, list[str]]) -> Pair:
    """FlexAttention with the table in its score function, its blocks and stages tuned for each direction."""
    from torch.nn.attention.flex_attention import flex_attention

    reach = table.shape[1] // 2

    attend_blocks: Any = flex_attention  # its overloads want options of a type that torch does not export

    def call(options: dict[str, int]) -> Callable[..., Tensor]:
        # the compiler keeps few versions of one function, and beyond them runs it uncompiled
        torch._dynamo.reset()

        def attend(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
            def biased(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
                return score + table[h, i - j + reach]

            said: Tensor = attend_blocks(q, k, v, score_mod=biased, kernel_options=options)
            return said

        compiled: Callable[..., Tensor] = torch.compile(attend, dynamic=False)
        return compiled

    options = [
        {"BLOCK_M": m, "BLOCK_N": n, "num_stages": stages, "num_warps": warps}
        for (m, n), stages, warps in itertools.product(((64, 64), (128, 64)), (2, 3), (4, 8))
    ]
    forward, said = fastest(options, lambda each: _pair(call(each), q, k, v, table, do=do)[0])
    tuned["flex"] = said
    backward = [
        {**forward, "BLOCK_M1": m, "BLOCK_N1": n, "BLOCK_M2": n, "BLOCK_N2": m} for m, n in ((32, 64), (64, 64))
    ]
    try:
        best, more = fastest(
            [forward, *backward], lambda each: _pair(call(each), q, k, v, table, do=do)[1] or (lambda: None)
        )
    except BenchError as error:
        tuned["flex_backward"] = [str(error)]
        return _pair(call(forward), q, k, v, table, do=do)[0], None
    tuned["flex_backward"] = more
    _LOG.info("flex_attention: forward %s; with backward %s", said, more)
    return _pair(call(forward), q, k, v, table, do=do)[0], _pair(call(best), q, k, v, table, do=do)[1]
