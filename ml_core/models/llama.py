"""Llama-shaped causal language models for decoding: weights of a transformers checkpoint, packed, dense or int8.

Touvron et al. 2023: RMSNorm, rotated queries and keys (Su et al. 2021), grouped keys and values (Ainslie et al. 2023),
gated MLP. Inference only. Shapes: b rows, n tokens, m cached positions, d model, h heads, g key heads, k head size.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from ml_core.errors import ArtifactError, InputError
from ml_core.kernels.decode_row import op as one_row
from ml_core.kernels.gemv_int8 import op as gemv
from ml_core.layers.superops import rotated

Weights = Literal["dense", "int8"]
Source = Callable[[str, tuple[int, ...]], Tensor]
_ROPES = ("default", "linear", "llama3")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rope:
    """Rotation by position. kind: "default"; "linear" (positions over `factor`, Chen et al. 2023); "llama3" (only slow
    frequencies are divided, the Llama 3.1 release)."""

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192

    def frequencies(self, k: int) -> Float[Tensor, " k/2"]:
        """Radians a position for each pair of a head's k numbers, in fp32."""
        free = 1.0 / self.theta ** (torch.arange(0, k, 2, dtype=torch.float32) / k)
        if self.kind == "default":
            return free
        if self.kind == "linear":
            return free / self.factor
        turns = self.original * free / (2 * math.pi)  # within the original context
        share = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return free * (share + (1 - share) / self.factor)

    def tables(self, k: int, *, n: int) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
        """Cosines and sines of n positions, in fp32; halves form pairs."""
        angles = torch.arange(n, dtype=torch.float32)[:, None] * self.frequencies(k)[None, :]
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


@dataclass(frozen=True, kw_only=True, slots=True)
class LlamaConfig:
    """Geometry of a checkpoint."""

    vocabulary: int
    d: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    eps: float
    max_positions: int
    rope: Rope = Rope()
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False

    @classmethod
    def from_transformers(cls, given: Mapping[str, Any]) -> "LlamaConfig":
        """From the contents of a config.json. Raises InputError naming what this model would compute wrongly."""
        if given.get("model_type") != "llama":
            raise InputError(f"model_type: {given.get('model_type')!r} is not llama")
        if given.get("hidden_act", "silu") != "silu":
            raise InputError(f"hidden_act: {given['hidden_act']!r} is not silu")
        d, heads = given["hidden_size"], given["num_attention_heads"]
        config = cls(
            vocabulary=given["vocab_size"],
            d=d,
            layers=given["num_hidden_layers"],
            heads=heads,
            kv_heads=given.get("num_key_value_heads") or heads,
            head_size=given.get("head_dim") or d // heads,
            ffn=given["intermediate_size"],
            eps=given.get("rms_norm_eps", 1e-6),
            max_positions=given.get("max_position_embeddings", 2048),
            rope=_rope(given),
            tied=given.get("tie_word_embeddings", False),
            attention_bias=given.get("attention_bias", False),
            mlp_bias=given.get("mlp_bias", False),
        )
        if config.heads % config.kv_heads:
            raise InputError(f"num_key_value_heads: {config.kv_heads} do not divide {config.heads} heads")
        return config


