"""Segmented attention over a whole input at once: the window by the DPE kernel, what lies outside of it beside it.

Both parts tell the logarithm of their sums, with which they are joined into one softmax.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from ml_core.kernels.dpe_attention.op import dpe_attention, dpe_attention_prefixed, dpe_attention_sums
from ml_core.kernels.dpe_attention.positions import Band


def segmented_attention(
    q: Float[Tensor, "b h n k"],
    k: Float[Tensor, "b h n k"],
    v: Float[Tensor, "b h n k"],
    *,
    table: Float[Tensor, "h t"],
    pool: Float[Tensor, "h k"],
    sink_bias: Float[Tensor, " h"],
    far_bias: Float[Tensor, "h f"],
    segment: int,
    neighbours: int,
    sinks: int,
    causal: bool,
    key_mask: Bool[Tensor, "b n"] | None = None,
) -> Float[Tensor, "b h n k"]:
    """What SegmentedAttention computes between its projections; see there for the arguments.

    On CUDA in half precision, where no gradients are wanted, it is one kernel.
    """
    band = Band(segment=segment, before=neighbours, after=0 if causal else neighbours)
    count = -(-q.shape[2] // segment)
    if count <= neighbours + 1:  # everything is near
        return dpe_attention(q, k, v, table, causal=causal, key_mask=key_mask, band=band)
    whole = count * segment - q.shape[2]
    # segments as an axis of their own; what is added at the end is masked, and dropped again
    parts = [functional.pad(x, (0, 0, 0, whole)).unflatten(2, (count, segment)) for x in (q, k, v)]
    real = torch.ones(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device) if key_mask is None else key_mask
    mask = functional.pad(real, (0, whole)).unflatten(1, (count, segment))
    summary_k, summary_v = summaries(parts[1], parts[2], pool=pool, mask=mask)
    keys = torch.cat([k[:, :, :sinks], summary_k], dim=2)
    values = torch.cat([v[:, :, :sinks], summary_v], dim=2)
    bias, seen = _far_bias(sink_bias, far_bias, count=count, neighbours=neighbours, sinks=sinks, causal=causal)
    there = torch.cat([real[:, :sinks], mask.any(2)], dim=1)
    visible = seen & there[:, None]
    if one_kernel(q, table, segment=segment):
        shown = bias.float()[None].masked_fill(~visible[:, None], -torch.inf)
        return dpe_attention_prefixed(
            q, k, v, table, prefix=(keys, values, shown), band=band, causal=causal, key_mask=key_mask
        )  # fmt: skip
    near, near_sums = dpe_attention_sums(q, k, v, table, causal=causal, key_mask=key_mask, band=band)
    far, far_sums = _far(parts[0], keys, values, bias=bias, visible=visible)
    far, far_sums = (x.flatten(2, 3)[:, :, : q.shape[2]] for x in (far, far_sums))
    # two logarithms of sums make each part's share; a row that sees nothing near and nothing far keeps zeros
    share = (near_sums.to(far_sums.dtype) - far_sums).nan_to_num(0.0, torch.inf, -torch.inf).sigmoid()[..., None]
    return (near * share + far * (1 - share)).to(q.dtype)


def one_kernel(q: Float[Tensor, "b h n k"], table: Float[Tensor, "h t"], *, segment: int) -> bool:
    """Whether the prefixed kernel runs: on CUDA, in half precision, without gradients, in segments of whole tiles."""
    if q.device.type != "cuda" or q.dtype not in (torch.float16, torch.bfloat16) or segment % 128:
        return False
    return not torch.is_grad_enabled() or not (q.requires_grad or table.requires_grad)


def summaries(
    k: Float[Tensor, "b h c s k"],
    v: Float[Tensor, "b h c s k"],
    *,
    pool: Float[Tensor, "h k"],
    mask: Bool[Tensor, "b c s"],
) -> tuple[Float[Tensor, "b h c k"], Float[Tensor, "b h c k"]]:
    """One key and one value for each of c segments: attention pooling over its real tokens by one query a head."""
    scores = torch.einsum("bhcsk,hk->bhcs", k, pool.to(k.dtype))
    scores = scores.to(torch.promote_types(k.dtype, torch.float32))  # a softmax over many tokens wants that
    shares = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min).softmax(-1).to(k.dtype)
    summary_k, summary_v = (torch.einsum("bhcs,bhcsk->bhck", shares, x) for x in (k, v))
    return summary_k, summary_v


def _far_bias(
    sink_bias: Tensor, far_bias: Tensor, *, count: int, neighbours: int, sinks: int, causal: bool
) -> tuple[Float[Tensor, "h c e"], Bool[Tensor, "c e"]]:
    """The bias of each segment's queries on sinks and summaries, and which of these they see."""
    furthest = far_bias.shape[1] // 2
    own = torch.arange(count, device=far_bias.device)
    away = own[:, None] - own[None, :]
    bias = far_bias[:, away.clamp(-furthest, furthest) + furthest]
    seen = away > neighbours if causal else away.abs() > neighbours
    outside = (own > neighbours)[:, None].expand(-1, sinks)
    return torch.cat([sink_bias[:, None, None].expand(-1, count, sinks), bias], 2), torch.cat([outside, seen], 1)


def _far(
    q: Float[Tensor, "b h c s k"],
    k: Float[Tensor, "b h e k"],
    v: Float[Tensor, "b h e k"],
    *,
    bias: Float[Tensor, "h c e"],
    visible: Bool[Tensor, "b c e"],
) -> tuple[Float[Tensor, "b h c s k"], Float[Tensor, "b h c s"]]:
    hidden = ~visible[:, None, :, None]
    scores = torch.einsum("bhcsk,bhek->bhcse", q, k).to(torch.promote_types(q.dtype, torch.float32))
    scores = scores * q.shape[-1] ** -0.5 + bias[:, :, None]
    # a logarithm of a sum of −∞ alone would have NaN for its gradient
    scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    shares = scores.softmax(-1).masked_fill(hidden, 0.0)
    sums = scores.logsumexp(-1).masked_fill(hidden.all(-1), -torch.inf)
    return torch.einsum("bhcse,bhek->bhcsk", shares.to(v.dtype), v), sums
