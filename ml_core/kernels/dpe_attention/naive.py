"""DPE attention in plain PyTorch: the truth that every other implementation is tested against."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def dpe_attention(
    q: Float[Tensor, "b h n k"],
    k: Float[Tensor, "b h m k"],
    v: Float[Tensor, "b h m k"],
    table: Float[Tensor, "h t"],
    *,
    causal: bool = False,
    key_mask: Bool[Tensor, "b m"] | None = None,
    segment_ids: Int[Tensor, "b m"] | None = None,
    offset: int = 0,
    scale: float | None = None,
) -> Float[Tensor, "b h n k"]:
    """softmax(q kᵀ · scale + B) v with B[i, j] = table[head, i − j + N − 1], t = 2N − 1 (engine.md, section 2).

    `offset` is the position of the first query among the keys; distances beyond ±(N − 1) are clamped to it. A query
    sees a key when all given masks allow it; one that sees no key gets zeros. `scale` is 1/√k unless given.
    """
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores + distance_bias(table, n=q.shape[2], m=k.shape[2], offset=offset)
    visible = visibility(
        n=q.shape[2],
        m=k.shape[2],
        causal=causal,
        key_mask=key_mask,
        segment_ids=segment_ids,
        offset=offset,
        device=q.device,
    )
    if visible is None:
        return scores.softmax(-1) @ v
    hidden = ~visible
    # a row without any key would be softmax of -inf alone, which is NaN: forward and backward
    scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).masked_fill(hidden, 0.0) @ v


def distance_bias(table: Float[Tensor, "h t"], *, n: int, m: int, offset: int = 0) -> Float[Tensor, "h n m"]:
    """B as a matrix: entry (i, j) is the table's value for the distance offset + i − j, clamped to the table."""
    reach = table.shape[1] // 2
    queries = torch.arange(offset, offset + n, device=table.device)
    keys = torch.arange(m, device=table.device)
    distance = queries[:, None] - keys[None, :]
    return table[:, distance.clamp(-reach, reach) + reach]


def visibility(
    *,
    n: int,
    m: int,
    causal: bool,
    key_mask: Bool[Tensor, "b m"] | None,
    segment_ids: Int[Tensor, "b m"] | None,
    offset: int,
    device: torch.device,
) -> Bool[Tensor, "#b 1 n m"] | None:
    """True where query i may see key j; None when every query sees every key."""
    visible: Tensor | None = None
    if causal:
        queries = torch.arange(offset, offset + n, device=device)
        visible = (queries[:, None] >= torch.arange(m, device=device)[None, :])[None, None]
    if key_mask is not None:
        padding = key_mask[:, None, None, :].expand(-1, 1, n, m)
        visible = padding if visible is None else visible & padding
    if segment_ids is not None:
        own = segment_ids[:, offset : offset + n]
        same = (own[:, :, None] == segment_ids[:, None, :])[:, None]
        visible = same if visible is None else visible & same
    return visible
