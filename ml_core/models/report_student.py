"""The radiology student: a timm ViT on a convolutional stem, a findings head with its own attention, a gate for what is
no chest film, and a cross-attention decoder that writes one sentence for each finding that was decided.

Shapes: b images, t encoder tokens, f = 14 findings, s = 4 states, n text tokens, d decoder width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ml_core.data.findings import FINDINGS
from ml_core.layers.blocks import Block, KVCache
from ml_core.models.timm_shim import timm_import

STATES = 4  # positive, negative, uncertain, absent: the order of contracts.FindingState


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportStudentConfig:
    """Geometry. `encoder`: any timm ViT; `stem`: a timm EfficientNet whose first `stem_stages` stages embed patches."""

    vocabulary: int
    image_size: int = 256
    encoder: str = "vit_tiny_patch16_224"
    encoder_depth: int = 8
    stem: str = "tf_efficientnet_lite0"
    stem_stages: int = 5
    decoder_layers: int = 4
    decoder_width: int = 256
    decoder_heads: int = 4
    decoder_ffn: int = 1024
    max_tokens: int = 160


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What the encoder and the heads say of b images.

    tokens (b t e), layers: the encoder's block outputs (b t e each), gate (b) logit of "a chest film", states (b f s)
    logits, attention (b f g g) over the image's grid, sums to 1, memory (b t d) and contexts (b f d) for the decoder.
    """

    tokens: Tensor
    layers: tuple[Tensor, ...]
    gate: Tensor
    states: Tensor
    attention: Tensor
    memory: Tensor
    contexts: Tensor

    def rows(self, at: Tensor | slice) -> "Seen":
        """What was seen on some of the images (a mask, indices or a slice), without the layers."""
        return Seen(
            tokens=self.tokens[at],
            layers=(),
            gate=self.gate[at],
            states=self.states[at],
            attention=self.attention[at],
            memory=self.memory[at],
            contexts=self.contexts[at],
        )


