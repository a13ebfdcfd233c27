"""Text models: any transformers encoder or causal LM from a local folder, with queries, keys and values by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ml_core.distill.features import Features, HeadTaps, masked_mean
from ml_core.errors import InputError
from ml_core.models.transformers_shim import transformers_import

Pool = Literal["mean", "first", "last"]

# where a layer keeps its query, key and value projections: family by family, from the layer on
_PROJECTIONS = (
    ("attention.self.query", "attention.self.key", "attention.self.value"),  # BERT, RoBERTa, ELECTRA, DeBERTa
    ("attention.attn.q", "attention.attn.k", "attention.attn.v"),  # MPNet
    ("attention.q_lin", "attention.k_lin", "attention.v_lin"),  # DistilBERT
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),  # Llama, Mistral, Qwen, Gemma
)
# families that take a mask of (b, 1, n, n) as it is; of one of (b, n) they make one by a copy from the CPU, or ask the
# device whether all is real, and neither can be captured in a CUDA graph
_WIDE_MASKS = ("bert", "roberta", "electra", "mpnet", "distilbert")
_STACKS = ("encoder.layer", "transformer.layer", "model.layers", "layers", "layer")


class TextTaps(nn.Module):
    """A transformers model that returns Features: for teachers (frozen by the loader) and students alike.

    head_layers: the layers (from 0, negative from the end) whose queries, keys and values are shown. They are computed
    a second time from the layer's input, three products a layer, so no hook is needed; rotations by position are left
    out. pool: how tokens become the sequence's embedding ("last" is the last real token).
    """

    def __init__(self, model: nn.Module, *, head_layers: Sequence[int] = (), pool: Pool = "mean") -> None:
        super().__init__()
        self.model, self.pool = model, pool
        stack, prefix = _layer_stack(model)
        self.names = tuple(f"{prefix}.{index}" for index in range(len(stack)))
        self.head_layers = tuple(sorted(index % len(stack) for index in head_layers))
        for index in self.head_layers:
            _projections(stack[index])

    def forward(
        self,
        input_ids: Int[Tensor, "b n"],
        attention_mask: Int[Tensor, "b n"] | Bool[Tensor, "b n"] | None = None,
        **inputs: Tensor,
    ) -> Features:
        """Features of b texts; logits where the model has a head ((b, c), or (b, n, v) of a language model)."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        said = self.model(
            input_ids=input_ids,
            attention_mask=self._mask(mask.bool()),
            output_hidden_states=True,
            return_dict=True,
            **inputs,
        )
        states = said.hidden_states
        real = mask.bool()
        stack, _ = _layer_stack(self.model)
        return Features(
            layers=tuple(states[1:]),
            mask=real,
            pooled=self._pooled(states[-1], mask=real),
            logits=getattr(said, "logits", None),
            heads=tuple(_heads(stack[index], states[index], name=self.names[index]) for index in self.head_layers),
            names=self.names,
        )

    def _mask(self, real: Bool[Tensor, "b n"]) -> Tensor:
        """The mask in the form that the model's attention reads, where it is known; else as transformers wants it."""
        config = self.model.config
        attention = config._attn_implementation
        known = config.model_type in _WIDE_MASKS and not getattr(config, "is_decoder", False)
        if not known or attention not in ("sdpa", "eager"):
            return real.long()
        wide = real[:, None, None, :].expand(-1, 1, real.shape[1], -1)
        if attention == "sdpa":
            return wide
        dtype = next(self.model.parameters()).dtype
        return torch.zeros(wide.shape, dtype=dtype, device=real.device).masked_fill(~wide, torch.finfo(dtype).min)

    def _pooled(self, tokens: Float[Tensor, "b n d"], *, mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b d"]:
        if self.pool == "first":
            return tokens[:, 0]
        weights = mask.to(tokens.dtype)
        if self.pool == "last":
            places = torch.arange(mask.shape[1], device=mask.device) * mask
            weights = torch.nn.functional.one_hot(places.argmax(1), mask.shape[1]).to(tokens.dtype)
        return masked_mean(tokens, weights / weights.sum(1, keepdim=True).clamp_min(1.0))


def text_load(
    folder: Path | str,
    *,
    head_layers: Sequence[int] = (),
    pool: Pool | None = None,
    dtype: torch.dtype | None = None,
    frozen: bool = True,
) -> TextTaps:
    """A model from a local folder (config.json, *.safetensors): encoder, classifier or causal LM, as its config says.

    Nothing is downloaded, no remote code runs, no pickle is read. pool: "last" for causal models, else "mean". Raises
    InputError where the folder holds no such model.
    """
    transformers = transformers_import()
    root = Path(folder)
    if not (root / "config.json").exists():
        raise InputError(f"{root}: no config.json")
    config = transformers.AutoConfig.from_pretrained(root, local_files_only=True)
    names = list(config.architectures or [])
    causal = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    classifier = any(name.endswith("ForSequenceClassification") for name in names)
    kind = "AutoModelForCausalLM" if causal else "AutoModelForSequenceClassification" if classifier else "AutoModel"
    try:
        model: Any = getattr(transformers, kind).from_pretrained(
            root, local_files_only=True, use_safetensors=True, dtype=dtype or torch.float32
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{root}: {error}") from error
    taps = TextTaps(model, head_layers=head_layers, pool=pool or ("last" if causal else "mean"))
    return taps.eval().requires_grad_(False) if frozen else taps


def _layer_stack(model: nn.Module) -> tuple[nn.ModuleList, str]:
    """The model's layers, and their name; a wrapper's name for its body goes in front (bert.encoder.layer)."""
    bodies = [("", model), *((f"{name}.", child) for name, child in model.named_children())]
    for prefix, body in bodies:
        for path in _STACKS:
            found = _at(body, path)
            if isinstance(found, nn.ModuleList):
                return found, f"{prefix}{path}"
    raise InputError(f"{type(model).__name__}: no stack of layers of a known name ({', '.join(_STACKS)})")


def _heads(layer: nn.Module, x: Float[Tensor, "b n d"], *, name: str) -> HeadTaps:
    norm = _at(layer, "input_layernorm")
    x = x if norm is None else norm(x)
    q, k, v = (project(x) for project in _projections(layer))
    return HeadTaps(name=name, q=q, k=k, v=v)


def _projections(layer: nn.Module) -> tuple[nn.Module, ...]:
    for names in _PROJECTIONS:
        found = tuple(_at(layer, name) for name in names)
        if all(module is not None for module in found):
            return found
    raise InputError(f"{type(layer).__name__}: no query, key and value projections of a known name")


def _at(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        child = module._modules.get(name)
        if child is None:
            return None
        module = child
    return module
