"""What alignment costs, counted: on the sizes of the text pair that is really to be had."""

import torch

from ml_core.distill import presets
from ml_core.distill.cost import alignment_flops
from ml_core.distill.dfad import DFAD, DFADConfig
from ml_core.distill.features import Features

B, N = 32, 128


def shown(*, layers, width, requires_grad=False):
    def empty(*shape):
        return torch.empty(*shape, device="meta", requires_grad=requires_grad)

    return Features(layers=tuple(empty(B, N, width) for _ in range(layers)), pooled=empty(B, width), logits=empty(B, 2))


def counted(config):
    """Share of alignment in a step's operations: 12 × 768 teacher forward, 6 × 384 student forward and backward."""
    dfad = DFAD(config, (768,) * 12, (384,) * 6).to("meta")
    align = alignment_flops(dfad, shown(layers=6, width=384, requires_grad=True), shown(layers=12, width=768))

    def forward(layers, d):
        return layers * B * N * (2 * 12 * d * d + 4 * N * d)

    return align / (align + forward(12, 768) + 3 * forward(6, 384))


def test_default_alignment_is_a_small_part_of_the_step():
    assert counted(DFADConfig()) < 0.08


def test_a_bound_on_the_tokens_brings_it_below_three_percent():
    assert counted(DFADConfig(tokens=32)) < 0.03


def test_plain_kd_costs_next_to_nothing():
    assert counted(presets.plain_kd()) < 1e-4


def test_bounded_tokens_take_turns_and_leave_padding_out(features):
    mask = torch.arange(12)[None, :] < torch.tensor([12, 7, 9])[:, None]
    student = features(n=12, widths=(8,), mask=mask, requires_grad=True)
    dfad = DFAD(DFADConfig(levels=("token",), tokens=4, kl_share=0.0), (8,), (8,)).double()
    touched = torch.zeros(3, 12, dtype=torch.bool)
    for step in range(30):
        loss = dfad(student, features(n=12, widths=(8,), seed=1), torch.zeros((), dtype=torch.float64), 0.0)
        (gradient,) = torch.autograd.grad(loss.total, student.layers[0])
        now = gradient.abs().sum(-1) > 0
        assert step or int(now[0].sum()) == 4
        touched |= now
    assert torch.equal(touched, mask)
