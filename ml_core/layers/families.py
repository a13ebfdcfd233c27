"""The families of blocks that are known: where each keeps its layers, and which forward pass fits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ml_core.errors import InputError
from ml_core.kernels.norm_mlp.naive import Activation
from ml_core.layers.fused_blocks import BertFused, FusedBlock, LlamaFused, MPNetFused, OwnFused, ViTFused
from ml_core.layers.superops import Attention, NormMLP, NormQKV, SuperOps

TWELVE = (
    "norm", "q", "k", "v", "split", "scores", "bias+mask", "softmax", "context", "out-projection+residual",
    "up+activation", "down+residual",
)  # fmt: skip
_PACKED = ("norm", "qkv", *TWELVE[4:])


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where a kind of block keeps its layers (paths from the block on), and the forward pass that fits them.

    norm_first: pre-LN. kept: parts that stay in use as they are. activation: a path, or the function itself where the
    block has no layer for it. probe: keyword arguments of a call that exercises masks and positions.
    """

    name: str
    forward: type[FusedBlock]
    norm_first: bool
    projections: tuple[str, ...]
    out: str
    up: tuple[str, ...]
    down: str
    norms: tuple[str, str]
    heads: Callable[[nn.Module], tuple[int, int]]
    scale: Callable[[nn.Module], float]
    probe: Callable[[nn.Module, Tensor], dict[str, Any]]
    activation: str
    attention_dropout: str | None = None
    out_branch: tuple[str, ...] = ()
    hidden_dropout: str | None = None
    mlp_branch: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    operators: tuple[str, ...] = TWELVE
    refuse: Callable[[nn.Module], str | None] = lambda block: None

    @property
    def linears(self) -> tuple[str, ...]:
        """Paths of the layers that must be nn.Linear."""
        return (*self.projections, self.out, *self.up, self.down)

    @property
    def roles(self) -> tuple[str, ...]:
        """Paths of all parts that the super-operators take over."""
        optional = (self.attention_dropout, self.hidden_dropout, self.activation)
        parts = (*self.linears, *self.norms, *self.out_branch, *self.mlp_branch)
        return (*parts, *(each for each in optional if each is not None))

    def fits(self, block: nn.Module) -> bool:
        """Whether the block has all of this family's products and norms at their places."""
        return all(at(block, path) is not None for path in (*self.linears, *self.norms))

    def build(self, block: nn.Module) -> SuperOps:
        """The block's super-operators. Raises InputError where a layer is not what it looks like."""
        heads, kv_heads = self.heads(block)
        first, second = (at(block, path) for path in self.norms)
        before = (first, second) if self.norm_first else (None, None)
        after = (None, None) if self.norm_first else (first, second)
        hidden = None if self.hidden_dropout is None else at(block, self.hidden_dropout)
        return SuperOps(
            qkv=NormQKV(before[0], _all(block, self.projections), heads=heads, kv_heads=kv_heads),
            attention=Attention(
                at(block, self.out), branch=_all(block, self.out_branch), after=after[0], scale=self.scale(block)
            ),
            mlp=NormMLP(
                _all(block, self.up),
                at(block, self.down),
                activation=activation_of(at(block, self.activation) or self.activation),
                norm=before[1],
                after=after[1],
                hidden_dropout=None if isinstance(hidden, nn.Identity) else hidden,
                branch=_all(block, self.mlp_branch),
            ),
        )


def at(module: nn.Module, path: str) -> Any:
    """The submodule at a dotted path, or None."""
    for name in path.split("."):
        child = module._modules.get(name)
        if child is None:
            return None
        module = child
    return module


def activation_of(module: nn.Module | str) -> Activation:
    """Which activation a layer computes, found by its values. Raises InputError for any other."""
    known: dict[Activation, Callable[[Tensor], Tensor]] = {
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "silu": torch.nn.functional.silu,
    }
    if isinstance(module, str):
        if module not in known:
            raise InputError(f"activation: {module!r} is none of {', '.join(known)}")
        return module
    grid = torch.linspace(-8, 8, 1_001, dtype=torch.float64)
    with torch.no_grad():
        got = module(grid.clone())
    for name, function in known.items():
        if torch.allclose(got, function(grid), rtol=0, atol=1e-9):
            return name
    raise InputError(f"activation: {type(module).__name__} computes none of {', '.join(known)}")


def _all(block: nn.Module, paths: Sequence[str]) -> list[Any]:
    return [at(block, path) for path in paths]


def _hf_refuse(path: str) -> Callable[[nn.Module], str | None]:
    def refuse(block: nn.Module) -> str | None:
        config = at(block, path).config
        if config._attn_implementation not in ("sdpa", "eager"):
            return f"attention implementation {config._attn_implementation!r} is neither sdpa nor eager"
        if config.is_decoder if "is_decoder" in vars(config) else False:
            return "is a decoder"
        return None

    return refuse


