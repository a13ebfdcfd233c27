"""Segmented attention: a segment sees itself, its neighbours, a few sinks and a summary of each segment further off.

Long inputs in memory that does not grow with them but for one key and value a segment: local windows and global tokens
(Beltagy et al. 2020, Longformer; Ainslie et al. 2020, ETC), attention sinks (Xiao et al. 2023, StreamingLLM), and a
learned pooling of what is out of sight.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ml_core.errors import InputError
from ml_core.kernels.dpe_attention.naive import distance_bias
from ml_core.layers.blocks import DPE, MLP, project_all
from ml_core.layers.segments_whole import segmented_attention, summaries

Path = Literal["auto", "loop", "whole"]
_FAR = 16  # summaries this many segments off, and further, share a bias


@dataclass(kw_only=True)
class Part:
    """Keys and values of one segment of s tokens: its own, and their summary. mask: True where a token is real."""

    k: Float[Tensor, "b h s k"]
    v: Float[Tensor, "b h s k"]
    mask: Bool[Tensor, "b s"]
    summary_k: Float[Tensor, "b h 1 k"]
    summary_v: Float[Tensor, "b h 1 k"]


@dataclass(kw_only=True)
class StreamState:
    """What a causal stream keeps of one layer. near: the last segments, whole; far: the summaries of others."""

    sinks: Part | None = None
    near: list[Part] = field(default_factory=list)
    far_k: list[Tensor] = field(default_factory=list)
    far_v: list[Tensor] = field(default_factory=list)
    far_mask: list[Tensor] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Memory of all tensors."""
        parts = [*self.near, *([self.sinks] if self.sinks else [])]
        kept = [x for part in parts for x in (part.k, part.v, part.mask, part.summary_k, part.summary_v)]
        return sum(x.numel() * x.element_size() for x in (*kept, *self.far_k, *self.far_v, *self.far_mask))