class StemEmbed(nn.Module):
    """Patch embedding by the first stages of an EfficientNet (stride 16), in the place of timm's PatchEmbed."""

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 1,
        embed_dim: int = 192,
        *,
        stem: str,
        stages: int,
        **_: Any,
    ) -> None:
        super().__init__()
        net = timm_import().create_model(stem, in_chans=in_chans, num_classes=0)
        self.conv_stem, self.bn1 = net.conv_stem, net.bn1
        self.blocks = nn.Sequential(*list(net.blocks)[:stages])
        side = img_size // 16
        self.grid_size, self.num_patches, self.patch_size = (side, side), side * side, (16, 16)
        self.proj = nn.Linear(_channels(self.blocks), embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """(b 1 h w) in [0, 1] to (b t e)."""
        return self.proj(self.maps(images).flatten(2).transpose(1, 2))

    def maps(self, images: Tensor) -> Tensor:
        """(b 1 h w) in [0, 1] to the last stage's maps (b c h/16 w/16)."""
        if images.device.type == "cpu" and not self.training:
            # oneDNN's convolutions round differently by batch size, and are twice as fast on one image (docs/log.md)
            return torch.cat([self._maps(images[i : i + 1]) for i in range(images.shape[0])])
        return self._maps(images)

    def _maps(self, images: Tensor) -> Tensor:
        return self.blocks(self.bn1(self.conv_stem(images * 2 - 1)))

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Timm asks how many pixels a token spans."""
        return 16 if as_scalar else (16, 16)


def _channels(blocks: nn.Sequential) -> int:
    return [module for module in blocks.modules() if isinstance(module, nn.Conv2d)][-1].out_channels


class ReportStudent(nn.Module):
    """See the module's first line. `forward_seen` runs once an image; `decode_plan` writes; `forward_text` trains."""

    def __init__(self, config: ReportStudentConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _encoder(config)
        e, d = self.encoder.embed_dim, config.decoder_width
        self.finding_queries = nn.Parameter(torch.randn(len(FINDINGS), e) / math.sqrt(e))
        self.finding_key, self.finding_value = nn.Linear(e, e), nn.Linear(e, e)
        self.finding_norm = nn.LayerNorm(e)
        self.state_weight = nn.Parameter(torch.randn(len(FINDINGS), STATES, e) * 0.02)
        self.state_bias = nn.Parameter(torch.zeros(len(FINDINGS), STATES))
        self.gate = nn.Linear(e, 1)
        self.memory_proj, self.context_proj = nn.Linear(e, d), nn.Linear(e, d)
        self.memory_norm = nn.LayerNorm(d)
        self.state_embed = nn.Embedding(len(FINDINGS) * STATES, d)
        self.token_embed = nn.Embedding(config.vocabulary, d)
        self.decoder = nn.ModuleList(_decoder_block(config) for _ in range(config.decoder_layers))
        self.decoder_norm = nn.LayerNorm(d)
        self.output = nn.Linear(d, config.vocabulary)

    def forward_seen(self, images: Tensor) -> Seen:
        """Encode images (b 1 h w) in [0, 1]."""
        tokens, layers = self._encode(images)
        patches = tokens[:, 1:]
        keys, values = self.finding_key(patches), self.finding_value(patches)
        scores = torch.einsum("fe,bte->bft", self.finding_queries, keys) / math.sqrt(keys.shape[-1])
        attention = scores.softmax(-1)
        contexts = self.finding_norm(attention @ values + tokens[:, :1])
        states = torch.einsum("bfe,fse->bfs", contexts, self.state_weight) + self.state_bias
        side = math.isqrt(patches.shape[1])
        return Seen(
            tokens=tokens,
            layers=layers,
            gate=self.gate(patches.mean(1)).squeeze(-1),
            states=states,
            attention=attention.unflatten(-1, (side, side)),
            memory=self.memory_proj(tokens),
            contexts=self.context_proj(contexts),
        )

    def _encode(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        net = self.encoder
        x = net.norm_pre(net.patch_drop(net._pos_embed(net.patch_embed(images))))
        layers = []
        for block in net.blocks:
            x = block(x)
            layers.append(x)
        return net.norm(x), tuple(layers)

    def memory(self, seen: Seen, states: Tensor) -> Tensor:
        """What the decoder reads (b t+f d): the image's tokens, each finding's context with its decided state (b f)."""
        offset = torch.arange(len(FINDINGS), device=states.device) * STATES
        decided = seen.contexts + self.state_embed(states + offset)
        return self.memory_norm(torch.cat([seen.memory, decided], dim=1))

    def forward_text(self, memory: Tensor, text: Tensor) -> Tensor:
        """Logits (b n v) for text (b n) under the causal mask."""
        x = self.token_embed(text)
        for block in self.decoder:
            x = block(x, kv=block.cross.context(memory))
        return self.output(self.decoder_norm(x))

    @torch.inference_mode()
    def decode_plan(
        self, memory: Tensor, plans: Sequence[Sequence[int]], *, stop: int, limit: int = 40
    ) -> list["Written"]:
        """Write greedily under a plan: each row's control tokens are fed in order; after each the model writes until
        `stop` or `limit` tokens. Keys and values of the memory are computed once, the text's go into a static cache.
        """
        rows = [_Row(plan=list(plan)) for plan in plans]
        cross = [block.cross.context(memory) for block in self.decoder]
        caches = [self._cache(memory) for _ in self.decoder]
        tokens = torch.tensor([row.feed() for row in rows], device=memory.device)
        for _ in range(self.config.max_tokens):
            x = self.token_embed(tokens)[:, None]
            for block, kv, cache in zip(self.decoder, cross, caches, strict=True):
                x = block(x, kv=kv, cache=cache)
            best = self.output(self.decoder_norm(x[:, 0])).float().log_softmax(-1).max(-1)
            values, picks = best.values.tolist(), best.indices.tolist()
            fed = [
                row.take(pick, value, stop=stop, limit=limit)
                for row, pick, value in zip(rows, picks, values, strict=True)
            ]
            if all(row.done for row in rows):
                break
            tokens = torch.tensor(fed, device=memory.device)
        return [Written(sentences=row.sentences) for row in rows]

    def _cache(self, memory: Tensor) -> KVCache:
        config = self.config
        return KVCache.empty(
            b=memory.shape[0],
            h=config.decoder_heads,
            max_n=config.max_tokens,
            device=memory.device,
            dtype=memory.dtype,
            k=config.decoder_width // config.decoder_heads,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenSentence:
    """The control token that was fed, what was written after it, and the mean log-probability of the tokens."""

    control: int
    tokens: tuple[int, ...]
    log_probability: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """All sentences of one row's plan."""

    sentences: tuple[WrittenSentence, ...]


class _Row:
    """One row of a batch while it is being written."""

    def __init__(self, *, plan: list[int]) -> None:
        self.plan, self.at = plan, 0
        self.sentences: tuple[WrittenSentence, ...] = ()
        self._tokens: list[int] = []
        self._logs: list[float] = []

    @property
    def done(self) -> bool:
        return self.at > len(self.plan)

    def feed(self) -> int:
        """The next control token (0 once the plan is through)."""
        self.at += 1
        return self.plan[self.at - 1] if self.at <= len(self.plan) else 0

    def take(self, pick: int, log: float, *, stop: int, limit: int) -> int:
        """Take the model's pick; returns the token to feed next."""
        if self.done:
            return 0
        self._logs.append(log)
        if pick != stop and len(self._tokens) < limit:
            self._tokens.append(pick)
            return pick
        mean = sum(self._logs) / len(self._logs)
        sentence = WrittenSentence(control=self.plan[self.at - 1], tokens=tuple(self._tokens), log_probability=mean)
        self.sentences = (*self.sentences, sentence)
        self._tokens, self._logs = [], []
        return self.feed()


def _decoder_block(config: ReportStudentConfig) -> Block:
    return Block(
        config.decoder_width,
        config.decoder_heads,
        config.decoder_ffn,
        max_n=config.max_tokens,
        causal=True,
        dropout=0.1,
        d_context=config.decoder_width,
    )


def _encoder(config: ReportStudentConfig) -> Any:
    options: dict[str, Any] = {
        "img_size": config.image_size,
        "in_chans": 1,
        "num_classes": 0,
        "depth": config.encoder_depth,
    }
    if config.stem:
        options["embed_layer"] = partial(StemEmbed, stem=config.stem, stages=config.stem_stages)
    return timm_import().create_model(config.encoder, **options)
