"""The forward passes of the blocks that are known, each on three super-operators.

A fused block is the same object with the same layers, whose class is a subclass of its own: hooks on it, isinstance,
parameters' names and the state dict stay what they were.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ml_core.errors import InputError
from ml_core.layers.superops import SuperOps


class FusedBlock(nn.Module):
    """What every fused block has. Its forward takes and returns what the block's own class takes and returns."""

    _super_ops: SuperOps
    # where each layer that was taken over hangs: parent, name, layer
    _taken: list[tuple[nn.Module, str, nn.Module]]

    def _ops(self) -> SuperOps:
        """The super-operators, if the layers that they were made of are still the block's own."""
        if not torch.compiler.is_compiling():
            for parent, name, layer in self._taken:
                if parent._modules[name] is not layer:
                    raise InputError(f"{name}: replaced in a fused block, which still holds the old one; unfuse first")
                if layer._forward_hooks or layer._forward_pre_hooks:
                    raise InputError(f"{name}: has a hook, which a fused block would not run; unfuse first")
        return self._super_ops

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self._super_ops.pack()
        return self


class BertFused(FusedBlock):
    """BERT, RoBERTa, ELECTRA as encoders: post-LN."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        inner = self.attention.self
        if past_key_values is not None:
            raise InputError("past_key_values: a fused encoder block keeps none")
        _check_call(inner.config, mask=attention_mask, kwargs=kwargs)
        ops, dropout = self._ops(), inner.dropout
        q, k, v = ops.qkv(hidden_states)
        p = dropout.p if dropout.training else 0.0
        return ops.mlp(ops.attention(q, k, v, hidden_states, mask=attention_mask, dropout=p))


class MPNetFused(FusedBlock):
    """MPNet: post-LN, and a bias by distance that comes with the call."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor]:
        _check_call(None, mask=attention_mask, kwargs={"output_attentions": output_attentions, **kwargs})
        mask = attention_mask
        if mask is not None and not mask.is_floating_point():
            raise InputError(f"attention_mask: {mask.dtype}; MPNet's attention adds its mask to the scores")
        if position_bias is not None:
            mask = position_bias if mask is None else position_bias + mask
        ops, dropout = self._ops(), self.attention.attn.dropout
        q, k, v = ops.qkv(hidden_states)
        p = dropout.p if dropout.training else 0.0
        return (ops.mlp(ops.attention(q, k, v, hidden_states, mask=mask, dropout=p)),)


class LlamaFused(FusedBlock):
    """Llama, Mistral, Qwen2: RMSNorm, rotations, shared keys and values, gated MLP, and a cache."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        inner, ops = self.self_attn, self._ops()
        _check_call(inner.config, mask=attention_mask, kwargs=kwargs)
        if position_embeddings is None:
            raise InputError("position_embeddings: cosines and sines are needed")
        q, k, v = ops.qkv(hidden_states, rotation=position_embeddings)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, inner.layer_idx)
        n = q.shape[2]
        said = kwargs.get("is_causal")
        # transformers' own rule: without a mask, and for more than one query, sdpa is told to be causal
        causal = inner.config._attn_implementation == "sdpa" and attention_mask is None and n > 1
        causal = causal and bool(inner.is_causal if said is None else said)
        if causal and k.shape[2] > n:
            k, v = k[:, :, :n], v[:, :, :n]
        p = inner.attention_dropout if self.training else 0.0
        return ops.mlp(ops.attention(q, k, v, hidden_states, mask=attention_mask, causal=causal, dropout=p))


class ViTFused(FusedBlock):
    """timm's Block: pre-LN, q, k and v in one layer, layer scale and stochastic depth."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        ops, dropout = self._ops(), self.attn.attn_drop
        q, k, v = ops.qkv(x)
        p = dropout.p if dropout.training else 0.0
        return ops.mlp(ops.attention(q, k, v, x, mask=attn_mask, causal=is_causal, dropout=p))


class OwnFused(FusedBlock):
    """ml_core.layers.blocks.Block: pre-LN, DPE, cache, and cross-attention (left as it is) between the two halves."""

    def forward(
        self,
        x: Tensor,
        *,
        key_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        cache: Any = None,
        kv: tuple[Tensor, Tensor] | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        if (kv is not None) != self.has_cross:
            raise InputError("kv: needed by a block with cross-attention, and by no other")
        ops, attn = self._ops(), self.attn
        q, k, v = ops.qkv(x)
        offset = 0
        if cache is not None:
            offset = cache.length
            k, v = cache.append(k, v)
        x = ops.attention.with_distances(
            q,
            k,
            v,
            x,
            table=attn.dpe.table,
            causal=attn.causal,
            key_mask=key_mask,
            segment_ids=segment_ids,
            buckets=attn.dpe.buckets,
            offset=offset,
            backend=attn.backend,
        )
        if kv is not None:
            x = x + self.dropout(self.cross(self.norm_cross(x), kv, key_mask=context_mask))
        return ops.mlp(x)


def _check_call(config: Any, *, mask: Any, kwargs: dict[str, Any]) -> None:
    """Refuse what the fused block would silently do otherwise than the block itself."""
    if kwargs.get("output_attentions") or (config is not None and config.output_attentions):
        raise InputError("output_attentions: a fused block never has the attention weights; unfuse the model")
    for name in ("position_bias", "softcap", "cache"):
        if kwargs.get(name) is not None:
            raise InputError(f"{name}: unknown to a fused block")
    if config is not None and config._attn_implementation not in ("sdpa", "eager"):
        raise InputError(
            f"attention implementation {config._attn_implementation!r}: a fused block follows sdpa or eager"
        )
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 4):
        raise InputError("attention_mask: expected (b, 1 or h, n, m), as the model makes it")
