"""Segmented attention on a GPU at 32,768 tokens, three segments of 1,024 in sight: time and memory beside its peers.

Each is captured once and replayed, as it is served, so that no host's speed is in the times; `_launched`: one by one.

Peers: FlexAttention with the same window and table (no sinks, no summaries: it has less to do), and flash attention
over everything without any bias.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ml_core.evals.bench import BenchError, row
from ml_core.evals.gpu import cuda_times, fastest, peak_bytes, replay
from ml_core.layers.segments_whole import segmented_attention
from ml_core.seed import torch_generator

H, K, N, SEGMENT = 12, 64, 32_768, 1_024
SLACK = 3e-2  # relative RMS in bf16 against fp32; the products' own rounding is 2⁻⁹ a number


def run(*, seconds: float) -> list[dict[str, Any]]:
    """Rows of every system. Raises BenchError where ours is wrong."""
    made = _made(N, dtype=torch.bfloat16)
    _gate()
    systems: dict[str, Callable[[], object]] = {
        "assay": lambda: _segmented(made),
        "flex_attention_window": _flex(made),
        "sdpa_no_bias_all": lambda: _flash(made),
    }
    rows = []
    for name, call in systems.items():
        with torch.no_grad():
            launched, peak = cuda_times(call, seconds=seconds), peak_bytes(call)
            times = cuda_times(replay(call), seconds=seconds)
        rows.append(row("segments/n32768/fwd", system=name, metric="ms", unit="ms", values=times))
        rows.append(row("segments/n32768/fwd", system=f"{name}_launched", metric="ms", unit="ms", values=launched))
        rows.append(row("segments/n32768/fwd", system=name, metric="peak", unit="bytes", values=[peak]))
    return rows


def _made(n: int, *, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch_generator(0, "bench", "segments", n)
    draw = lambda *shape: torch.randn(*shape, generator=generator).cuda()  # noqa: E731
    made = {name: draw(1, H, n, K).to(dtype) for name in ("q", "k", "v")}
    tables = {"table": draw(H, 4 * SEGMENT - 1), "sink_bias": draw(H), "far_bias": draw(H, 33)}
    return made | tables | {"pool": draw(H, K) * K**-0.5}


def _segmented(made: dict[str, Tensor]) -> Tensor:
    return segmented_attention(
        made["q"], made["k"], made["v"], table=made["table"], pool=made["pool"], sink_bias=made["sink_bias"],
        far_bias=made["far_bias"], segment=SEGMENT, neighbours=1, sinks=4, causal=False,
    )  # fmt: skip


def _gate() -> None:
    made = _made(8 * SEGMENT - 100, dtype=torch.bfloat16)
    with torch.no_grad():
        wanted = _segmented({name: each.double() for name, each in made.items()})
        off = float((_segmented(made).double() - wanted).norm() / wanted.norm())
    if not off <= SLACK:
        raise BenchError(f"segments: {off:.1e} off float64, more than {SLACK}")


def _flash(made: dict[str, Tensor]) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return functional.scaled_dot_product_attention(made["q"], made["k"], made["v"])


def _flex(made: dict[str, Tensor]) -> Callable[[], object]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def near(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i // SEGMENT - j // SEGMENT).abs() <= 1

    mask = create_block_mask(near, None, None, N, N, device="cuda")
    table, reach = made["table"], made["table"].shape[1] // 2
    attend_blocks: Any = flex_attention  # its overloads want options of a type that torch does not export

    def biased(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + table[h, (i - j).clamp(-reach, reach) + reach]

    def call(options: dict[str, int]) -> Callable[[], object]:
        torch._dynamo.reset()  # the compiler keeps few versions of one function

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            said: Tensor = attend_blocks(q, k, v, score_mod=biased, block_mask=mask, kernel_options=options)
            return said

        compiled = torch.compile(attend, dynamic=False)
        return lambda: compiled(made["q"], made["k"], made["v"])

    blocks = [{"BLOCK_M": m, "BLOCK_N": n, "num_stages": stages} for m, n in ((64, 64), (128, 64)) for stages in (2, 3)]
    with torch.no_grad():
        best, _ = fastest(blocks, call)
    return call(best)
