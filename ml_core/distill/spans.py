"""Token alignment between different tokenizers: character spans to a matrix that pools teacher tokens."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_SECOND = 1 << 20  # where the second text of a pair begins: beyond any first text


def text_spans(
    offsets: Int[Tensor, "b n 2"], sequences: Sequence[Sequence[int | None]] | None = None
) -> Int[Tensor, "b n 2"]:
    """Spans [begin, end) of tokens in characters of the whole input, from a tokenizer's `offset_mapping`.

    sequences: for each row the tokenizer's `sequence_ids` (None: special or padding; 0 or 1: the text of a pair), so
    that the second text's characters are others than the first's. Special tokens get an empty span.
    """
    if sequences is None:
        return offsets
    which = torch.tensor([[-1 if s is None else s for s in row] for row in sequences], device=offsets.device)
    spans = offsets + which.clamp_min(0)[..., None] * _SECOND
    return torch.where((which < 0)[..., None], torch.zeros_like(spans), spans)


def span_alignment(
    student: Int[Tensor, "b n 2"],
    teacher: Int[Tensor, "b m 2"],
    *,
    student_mask: Bool[Tensor, "b n"],
    teacher_mask: Bool[Tensor, "b m"],
) -> Float[Tensor, "b n m"]:
    """For each student token the shares of the teacher's tokens by common characters; rows sum to 1.

    Special tokens (empty spans) meet special tokens after the same number of texts: [CLS] meets <s>, [SEP] meets
    </s>. A row of zeros is a token that has no counterpart, padding included; DFAD leaves it out. Equal tokenizers
    give the identity on real tokens. No loop: it may run beside the step.
    """
    begin = torch.maximum(student[:, :, None, 0], teacher[:, None, :, 0])
    end = torch.minimum(student[:, :, None, 1], teacher[:, None, :, 1])
    common = (end - begin).clamp_min(0).float()
    own, other = _special_place(student, student_mask), _special_place(teacher, teacher_mask)
    special = (own[:, :, None] == other[:, None, :]) & (own >= 0)[:, :, None]
    shares = torch.where(special, torch.ones_like(common), common)
    shares = shares * student_mask[:, :, None] * teacher_mask[:, None, :]
    return shares / shares.sum(-1, keepdim=True).clamp_min(1.0)


def _special_place(spans: Tensor, mask: Tensor) -> Tensor:
    """Number of texts before each special token; −1 for tokens with characters and for padding."""
    text = mask & (spans[..., 1] > spans[..., 0])
    before = torch.nn.functional.pad(text, (1, 0))[:, :-1]
    place = (text & ~before).long().cumsum(1)
    return torch.where(mask & ~text, place, torch.full_like(place, -1))
