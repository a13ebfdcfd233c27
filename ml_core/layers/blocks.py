"""Transformer blocks: self-attention with DPE, cross-attention, the pre-LN block; parameter names are fixed."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ml_core.errors import InputError
from ml_core.kernels.dpe_attention import op
from ml_core.kernels.dpe_attention.positions import LogBuckets


@runtime_checkable
class SharesInput(Protocol):
    """A linear layer that works on a prepared input, which several layers on the same input can share."""

    def prepare(self, x: Tensor) -> Any:
        """What the layer makes of its input before the product (an INT8 layer: levels and steps)."""
        ...

    def apply_prepared(self, prepared: Any) -> Tensor:
        """The layer's output for `prepared`, the same bits as for the input itself."""
        ...


def project_all(x: Float[Tensor, "*b d"], *projections: nn.Module) -> list[Tensor]:
    """Every projection of x; the input is prepared once where the projections can share it."""
    sharing = [each for each in projections if not isinstance(each, nn.Linear) and isinstance(each, SharesInput)]
    if len(sharing) < len(projections):
        return [each(x) for each in projections]
    prepared = sharing[0].prepare(x)
    return [each.apply_prepared(prepared) for each in sharing]


@dataclass(kw_only=True)
class KVCache:
    """Keys and values of the positions decoded so far, in buffers of fixed size; `length` positions are filled."""

    k: Float[Tensor, "b h m k"]
    v: Float[Tensor, "b h m k"]
    length: int = 0

    @classmethod
    def empty(cls, *, b: int, h: int, max_n: int, k: int, device: torch.device, dtype: torch.dtype) -> "KVCache":
        """A cache for up to `max_n` positions."""
        shape = (b, h, max_n, k)
        return cls(k=torch.zeros(shape, device=device, dtype=dtype), v=torch.zeros(shape, device=device, dtype=dtype))

    def append(self, k: Float[Tensor, "b h n k"], v: Float[Tensor, "b h n k"]) -> tuple[Tensor, Tensor]:
        """Write n new positions in place; returns views of all filled positions. Raises InputError when full."""
        end = self.length + k.shape[2]
        if end > self.k.shape[2]:
            raise InputError(f"cache: {end} positions do not fit into {self.k.shape[2]}")
        self.k[:, :, self.length : end] = k
        self.v[:, :, self.length : end] = v
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]

    def reorder(self, rows: Int[Tensor, " b"]) -> None:
        """Let row i continue what row `rows[i]` was (beam search)."""
        self.k, self.v = self.k[rows], self.v[rows]


class DPE(nn.Module):
    """The learned bias by distance: `table` (h, 2·max_n − 1), entry i − j + max_n − 1 for query i and key j.

    Distances beyond the table are clamped to it, or share entries as `buckets` says. Several layers may share one DPE.
    """

    def __init__(self, h: int, max_n: int, *, buckets: LogBuckets | None = None) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(h, 2 * max_n - 1))
        self.buckets = buckets


class DPEAttention(nn.Module):
    """Multi-head self-attention whose only notion of position is the DPE table."""

    def __init__(
        self,
        d: int,
        h: int,
        max_n: int,
        *,
        causal: bool = False,
        bias: bool = True,
        backend: op.Backend = "auto",
        dpe: DPE | None = None,
    ) -> None:
        """dpe: another layer's, to share its table; `max_n` is of no matter then."""
        super().__init__()
        _check_heads(d, h=h)
        if dpe is not None and dpe.table.shape[0] != h:
            raise InputError(f"dpe: a table of {dpe.table.shape[0]} heads does not fit {h}")
        self.h, self.causal, self.backend = h, causal, backend
        self.q_proj = nn.Linear(d, d, bias=bias)
        self.k_proj = nn.Linear(d, d, bias=bias)
        self.v_proj = nn.Linear(d, d, bias=bias)
        self.out_proj = nn.Linear(d, d, bias=bias)
        self.dpe = DPE(h, max_n) if dpe is None else dpe

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        *,
        key_mask: Bool[Tensor, "b m"] | None = None,
        segment_ids: Int[Tensor, "b m"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "b n d"]:
        """`key_mask` is True where a position holds something; with a cache, masks cover its filled positions too."""
        q, k, v = (_split(y, h=self.h) for y in project_all(x, self.q_proj, self.k_proj, self.v_proj))
        offset = 0
        if cache is not None:
            offset = cache.length
            k, v = cache.append(k, v)
        out = op.dpe_attention(
            q,
            k,
            v,
            self.dpe.table,
            causal=self.causal,
            key_mask=key_mask,
            segment_ids=segment_ids,
            buckets=self.dpe.buckets,
            offset=offset,
            backend=self.backend,
        )
        return self.out_proj(_merge(out))