class SegmentedAttention(nn.Module):
    """Multi-head self-attention over segments of `segment` tokens.

    neighbours: so many segments before (and, unless `causal`, after) are seen token by token, with the learned bias by
    distance; of all others a summary, attention pooling by one learned query a head, with a learned bias by distance in
    segments; the first `sinks` tokens (at most a segment) are always seen. Causal, it can be run as a stream.
    """

    def __init__(
        self,
        d: int,
        h: int,
        *,
        segment: int,
        neighbours: int = 1,
        sinks: int = 4,
        causal: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if d % h:
            raise InputError(f"h: {h} heads do not divide the width {d}")
        if segment < 1 or neighbours < 0 or not 0 <= sinks <= segment:
            raise InputError(f"segment, neighbours, sinks: {segment}, {neighbours}, {sinks} is no layout")
        self.h, self.segment, self.neighbours, self.sinks, self.causal = h, segment, neighbours, sinks, causal
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(d, d, bias=bias) for _ in range(4))
        self.dpe = DPE(h, segment * (neighbours + 1))
        self.pool = nn.Parameter(torch.randn(h, d // h) * (d // h) ** -0.5)
        self.sink_bias = nn.Parameter(torch.zeros(h))
        self.far_bias = nn.Parameter(torch.zeros(h, 2 * _FAR + 1))  # by segments from −16 to 16, those beyond shared

    def forward(
        self, x: Float[Tensor, "b n d"], *, key_mask: Bool[Tensor, "b n"] | None = None, path: Path = "auto"
    ) -> Float[Tensor, "b n d"]:
        """Any n; `key_mask` is True where a token is real. Padding's own rows mean nothing.

        path: "loop" goes segment by segment, "whole" runs one kernel over all windows; "auto" is "whole" on CUDA.
        """
        if path == "whole" or (path == "auto" and x.device.type == "cuda"):
            return self._whole(x, key_mask=key_mask)
        if self.causal:
            state = StreamState()
            masks = _segments(key_mask, x=x, size=self.segment)
            return torch.cat(
                [self.step(part, state, key_mask=m) for part, m in zip(self._cut(x), masks, strict=True)], 1
            )
        masks = _segments(key_mask, x=x, size=self.segment)
        made = [self._part(part, mask=mask) for part, mask in zip(self._cut(x), masks, strict=True)]
        return torch.cat([self._both_ways(index, made) for index in range(len(made))], dim=1)

    def step(
        self, x: Float[Tensor, "b s d"], state: StreamState, *, key_mask: Bool[Tensor, "b s"] | None = None
    ) -> Float[Tensor, "b s d"]:
        """The next segment of a causal stream; `state` moves on. A segment shorter than the layout's must be the last.

        Raises InputError for a segment that is too long, follows a short one, or where attention is not causal.
        """
        self._check_step(x, state)
        q, part = self._part(x, mask=_real(x) if key_mask is None else key_mask)
        far = None
        if state.far_k:
            away = torch.arange(len(state.far_k), 0, -1, device=x.device) + len(state.near)
            far = (torch.cat(state.far_k, 2), torch.cat(state.far_v, 2), torch.cat(state.far_mask, 1), away)
        out = self._attend(q, [*state.near, part], before=len(state.near), sinks=state.sinks if far else None, far=far)
        if state.sinks is None and self.sinks:
            state.sinks = _cut_part(part, self.sinks, copied=True)
        state.near.append(part)
        if len(state.near) > self.neighbours:
            gone = state.near.pop(0)
            state.far_k.append(gone.summary_k)
            state.far_v.append(gone.summary_v)
            state.far_mask.append(gone.mask.any(1, keepdim=True))
        return out

    def _whole(self, x: Tensor, *, key_mask: Tensor | None) -> Tensor:
        q, k, v = self._heads(x)
        out = segmented_attention(
            q,
            k,
            v,
            table=self.dpe.table,
            pool=self.pool,
            sink_bias=self.sink_bias,
            far_bias=self.far_bias,
            segment=self.segment,
            neighbours=self.neighbours,
            sinks=self.sinks,
            causal=self.causal,
            key_mask=key_mask,
        )
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> list[Tensor]:
        made = project_all(x, self.q_proj, self.k_proj, self.v_proj)
        return [y.unflatten(-1, (self.h, -1)).transpose(1, 2) for y in made]

    def _both_ways(self, index: int, made: list[tuple[Tensor, Part]]) -> Tensor:
        first, last = max(0, index - self.neighbours), min(len(made), index + self.neighbours + 1)
        others = [place for place in range(len(made)) if not first <= place < last]
        far = None
        if others:
            parts = [made[place][1] for place in others]
            away = torch.tensor([index - place for place in others], device=made[0][0].device)
            keys, values = (torch.cat([getattr(p, name) for p in parts], 2) for name in ("summary_k", "summary_v"))
            far = (keys, values, torch.stack([p.mask.any(1) for p in parts], 1), away)
        sinks = _cut_part(made[0][1], self.sinks) if first > 0 and self.sinks else None
        near = [part for _, part in made[first:last]]
        return self._attend(made[index][0], near, before=index - first, sinks=sinks, far=far)

    def _attend(
        self,
        q: Float[Tensor, "b h s k"],
        near: list[Part],
        *,
        before: int,
        sinks: Part | None,
        far: tuple[Tensor, Tensor, Tensor, Int[Tensor, " m"]] | None,
    ) -> Float[Tensor, "b s d"]:
        """One segment's queries on its window (of which `before` segments come first), the sinks and the summaries."""
        n, offset = q.shape[2], sum(part.k.shape[2] for part in near[:before])
        window = sum(part.k.shape[2] for part in near)
        keys, values, masks = [p.k for p in near], [p.v for p in near], [p.mask for p in near]
        biases = [distance_bias(self.dpe.table, n=n, m=window, offset=offset)]
        if self.causal:
            at = torch.arange(window, device=q.device)
            later = at[None, :] > at[offset : offset + n, None]
            biases = [biases[0].masked_fill(later, torch.finfo(q.dtype).min)]
        if sinks is not None:
            keys, values, masks = [sinks.k, *keys], [sinks.v, *values], [sinks.mask, *masks]
            biases.insert(0, self.sink_bias[:, None, None].expand(-1, n, sinks.k.shape[2]))
        if far is not None:
            keys, values, masks = [far[0], *keys], [far[1], *values], [far[2], *masks]
            away = far[3].clamp(-_FAR, _FAR) + _FAR
            biases.insert(0, self.far_bias[:, away][:, None, :].expand(-1, n, -1))
        bias = torch.cat(biases, dim=-1).to(q.dtype)[None]
        visible = torch.cat(masks, dim=1)[:, None, None, :]
        if not _all_real(visible):
            bias = bias.masked_fill(~visible, torch.finfo(q.dtype).min)
        out = functional.scaled_dot_product_attention(q, torch.cat(keys, 2), torch.cat(values, 2), attn_mask=bias)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _part(self, x: Tensor, *, mask: Tensor) -> tuple[Tensor, Part]:
        """A segment's queries, keys and values, and its summary."""
        q, k, v = self._heads(x)
        made = summaries(k.unsqueeze(2), v.unsqueeze(2), pool=self.pool, mask=mask.unsqueeze(1))
        return q, Part(k=k, v=v, mask=mask, summary_k=made[0], summary_v=made[1])

    def _cut(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(self.segment, dim=1)

    def _check_step(self, x: Tensor, state: StreamState) -> None:
        if not self.causal:
            raise InputError("step: only causal attention can be run as a stream")
        if x.shape[1] > self.segment:
            raise InputError(f"x: {x.shape[1]} tokens are more than a segment of {self.segment}")
        if state.near and state.near[-1].k.shape[2] < self.segment:
            raise InputError("x: follows a segment that was shorter than the others")


class SegmentedBlock(nn.Module):
    """Pre-LN block: x + attn(norm1 x), then x + mlp(norm2 x)."""

    def __init__(
        self, d: int, h: int, ffn: int, *, segment: int, neighbours: int = 1, sinks: int = 4, causal: bool = True
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = SegmentedAttention(d, h, segment=segment, neighbours=neighbours, sinks=sinks, causal=causal)
        self.mlp = MLP(d, ffn)

    def forward(
        self, x: Float[Tensor, "b n d"], *, key_mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """The whole input at once."""
        x = x + self.attn(self.norm1(x), key_mask=key_mask)
        return x + self.mlp(self.norm2(x))

    def step(
        self, x: Float[Tensor, "b s d"], state: StreamState, *, key_mask: Bool[Tensor, "b s"] | None = None
    ) -> Float[Tensor, "b s d"]:
        """The next segment of a causal stream."""
        x = x + self.attn.step(self.norm1(x), state, key_mask=key_mask)
        return x + self.mlp(self.norm2(x))


def stream(
    blocks: Iterable[SegmentedBlock],
    segments: Iterable[Float[Tensor, "b _ d"]],
    *,
    key_masks: Iterable[Bool[Tensor, "b _"]] | None = None,
) -> Iterator[Float[Tensor, "b _ d"]]:
    """All blocks over an input that comes segment by segment; each comes out as it is done, and is not kept."""
    stack = list(blocks)
    states = [StreamState() for _ in stack]
    masks = iter(key_masks) if key_masks is not None else None
    for x in segments:
        mask = None if masks is None else next(masks)
        for block, state in zip(stack, states, strict=True):
            x = block.step(x, state, key_mask=mask)
        yield x


def _segments(mask: Tensor | None, *, x: Tensor, size: int) -> tuple[Tensor, ...]:
    return (_real(x) if mask is None else mask).split(size, dim=1)


def _real(x: Tensor) -> Tensor:
    return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)


def _all_real(visible: Tensor) -> bool:
    # on a GPU the answer would have to be waited for
    return visible.device.type == "cpu" and bool(visible.all())


def _cut_part(part: Part, size: int, *, copied: bool = False) -> Part:
    k, v, mask = part.k[:, :, :size], part.v[:, :, :size], part.mask[:, :size]
    if copied:  # a view would keep the whole segment
        k, v, mask = k.clone(), v.clone(), mask.clone()
    return Part(k=k, v=v, mask=mask, summary_k=part.summary_k, summary_v=part.summary_v)
