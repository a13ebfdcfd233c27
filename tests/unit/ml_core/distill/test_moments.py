"""Cosine and distance from moments: what they are written out, their gradients, and far from the mean."""

import pytest
import torch
from torch.nn import functional

from ml_core.distill.moments import cosine_and_distance, picked

SHAPE = (2, 3, 5, 7)


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def weights(dtype=torch.float64):
    """Of each row they sum to 1; the last row has no token."""
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=dtype)
    return mask / mask.sum(1, keepdim=True).clamp_min(1.0)


def written_out(a, b, *, weights):
    cos = functional.cosine_similarity(a, b, dim=-1)
    apart = (functional.layer_norm(a, a.shape[-1:]) - functional.layer_norm(b, b.shape[-1:])).pow(2).mean(-1)
    return tuple((x * weights).sum((-2, -1)) / weights.shape[0] for x in (cos, apart))


@pytest.mark.parametrize("scale", [1.0, 3e-3])
def test_they_are_what_they_are_written_out(scale):
    # at the smaller scale layer_norm's ε counts
    a, b = (scale * drawn(*SHAPE, seed=seed) for seed in (0, 1))
    leaves = [x.clone().requires_grad_() for x in (a, b)]
    others = [x.clone().requires_grad_() for x in (a, b)]
    got, wanted = cosine_and_distance(*leaves, weights=weights()), written_out(*others, weights=weights())
    for ours, theirs in zip(got, wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=0)
    share = torch.tensor([0.3, -2.0], dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(got[1] @ share, leaves), torch.autograd.grad(wanted[1] @ share, others), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-10 * float(theirs.abs().max()))


def test_their_gradient_is_that_of_finite_differences():
    a, b = (drawn(*SHAPE, seed=seed).requires_grad_() for seed in (2, 3))
    assert torch.autograd.gradcheck(lambda a, b: cosine_and_distance(a, b, weights=weights())[1], (a, b))


def test_the_cosine_has_no_gradient_and_is_nought_with_a_token_of_zeros():
    a, b = drawn(*SHAPE).requires_grad_(), torch.zeros(SHAPE, dtype=torch.float64)
    cos, distance = cosine_and_distance(a, b, weights=weights())
    assert not cos.requires_grad
    assert torch.equal(cos, torch.zeros_like(cos))
    # against zeros a standardised token has its own variance, 1 but for ε
    assert torch.allclose(distance, torch.full_like(distance, 2 / 3), atol=1e-4)


def test_in_single_precision_means_far_from_nought_do_not_drown_the_rest():
    a, b = (drawn(2, 3, 5, 64, seed=seed) for seed in (4, 5))
    a, b = a + 300.0, 0.1 * b - 40.0
    _, wanted = written_out(a.float().double(), b.float().double(), weights=weights())
    _, got = cosine_and_distance(a.float(), b.float(), weights=weights(torch.float32))
    _, plain = written_out(a.float(), b.float(), weights=weights(torch.float32))
    assert float((got - wanted).abs().max()) <= max(2 * float((plain - wanted).abs().max()), 1e-6)


def test_what_is_picked_is_what_selecting_and_stacking_gives():
    at = torch.tensor([0, 2, 6])
    layers = [drawn(2, 7, 4, seed=seed).requires_grad_() for seed in range(3)]
    got, wanted = picked(layers, at), torch.stack([x.index_select(1, at) for x in layers])
    assert torch.equal(got, wanted)
    ours, theirs = (torch.autograd.grad((x * drawn(*x.shape, seed=9)).sum(), layers) for x in (got, wanted))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