def _window(x: Tensor, *, causal: bool) -> Tensor:
    """An additive mask (b 1 n n) that hides the last token of the second input, and the future."""
    n = x.shape[1]
    hidden = torch.zeros(x.shape[0], 1, n, n, dtype=torch.bool, device=x.device)
    hidden[1:, :, :, -1] = True
    if causal:
        hidden = hidden | torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
    return torch.zeros(hidden.shape, dtype=x.dtype, device=x.device).masked_fill(hidden, torch.finfo(x.dtype).min)


def _llama_probe(block: nn.Module, x: Tensor) -> dict[str, Any]:
    k = block.self_attn.head_dim
    angle = torch.linspace(0, 3, x.shape[1] * (k // 2), dtype=x.dtype, device=x.device).view(1, x.shape[1], k // 2)
    angle = torch.cat([angle, angle], -1)
    return {"attention_mask": _window(x, causal=True), "position_embeddings": (angle.cos(), angle.sin())}


def _mpnet_probe(block: nn.Module, x: Tensor) -> dict[str, Any]:
    n, h = x.shape[1], block.attention.attn.num_attention_heads
    bias = torch.linspace(-1, 1, h * n * n, dtype=x.dtype, device=x.device).view(1, h, n, n)
    return {"attention_mask": _window(x, causal=False), "position_bias": bias}


def _own_probe(block: nn.Module, x: Tensor) -> dict[str, Any]:
    mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    mask[1:, -1] = False
    if not block.has_cross:
        return {"key_mask": mask}
    context = torch.linspace(-1, 1, block.cross.k_proj.in_features, dtype=x.dtype, device=x.device)
    return {"key_mask": mask, "kv": block.cross.context(context.expand(x.shape[0], 3, -1))}


def _bert_heads(block: nn.Module) -> tuple[int, int]:
    return (block.attention.self.num_attention_heads,) * 2


def _llama_heads(block: nn.Module) -> tuple[int, int]:
    inner = block.self_attn
    return inner.q_proj.out_features // inner.head_dim, inner.k_proj.out_features // inner.head_dim


FAMILIES = (
    Family(
        name="bert",
        forward=BertFused,
        norm_first=False,
        projections=("attention.self.query", "attention.self.key", "attention.self.value"),
        out="attention.output.dense",
        up=("intermediate.dense",),
        down="output.dense",
        norms=("attention.output.LayerNorm", "output.LayerNorm"),
        heads=_bert_heads,
        scale=lambda block: block.attention.self.scaling,
        probe=lambda block, x: {"attention_mask": _window(x, causal=False)},
        activation="intermediate.intermediate_act_fn",
        attention_dropout="attention.self.dropout",
        out_branch=("attention.output.dropout",),
        mlp_branch=("output.dropout",),
        refuse=_hf_refuse("attention.self"),
    ),
    Family(
        name="mpnet",
        forward=MPNetFused,
        norm_first=False,
        projections=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        out="attention.attn.o",
        up=("intermediate.dense",),
        down="output.dense",
        norms=("attention.LayerNorm", "output.LayerNorm"),
        heads=lambda block: (block.attention.attn.num_attention_heads,) * 2,
        scale=lambda block: block.attention.attn.attention_head_size**-0.5,
        probe=_mpnet_probe,
        activation="intermediate.intermediate_act_fn",
        attention_dropout="attention.attn.dropout",
        out_branch=("attention.dropout",),
        mlp_branch=("output.dropout",),
    ),
    Family(
        name="llama",
        forward=LlamaFused,
        norm_first=True,
        projections=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        out="self_attn.o_proj",
        up=("mlp.gate_proj", "mlp.up_proj"),
        down="mlp.down_proj",
        norms=("input_layernorm", "post_attention_layernorm"),
        heads=_llama_heads,
        scale=lambda block: block.self_attn.scaling,
        probe=_llama_probe,
        activation="mlp.act_fn",
        refuse=_hf_refuse("self_attn"),
    ),
    Family(
        name="vit",
        forward=ViTFused,
        norm_first=True,
        projections=("attn.qkv",),
        out="attn.proj",
        up=("mlp.fc1",),
        down="mlp.fc2",
        norms=("norm1", "norm2"),
        heads=lambda block: (block.attn.num_heads,) * 2,
        scale=lambda block: block.attn.scale,
        probe=lambda block, x: {"attn_mask": _window(x, causal=False)},
        activation="mlp.act",
        attention_dropout="attn.attn_drop",
        out_branch=("attn.proj_drop", "ls1", "drop_path1"),
        hidden_dropout="mlp.drop1",
        mlp_branch=("mlp.drop2", "ls2", "drop_path2"),
        operators=_PACKED,
    ),
    Family(
        name="assay",
        forward=OwnFused,
        norm_first=True,
        projections=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
        out="attn.out_proj",
        up=("mlp.up",),
        down="mlp.down",
        norms=("norm1", "norm2"),
        heads=lambda block: (block.attn.h,) * 2,
        scale=lambda block: (block.attn.q_proj.out_features // block.attn.h) ** -0.5,
        probe=_own_probe,
        activation="gelu_tanh",
        out_branch=("dropout",),
        mlp_branch=("dropout",),
        kept=("attn.dpe", "norm_cross", "cross"),
    ),
)
