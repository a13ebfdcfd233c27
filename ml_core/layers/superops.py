"""Three operators that do a transformer block's twelve: norm with q, k, v; attention with its residual; norm with MLP.

Each is a view on the layers that it is made of (norms, linear layers, dropouts): these keep their names, their
parameters and their place in the state dict. Pre-LN, post-LN, RMSNorm with SwiGLU and rotations are its variants.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ml_core.errors import InputError
from ml_core.kernels.dpe_attention import op as dpe
from ml_core.kernels.dpe_attention.positions import LogBuckets
from ml_core.kernels.norm_mlp import op as mlp
from ml_core.kernels.norm_mlp.naive import Activation
from ml_core.kernels.norm_qkv import op as qkv
from ml_core.kernels.norm_qkv.naive import Norm
from ml_core.kernels.norm_qkv.paths import Choice
from ml_core.layers.packing import PackedLinears

Rotation = tuple[Float[Tensor, "#b n k"], Float[Tensor, "#b n k"]]


class NormQKV(nn.Module):
    """Norm and one product for queries, keys and values, in head layout.

    norm: LayerNorm or an RMSNorm; None in a post-LN block. projections: q, k and v, or one layer that holds all three.
    """

    def __init__(
        self, norm: nn.Module | None, projections: Sequence[nn.Linear], *, heads: int, kv_heads: int | None = None
    ) -> None:
        super().__init__()
        self.norm = norm
        self.projections = nn.ModuleList(projections)
        self.heads, self.kv_heads = heads, heads if kv_heads is None else kv_heads
        rows = sum(each.out_features for each in projections)
        if heads % self.kv_heads or rows % (heads + 2 * self.kv_heads):
            raise InputError(f"heads: {rows} outputs are not {heads} + 2 · {self.kv_heads} heads of one size")
        self.head_size = rows // (heads + 2 * self.kv_heads)
        self.packed = PackedLinears(list(projections))
        norm_view(norm)

    def forward(
        self, x: Float[Tensor, "b n d"], *, rotation: Rotation | None = None, path: str = "auto"
    ) -> tuple[Float[Tensor, "b h n k"], Float[Tensor, "b g n k"], Float[Tensor, "b g n k"]]:
        """rotation: cosines and sines by position, of queries and keys (Su et al. 2021, RoPE; halves form pairs)."""
        q, k, v = qkv.norm_qkv(
            x,
            *self.packed.tensors(),
            heads=self.heads,
            kv_heads=self.kv_heads,
            norm=norm_view(self.norm),
            path=path,
        )
        if rotation is not None:
            cos, sin = (each.unsqueeze(1) for each in rotation)
            q, k = rotated(q, cos=cos, sin=sin), rotated(k, cos=cos, sin=sin)
        return q, k, v


class Attention(nn.Module):
    """softmax(q kᵀ · scale + bias) v, out-projection and residual; in a post-LN block also the norm after it.

    branch: what is done to the projection before it is added (dropout, layer scale, stochastic depth), in order.
    """

    def __init__(
        self,
        out: nn.Linear,
        *,
        branch: Sequence[nn.Module] = (),
        after: nn.Module | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.out, self.after, self.scale = out, after, scale
        self.branch = nn.ModuleList(each for each in branch if not isinstance(each, nn.Identity))
        norm_view(after)

    def forward(
        self,
        q: Float[Tensor, "b h n k"],
        k: Float[Tensor, "b g m k"],
        v: Float[Tensor, "b g m k"],
        residual: Float[Tensor, "b n d"],
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        path: str = "auto",
    ) -> Float[Tensor, "b n d"]:
        """mask: True where visible, or an additive bias, broadcast to (b, h, n, m); causal only without a mask.

        dropout: the share of attention weights that is left out, this time.
        """
        if q.shape[1] != k.shape[1] and mask is not None:
            # with a mask and shared keys, torch's fused kernels on CUDA would leave for the slow one
            k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for each in (k, v))
        context = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=causal,
            scale=self.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return self.join(context, residual, path=path)

    def with_distances(
        self,
        q: Float[Tensor, "b h n k"],
        k: Float[Tensor, "b h m k"],
        v: Float[Tensor, "b h m k"],
        residual: Float[Tensor, "b n d"],
        *,
        table: Float[Tensor, "h t"],
        causal: bool = False,
        key_mask: Bool[Tensor, "b m"] | None = None,
        segment_ids: Int[Tensor, "b m"] | None = None,
        buckets: LogBuckets | None = None,
        offset: int = 0,
        backend: dpe.Backend = "auto",
        path: str = "auto",
    ) -> Float[Tensor, "b n d"]:
        """With the learned bias by distance: kernels.dpe_attention has the arguments. Weights are not dropped out."""
        context = dpe.dpe_attention(
            q,
            k,
            v,
            table,
            causal=causal,
            key_mask=key_mask,
            segment_ids=segment_ids,
            buckets=buckets,
            offset=offset,
            scale=self.scale,
            backend=backend,
        )
        return self.join(context, residual, path=path)

    def join(
        self, context: Float[Tensor, "b h n k"], residual: Float[Tensor, "b n d"], *, path: str = "auto"
    ) -> Float[Tensor, "b n d"]:
        """Heads side by side, projected, added to the residual."""
        x = context.transpose(1, 2).flatten(2)
        return _joined(x, self.out, residual, branch=self.branch, after=self.after, path=path)


class NormMLP(nn.Module):
    """Norm, up, activation, down, residual; in a post-LN block the norm comes last.

    up: one layer, or gate and up of a gated MLP. activation: "gelu" (erf), "gelu_tanh" or "silu": on every device the
    same function. hidden_dropout, branch: in training.
    """

    def __init__(
        self,
        up: Sequence[nn.Linear],
        down: nn.Linear,
        *,
        activation: Activation,
        norm: nn.Module | None = None,
        after: nn.Module | None = None,
        hidden_dropout: nn.Module | None = None,
        branch: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.up, self.down = nn.ModuleList(up), down
        self.norm, self.after, self.activation, self.hidden_dropout = norm, after, activation, hidden_dropout
        self.branch = nn.ModuleList(each for each in branch if not isinstance(each, nn.Identity))
        self.packed = PackedLinears(list(up))
        norm_view(norm)
        norm_view(after)

    def forward(self, x: Float[Tensor, "b n d"], *, path: str = "auto") -> Float[Tensor, "b n d"]:
        """x and its MLP together."""
        hidden = mlp.norm_up(
            x,
            *self.packed.tensors(),
            activation=self.activation,
            gated=len(self.up) == 2,
            norm=norm_view(self.norm),
            path=path,
        )
        if self.hidden_dropout is not None and _active(self.hidden_dropout):
            hidden = self.hidden_dropout(hidden)
        return _joined(hidden, self.down, x, branch=self.branch, after=self.after, path=path)


@dataclass(kw_only=True)
class SuperOps:
    """The three operators of one block. No module itself: the block's own layers are registered in the block."""

    qkv: NormQKV
    attention: Attention
    mlp: NormMLP

    def pack(self) -> None:
        """Lay the packed weights out again, after something moved them."""
        self.qkv.packed.pack()
        self.mlp.packed.pack()


