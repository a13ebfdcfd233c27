"""The fraud student (and, at a larger size, its transformer teacher): features and two histories to one logit.

One token carries the transaction's features; the newest events of its card and of its terminal are a token each. All
blocks attend over all tokens; in the last one only the transaction's token asks. Positions enter through a learned bias
per head and distance (DPE: softmax(QK'/sqrt(k) + B)V, B[i, j] = table[head, i - j + N - 1]). The amount enters three
times: smoothly, through learned steps, and as the index of its whole unit, so that a rule such as "amount above 220"
stays sharp under INT8. A schema's further categories are codes behind the features; each has a learned table, whose row
of code 0 ("unknown") and rows never trained add nothing. b batch, n tokens, d width, h heads, k head size, f features,
c channels.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ml_core.kernels.dpe_attention import op
from ml_core.layers.blocks import Block, project_all

AMOUNT_BINS = 1_024


@dataclass(frozen=True, kw_only=True, slots=True)
class FraudStudentConfig:
    """Sizes. `features` and `channels` are the inputs' widths; `wide` is the hidden width of the feature token.

    `categories`: how many codes each category has; their codes are the inputs' last columns, behind the `features`.
    `amount_unit`: what the amount's steps and its index count in; a table in yen or dinar wants a larger one than 1.
    """

    features: int
    channels: int
    card_tokens: int = 16
    terminal_tokens: int = 24
    d: int = 64
    heads: int = 4
    layers: int = 2
    ffn: int = 128
    wide: int = 128
    steps: int = 64
    dropout: float = 0.0
    categories: tuple[int, ...] = ()
    category_width: int = 8
    amount_unit: float = 1.0


class Taps(NamedTuple):
    """What the model shows of itself: each block's tokens (b n d), which tokens are real, the summary, the logits."""

    layers: tuple[Tensor, ...]
    mask: Tensor
    pooled: Tensor
    logits: Tensor


class FraudStudent(nn.Module):
    """Returns uncalibrated logits; `calibrated` maps logits to what is served (probability = its sigmoid).

    The reference buffers hold an ordinary genuine transaction: the baseline of the reasons.
    """

    def __init__(self, config: FraudStudentConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.register_buffer("feature_mean", torch.zeros(c.features))
        self.register_buffer("feature_std", torch.ones(c.features))
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]))
        self.register_buffer("reference_features", torch.zeros(c.features + len(c.categories)))
        self.register_buffer("reference_card", torch.zeros(c.card_tokens, c.channels))
        self.register_buffer("reference_terminal", torch.zeros(c.terminal_tokens, c.channels))
        self.step_at = nn.Parameter(torch.linspace(math.log(1.0), math.log(2_000.0), c.steps))
        self.step_slope = nn.Parameter(torch.full((c.steps,), math.log(30.0)))
        self.amount_bin = nn.Embedding(AMOUNT_BINS + 1, 16)
        nn.init.zeros_(self.amount_bin.weight)
        self.categories = nn.ModuleList(nn.Embedding(size, c.category_width) for size in c.categories)
        for table in self.categories:
            nn.init.zeros_(table.weight)
        self.wide_in = nn.Linear(c.features + c.steps + 16 + len(c.categories) * c.category_width, c.wide)
        self.wide_out = nn.Linear(c.wide, c.d)
        self.card_in = nn.Linear(c.channels, c.d)
        self.terminal_in = nn.Linear(c.channels, c.d)
        n = 1 + c.card_tokens + c.terminal_tokens
        self.blocks = nn.ModuleList(Block(c.d, c.heads, c.ffn, max_n=n) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.d)
        self.head_in = nn.Linear(c.d + c.wide, c.wide)
        self.head_out = nn.Linear(c.wide, 1)
        self.drop = nn.Dropout(c.dropout)

    def forward(
        self,
        features: Float[Tensor, "b f"],
        card: Float[Tensor, "b k c"],
        terminal: Float[Tensor, "b m c"],
    ) -> Float[Tensor, " b"]:
        """Logits; card and terminal may hold more events than the model reads (the newest come first).

        features: the config's `features`, then a code a category.
        """
        return self.taps(features, card, terminal).logits

    def taps(self, features: Tensor, card: Tensor, terminal: Tensor) -> Taps:
        """Forward with everything that distillation may align."""
        card = card[:, : self.config.card_tokens]
        terminal = terminal[:, : self.config.terminal_tokens]
        wide = gelu(self.wide_in(self._encode(features)))
        x = torch.cat([self.wide_out(wide)[:, None], self.card_in(card), self.terminal_in(terminal)], 1)
        mask = torch.cat([torch.ones_like(card[:, :1, 0]), card[:, :, 0], terminal[:, :, 0]], 1) > 0.5
        layers = []
        for block in self.blocks[:-1]:
            x = block(x)
            layers.append(x)
        pooled = self.norm(first_token(self.blocks[-1], x))
        hidden = gelu(self.head_in(self.drop(torch.cat([pooled, wide], -1))))
        return Taps(tuple(layers), mask, pooled, self.head_out(hidden).squeeze(-1))

    def calibrated(self, logits: Tensor) -> Tensor:
        """Platt scaling, fitted on banks that training never saw."""
        return logits * self.calibration[0] + self.calibration[1]

    def _encode(self, features: Tensor) -> Tensor:
        amount, codes = features[:, 0] / self.config.amount_unit, features[:, self.config.features :].long()
        numbers = features[:, : self.config.features]
        smooth = ((compress(numbers) - self.feature_mean) / self.feature_std).clamp(-6.0, 6.0)
        log_amount = torch.log(amount.clamp_min(0.01))[:, None]
        steps = torch.sigmoid((log_amount - self.step_at) * self.step_slope.exp())
        bins = torch.ceil(amount - 1e-3).clamp(0, AMOUNT_BINS).long()
        looked_up = [table(codes[:, place]) for place, table in enumerate(self.categories)]
        return torch.cat([smooth, steps, self.amount_bin(bins), *looked_up], -1)


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form, as everywhere in ml_core."""
    return functional.gelu(x, approximate="tanh")


def compress(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|): counts, ratios and days on one scale."""
    return torch.sign(x) * torch.log1p(x.abs())


def first_token(block: Block, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
    """The block's output for the first token alone: the others only give keys and values."""
    y = block.norm1(x)
    attn = block.attn
    heads = (attn.h, -1)
    q = attn.q_proj(y[:, :1]).unflatten(-1, heads).transpose(1, 2)
    k, v = (z.unflatten(-1, heads).transpose(1, 2) for z in project_all(y, attn.k_proj, attn.v_proj))
    out = op.dpe_attention(q, k, v, attn.dpe.table, buckets=attn.dpe.buckets, backend=attn.backend)
    z = x[:, 0] + attn.out_proj(out.transpose(1, 2).flatten(1))
    return z + block.mlp(block.norm2(z))