class CrossAttention(nn.Module):
    """Multi-head attention of n tokens onto m context tokens of width `d_context`."""

    def __init__(self, d: int, h: int, *, d_context: int | None = None, bias: bool = True) -> None:
        super().__init__()
        _check_heads(d, h=h)
        self.h = h
        self.q_proj = nn.Linear(d, d, bias=bias)
        self.k_proj = nn.Linear(d_context or d, d, bias=bias)
        self.v_proj = nn.Linear(d_context or d, d, bias=bias)
        self.out_proj = nn.Linear(d, d, bias=bias)

    def context(self, context: Float[Tensor, "b m c"]) -> tuple[Float[Tensor, "b h m k"], Float[Tensor, "b h m k"]]:
        """Keys and values of the context, to be computed once and passed to every step of decoding."""
        k, v = project_all(context, self.k_proj, self.v_proj)
        return _split(k, h=self.h), _split(v, h=self.h)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        kv: tuple[Float[Tensor, "b h m k"], Float[Tensor, "b h m k"]],
        *,
        key_mask: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """`kv` comes from `context`; `key_mask` is True where the context holds something, at least once a row."""
        q = _split(self.q_proj(x), h=self.h)
        visible = None if key_mask is None else key_mask[:, None, None, :]
        return self.out_proj(_merge(functional.scaled_dot_product_attention(q, *kv, attn_mask=visible)))

    def attention(
        self,
        x: Float[Tensor, "b n d"],
        kv: tuple[Float[Tensor, "b h m k"], Float[Tensor, "b h m k"]],
        *,
        key_mask: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b h n m"]:
        """The attention weights alone (rows sum to 1): where on the context each token looks."""
        q = _split(self.q_proj(x), h=self.h)
        scores = q @ kv[0].transpose(-1, -2) * q.shape[-1] ** -0.5
        if key_mask is not None:
            scores = scores.masked_fill(~key_mask[:, None, None, :], -torch.inf)
        return scores.softmax(-1)


class MLP(nn.Module):
    """up, GELU (tanh form: the one that cuBLASLt can fuse, so CPU and GPU compute the same function), down."""

    def __init__(self, d: int, ffn: int, *, bias: bool = True) -> None:
        super().__init__()
        self.up = nn.Linear(d, ffn, bias=bias)
        self.down = nn.Linear(ffn, d, bias=bias)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Position-wise."""
        return self.down(functional.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    """Pre-LN block: x + attn(norm1 x), with `d_context` also x + cross(norm_cross x), then x + mlp(norm2 x)."""

    def __init__(
        self,
        d: int,
        h: int,
        ffn: int,
        *,
        max_n: int,
        causal: bool = False,
        dropout: float = 0.0,
        d_context: int | None = None,
        bias: bool = True,
        backend: op.Backend = "auto",
        dpe: DPE | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d)
        self.attn = DPEAttention(d, h, max_n, causal=causal, bias=bias, backend=backend, dpe=dpe)
        if d_context is not None:
            self.norm_cross = nn.LayerNorm(d)
            self.cross = CrossAttention(d, h, d_context=d_context, bias=bias)
        self.norm2 = nn.LayerNorm(d)
        self.mlp = MLP(d, ffn, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.has_cross = d_context is not None

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        *,
        key_mask: Bool[Tensor, "b m"] | None = None,
        segment_ids: Int[Tensor, "b m"] | None = None,
        cache: KVCache | None = None,
        kv: tuple[Float[Tensor, "b h c k"], Float[Tensor, "b h c k"]] | None = None,
        context_mask: Bool[Tensor, "b c"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """`kv` (from `cross.context`) is needed exactly when the block was made with `d_context`."""
        if (kv is not None) != self.has_cross:
            raise InputError("kv: needed by a block with cross-attention, and by no other")
        attended = self.attn(self.norm1(x), key_mask=key_mask, segment_ids=segment_ids, cache=cache)
        x = x + self.dropout(attended)
        if kv is not None:
            x = x + self.dropout(self.cross(self.norm_cross(x), kv, key_mask=context_mask))
        return x + self.dropout(self.mlp(self.norm2(x)))


def _check_heads(d: int, *, h: int) -> None:
    if d % h:
        raise InputError(f"h: {h} heads do not divide the width {d}")


def _split(x: Tensor, *, h: int) -> Tensor:
    b, n, d = x.shape
    return x.reshape(b, n, h, d // h).transpose(1, 2)


def _merge(x: Tensor) -> Tensor:
    b, h, n, k = x.shape
    return x.transpose(1, 2).reshape(b, n, h * k)