@dataclass(frozen=True, kw_only=True, slots=True)
class Dense:
    """A product with a weight in the model's dtype."""

    weight: Float[Tensor, "c d"]
    bias: Float[Tensor, " c"] | None

    @property
    def parts(self) -> one_row.Parts:
        """Weight, no steps, bias."""
        return self.weight, None, self.bias

    def __call__(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b c"]:
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True, kw_only=True, slots=True)
class Int8:
    """A product with an int8 weight: the kernel for few rows, above 16 (a prompt) a weight widened for the one call."""

    weight: Tensor
    scale: Float[Tensor, " c"]
    bias: Float[Tensor, " c"] | None

    @property
    def parts(self) -> one_row.Parts:
        """Levels, their steps, bias."""
        return self.weight, self.scale, self.bias

    def __call__(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b c"]:
        if x.numel() // x.shape[-1] <= gemv.MOST_ROWS:
            return gemv.gemv_int8(x, self.weight, self.scale, self.bias)
        return functional.linear(x, (self.weight * self.scale[:, None]).to(x.dtype), self.bias)


Product = Dense | Int8


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    norm1: Tensor
    qkv: Product
    out: Product
    norm2: Tensor
    up: Product  # the rows of gate, then of up
    down: Product


@dataclass(frozen=True, kw_only=True, slots=True)
class Cache:
    """Keys and values of every layer (b g m k) in memory that stays where it is; slot = position."""

    k: list[Tensor]
    v: list[Tensor]

    @classmethod
    def empty(cls, config: LlamaConfig, *, b: int, m: int, like: Tensor) -> "Cache":
        """Zeros, in the dtype and on the device of `like`."""
        shape = (b, config.kv_heads, m, config.head_size)
        k, v = ([like.new_zeros(shape) for _ in range(config.layers)] for _ in range(2))
        return cls(k=k, v=v)


class Llama:
    """A loaded model. `prefill` reads prompts into a cache, `step` adds a token a row; neither waits for a GPU."""

    def __init__(
        self, config: LlamaConfig, source: Source, *, device: torch.device | str, dtype: torch.dtype, weights: Weights
    ) -> None:
        """source(name, shape): a checkpoint's tensors by transformers' names. Each goes to the device on its own."""
        if weights not in ("dense", "int8"):
            raise InputError(f"weights: {weights!r} is neither dense nor int8")
        self.config, self.weights, self.dtype, self.device = config, weights, dtype, torch.device(device)
        c, take = config, _Taken(source, device=self.device, dtype=dtype, weights=weights)
        self.embed = take.tensor("model.embed_tokens.weight", c.vocabulary, c.d)
        self.layers = [_layer(take, c, prefix=f"model.layers.{i}") for i in range(c.layers)]
        self.norm = take.tensor("model.norm.weight", c.d)
        self.head = take.packed(self.embed) if c.tied else take.product("lm_head", rows=c.vocabulary, width=c.d)
        self.cos, self.sin = (x.to(self.device, dtype) for x in c.rope.tables(c.head_size, n=c.max_positions))

    @classmethod
    def load(cls, folder: Path | str, *, device: torch.device | str, dtype: torch.dtype, weights: Weights) -> "Llama":
        """From a transformers folder. Raises ArtifactError where a tensor is missing, unknown or of another shape."""
        root = Path(folder)
        try:
            config = LlamaConfig.from_transformers(json.loads((root / "config.json").read_text()))
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactError(f"{root}: no usable config.json ({error!r})") from error
        with checkpoint(root) as source:
            return cls(config, source, device=device, dtype=dtype, weights=weights)

    def empty_cache(self, *, b: int, m: int) -> Cache:
        """A cache for b rows of up to m positions."""
        return Cache.empty(self.config, b=b, m=m, like=self.embed)

    def prefill(self, ids: Int[Tensor, "b n"], lengths: Int[Tensor, " b"], *, cache: Cache) -> Float[Tensor, "b v"]:
        """Read prompts, padded on the right, into the cache's first b rows; logits after each row's last token (fp32).

        What stands in the padding's slots is never seen: a row sees its own slots up to its position alone, and
        writes each before it sees it.
        """
        b, n = ids.shape
        x = functional.embedding(ids, self.embed)
        cos, sin = self.cos[:n], self.sin[:n]
        for layer, keys, values in zip(self.layers, cache.k, cache.v, strict=True):
            q, k, v = self._heads(layer.qkv(self._normed(x, layer.norm1)), cos=cos, sin=sin)
            keys[:b, :, :n], values[:b, :, :n] = k, v
            seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
            x = self._rest(layer, x, seen.transpose(1, 2).flatten(2))
        last = x[torch.arange(b, device=x.device), lengths - 1]
        return self.head(self._normed(last, self.norm)).float()

    def step(
        self, tokens: Int[Tensor, " b"], positions: Int[Tensor, " b"], *, cache: Cache, m: int
    ) -> Float[Tensor, "b v"]:
        """One more token a row at its own position < m; logits of the next (fp32). Attention runs over m slots.

        The work is the same whatever the values are, so that it can be captured in a graph. One row in half precision
        on CUDA takes five kernels a layer (kernels/decode_row).
        """
        if self.fuses(tokens.shape[0]):
            return self.step_fused(tokens, positions, cache=cache, m=m)
        return self.step_plain(tokens, positions, cache=cache, m=m)

    def fuses(self, b: int) -> bool:
        """Whether a step of b rows is taken by the kernels for one row."""
        return b == 1 and one_row.serves(self.embed)

    def step_fused(
        self, tokens: Int[Tensor, " 1"], positions: Int[Tensor, " 1"], *, cache: Cache, m: int
    ) -> Float[Tensor, "1 v"]:
        """`step` of one row, each layer five kernels; it reads the slots up to its position, not m."""
        c = self.config
        x = functional.embedding(tokens, self.embed)
        for layer, keys, values in zip(self.layers, cache.k, cache.v, strict=True):
            q = one_row.turned(
                x, layer.norm1, layer.qkv.parts, eps=c.eps, cos=self.cos, sin=self.sin, position=positions,
                keys=keys[:1], values=values[:1],
            )  # fmt: skip
            found = one_row.attended(q, keys[:1], values[:1], position=positions, most=m)
            x = one_row.added(x, found, layer.out.parts)
            x = one_row.added(x, one_row.gated(x, layer.norm2, layer.up.parts, eps=c.eps), layer.down.parts)
        return one_row.normed(x, self.norm, self.head.parts, eps=c.eps)

    def step_plain(
        self, tokens: Int[Tensor, " b"], positions: Int[Tensor, " b"], *, cache: Cache, m: int
    ) -> Float[Tensor, "b v"]:
        """`step` of any number of rows by torch's operators, int8 products by gemv_int8."""
        c, b = self.config, tokens.shape[0]
        x = functional.embedding(tokens, self.embed)[:, None]
        cos, sin = self.cos[positions][:, None, None], self.sin[positions][:, None, None]
        rows = torch.arange(b, device=tokens.device)
        seen = (torch.arange(m, device=tokens.device) <= positions[:, None])[:, None, None]
        bias = x.new_zeros(()).masked_fill(~seen, -torch.inf)  # what attention would make of `seen` in every layer
        for layer, keys, values in zip(self.layers, cache.k, cache.v, strict=True):
            q, k, v = self._heads(layer.qkv(self._normed(x, layer.norm1)), cos=cos, sin=sin)
            keys[rows, :, positions], values[rows, :, positions] = k[:, :, 0], v[:, :, 0]
            # the query heads that share keys stand as that many queries: nothing is repeated
            q = q.view(b, c.kv_heads, c.heads // c.kv_heads, c.head_size)
            found = functional.scaled_dot_product_attention(q, keys[:b, :, :m], values[:b, :, :m], attn_mask=bias)
            x = self._rest(layer, x, found.reshape(b, 1, -1))
        return self.head(self._normed(x[:, 0], self.norm)).float()

    def _heads(self, qkv: Tensor, *, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c = self.config
        y = qkv.unflatten(-1, (c.heads + 2 * c.kv_heads, c.head_size)).transpose(1, 2)
        turned = rotated(y[:, : c.heads + c.kv_heads], cos=cos, sin=sin)
        return turned[:, : c.heads], turned[:, c.heads :], y[:, c.heads + c.kv_heads :]

    def _rest(self, layer: _Layer, x: Tensor, context: Tensor) -> Tensor:
        x = x + layer.out(context)
        gate, up = layer.up(self._normed(x, layer.norm2)).chunk(2, dim=-1)
        return x + layer.down(functional.silu(gate) * up)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], weight, self.config.eps)


@contextmanager
def checkpoint(root: Path) -> Iterator[Source]:
    """The tensors of a folder of safetensors, one file or several, read one by one; in the end none may be left."""
    index = root / "model.safetensors.index.json"
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else []
        files = [safe_open(root / name, framework="pt") for name in names or ["model.safetensors"]]
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"{root}: no readable safetensors ({error!r})") from error
    holds = {name: each for each in files for name in list(each.keys())}
    left = {name for name in holds if not name.endswith("rotary_emb.inv_freq")}

    def source(name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in holds:
            raise ArtifactError(f"{root}: no tensor {name}")
        left.discard(name)
        return holds[name].get_tensor(name)

    yield source
    left.discard("lm_head.weight")  # some write a tied head out
    if left:
        raise ArtifactError(f"{root}: {len(left)} tensors that this model does not know, {sorted(left)[0]} among them")


def random_source(*, seed: int, device: torch.device | str, std: float = 0.02) -> Source:
    """Weights at random, for speed where no checkpoint is had: norms are ones, the rest is normal."""
    generator = torch.Generator(device).manual_seed(seed)

    def source(name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(shape, device=device)
        return torch.randn(shape, device=device, generator=generator) * std

    return source


class _Taken:
    """Takes tensors from a source to where and what they are needed as."""

    def __init__(self, source: Source, *, device: torch.device, dtype: torch.dtype, weights: Weights) -> None:
        self.source, self.device, self.dtype, self.weights = source, device, dtype, weights

    def tensor(self, name: str, *shape: int) -> Tensor:
        found = self.source(name, shape)
        if found.shape != shape:
            raise ArtifactError(f"{name}: expected {shape}, got {tuple(found.shape)}")
        return found.to(self.device, self.dtype)

    def product(self, *names: str, rows: int | Sequence[int], width: int, bias: bool = False) -> Product:
        """The layers `names` of one input as one product."""
        sizes = [rows] if isinstance(rows, int) else list(rows)
        weight = [self.tensor(f"{name}.weight", size, width) for name, size in zip(names, sizes, strict=True)]
        given = [self.tensor(f"{name}.bias", size) for name, size in zip(names, sizes, strict=True)] if bias else []
        return self.packed(torch.cat(weight), torch.cat(given) if bias else None)

    def packed(self, weight: Tensor, bias: Tensor | None = None) -> Product:
        if self.weights == "dense":
            return Dense(weight=weight, bias=bias)
        levels, scale = gemv.quantize_rows(weight)
        return Int8(weight=levels, scale=scale, bias=bias)


def _layer(take: _Taken, c: LlamaConfig, *, prefix: str) -> _Layer:
    attn, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    q, kv = c.heads * c.head_size, c.kv_heads * c.head_size
    names = [f"{attn}.{name}_proj" for name in "qkv"]
    return _Layer(
        norm1=take.tensor(f"{prefix}.input_layernorm.weight", c.d),
        qkv=take.product(*names, rows=(q, kv, kv), width=c.d, bias=c.attention_bias),
        out=take.product(f"{attn}.o_proj", rows=c.d, width=q, bias=c.attention_bias),
        norm2=take.tensor(f"{prefix}.post_attention_layernorm.weight", c.d),
        up=take.product(f"{mlp}.gate_proj", f"{mlp}.up_proj", rows=(c.ffn, c.ffn), width=c.d, bias=c.mlp_bias),
        down=take.product(f"{mlp}.down_proj", rows=c.d, width=c.ffn, bias=c.mlp_bias),
    )


def _rope(given: Mapping[str, Any]) -> Rope:
    """`rope_parameters` (transformers from 5 on), or `rope_theta` and `rope_scaling`."""
    found = dict(given.get("rope_parameters") or given.get("rope_scaling") or {})
    kind = found.get("rope_type", found.get("type", "default"))
    if kind not in _ROPES:
        raise InputError(f"rope_scaling: {kind!r} is none of {', '.join(_ROPES)}")
    if found.get("partial_rotary_factor", given.get("partial_rotary_factor", 1.0)) != 1.0:
        raise InputError("partial_rotary_factor: heads that are rotated in part are not known here")
    return Rope(
        theta=float(found.get("rope_theta", given.get("rope_theta", 10_000.0))),
        kind=kind,
        factor=float(found.get("factor", 1.0)),
        low=float(found.get("low_freq_factor", 1.0)),
        high=float(found.get("high_freq_factor", 4.0)),
        original=int(found.get("original_max_position_embeddings", 8192)),
    )
