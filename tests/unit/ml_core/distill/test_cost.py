"""What alignment costs, counted: on the sizes of the text pair that is really to be had."""

import pytest
import torch

from ml_core.distill import presets
from ml_core.distill.cost import alignment_flops
from ml_core.distill.dfad import DFAD, DFADConfig
from ml_core.distill.features import Features
from ml_core.errors import InputError

B = 32


def shown(*, layers, width, n, requires_grad=False):
    def empty(*shape):
        return torch.empty(*shape, device="meta", requires_grad=requires_grad)

    return Features(layers=tuple(empty(B, n, width) for _ in range(layers)), pooled=empty(B, width), logits=empty(B, 2))


def counted(config, *, n=128):
    """Share of alignment in a step's operations: 12 × 768 teacher forward, 6 × 384 student forward and backward."""
    dfad = DFAD(config, (768,) * 12, (384,) * 6).to("meta")
    student = shown(layers=6, width=384, n=n, requires_grad=True)
    align = alignment_flops(dfad, student, shown(layers=12, width=768, n=n))

    def forward(layers, d):
        return layers * B * n * (2 * 12 * d * d + 4 * n * d)

    return align / (align + forward(12, 768) + 3 * forward(6, 384))


@pytest.mark.parametrize("n", [16, 64, 128, 256])
def test_default_alignment_is_at_most_three_percent_of_the_step(n):
    assert counted(DFADConfig(), n=n) < 0.03


def test_on_all_tokens_it_is_more():
    assert 0.05 < counted(DFADConfig(token_share=1.0)) < 0.06
    assert counted(presets.as_published()) > 0.04


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_shares_that_are_none_are_refused(share):
    with pytest.raises(InputError, match="token_share"):
        DFAD(DFADConfig(token_share=share), (8,), (8,))


def test_as_published_takes_every_token(features):
    config = DFADConfig(weighting="as_published", levels=("token",))
    student, teacher = features(n=12, widths=(8,), requires_grad=True), features(n=12, widths=(8,), seed=1)
    loss = DFAD(config, (8,), (8,)).double()(student, teacher, torch.zeros((), dtype=torch.float64), 0.0)
    (gradient,) = torch.autograd.grad(loss.total, student.layers[0])
    assert bool((gradient.abs().sum(-1) > 0).all())


def test_plain_kd_costs_next_to_nothing():
    assert counted(presets.plain_kd()) < 1e-4


def test_bounded_tokens_take_turns_and_leave_padding_out(features):
    mask = torch.arange(12)[None, :] < torch.tensor([12, 7, 9])[:, None]
    student = features(n=12, widths=(8,), mask=mask, requires_grad=True)
    dfad = DFAD(DFADConfig(levels=("token",), token_share=0.3, kl_share=0.0), (8,), (8,)).double()
    touched = torch.zeros(3, 12, dtype=torch.bool)
    for step in range(30):
        loss = dfad(student, features(n=12, widths=(8,), seed=1), torch.zeros((), dtype=torch.float64), 0.0)
        (gradient,) = torch.autograd.grad(loss.total, student.layers[0])
        now = gradient.abs().sum(-1) > 0
        assert step or int(now[0].sum()) == 4
        touched |= now
    assert torch.equal(touched, mask)