def dispatch(ops: SuperOps, x: Float[Tensor, "b n d"]) -> dict[Literal["qkv", "out", "up", "down"], Choice]:
    """Which path each product of a block takes for inputs like x, and why; str() of each is a line to print."""
    f, after = ops.mlp.down.in_features, norm_view(ops.attention.after)
    weight, bias = ops.mlp.packed.tensors()
    hidden = x[..., :1].expand(-1, -1, f)
    context = x[..., :1].expand(-1, -1, ops.attention.out.in_features)
    return {
        "qkv": qkv.choose(x, c=ops.qkv.packed.tensors()[0].shape[0], norm=norm_view(ops.qkv.norm)),
        "out": mlp.choose_down(context, weight=ops.attention.out.weight, after=after),
        "up": mlp.choose_up(
            x,
            weight=weight,
            bias=bias,
            activation=ops.mlp.activation,
            gated=len(ops.mlp.up) == 2,
            norm=norm_view(ops.mlp.norm),
        ),
        "down": mlp.choose_down(hidden, weight=ops.mlp.down.weight, after=norm_view(ops.mlp.after)),
    }


def norm_view(module: nn.Module | None) -> Norm | None:
    """A norm layer's kind, eps and weights. Raises InputError for a module that is none of the known norms."""
    if module is None:
        return None
    if isinstance(module, nn.LayerNorm) and type(module).__name__ in ("LayerNorm",):
        if len(module.normalized_shape) == 1:
            return Norm(kind="layer", eps=module.eps, weight=module.weight, bias=module.bias)
    elif type(module).__name__ in _RMS_NORMS and isinstance(getattr(module, "weight", None), Tensor):
        attributes: dict[str, Any] = module.__dict__
        eps = attributes.get("variance_epsilon", attributes.get("eps"))
        if eps is not None:
            return Norm(kind="rms", eps=eps, weight=module.weight)
    raise InputError(f"norm: {type(module).__name__} is neither a LayerNorm over one axis nor a known RMSNorm")


def rotated(x: Float[Tensor, "b h n k"], *, cos: Tensor, sin: Tensor) -> Float[Tensor, "b h n k"]:
    """x turned by cosines and sines by position (Su et al. 2021, RoPE); its halves form the pairs."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


# by name: others of the same look compute something else (Gemma's scales by 1 + weight)
_RMS_NORMS = ("RMSNorm", "LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm")


def _joined(
    x: Tensor, linear: nn.Linear, residual: Tensor, *, branch: nn.ModuleList, after: nn.Module | None, path: str
) -> Tensor:
    active = [each for each in branch if _active(each)]
    if not active:
        return mlp.linear_residual(x, linear.weight, linear.bias, residual, after=norm_view(after), path=path)
    y = linear(x)
    for each in active:
        y = each(y)
    return qkv.torch_norm(residual + y, norm_view(after))


def _active(module: nn.Module) -> bool:
    """Whether a module of a branch does anything now: dropout and stochastic depth do nothing in eval mode."""
    for name in ("p", "drop_prob"):
        if name in module.__dict__:
            return module.training and module.__dict__[name] != 0
    return True
