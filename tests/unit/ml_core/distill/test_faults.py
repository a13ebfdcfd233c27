"""The published formula's faults one by one (engine.md, section 1): each shown to be there, and mended by default."""

from dataclasses import replace

import pytest
import torch

from ml_core.distill.dfad import DFAD, DFADConfig
from ml_core.distill.weighting import depth_factors
from ml_core.quant.scheme import fake_activation

TASK = torch.tensor(0.0, dtype=torch.float64)
PUBLISHED = DFADConfig(weighting="as_published", levels=("token",), kl_share=0.0)
MENDED = DFADConfig(levels=("token",), kl_share=0.0, warmup_steps=0, token_share=1.0)


def aligned_by(config, student, teacher, *, steps, rate=0.05, quantizer=None, before=lambda x: x):
    """The student's layers after `steps` of Adam on the alignment alone, and the last loss."""
    layers = [layer.clone().requires_grad_() for layer in student.layers]
    dfad = DFAD(config, teacher.widths, student.widths, quantizer=quantizer).double()
    for parameter in dfad.parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.Adam(layers, lr=rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = dfad(replace(student, layers=tuple(before(layer) for layer in layers)), teacher, TASK, 0.0)
        optimizer.zero_grad()
        loss.align_token.backward()
        optimizer.step()
        scheduler.step()
    return layers, loss


def orthogonal_pair(features):
    """A teacher of two layers and a student whose first layer is right and whose second is at right angles."""
    teacher = features(seed=1)
    second = teacher.layers[1]
    other = features(seed=2).layers[1]
    unit = second / second.norm(dim=-1, keepdim=True)
    other = other - (other * unit).sum(-1, keepdim=True) * unit
    noise = 0.1 * features(seed=4).layers[0]
    return replace(teacher, layers=(teacher.layers[0] + noise, other)), teacher


def gradients(config, student, teacher):
    layers = tuple(layer.clone().requires_grad_() for layer in student.layers)
    loss = DFAD(config, teacher.widths, student.widths).double()(replace(student, layers=layers), teacher, TASK, 0.0)
    # the weight's own gradient is another fault: here it is left out for both
    (
        loss.weights.detach()
        @ torch.stack([(a - b).pow(2).mean() for a, b in zip(layers, teacher.layers, strict=True)])
    ).backward()
    return [float(layer.grad.norm()) for layer in layers], loss


def test_a_layer_at_right_angles_learns_nothing_as_published_and_the_most_by_default(features):
    student, teacher = orthogonal_pair(features)
    (_, published), _ = gradients(PUBLISHED, student, teacher)
    (first, second), _ = gradients(MENDED, student, teacher)
    assert published < 1e-12
    assert second > first > 0


def test_as_published_the_aligned_layer_has_the_weight_and_by_default_none_is_without(features):
    student, teacher = orthogonal_pair(features)
    published = DFAD(PUBLISHED, (8, 8), (8, 8)).double()(student, teacher, TASK, 0.0).weights.detach()
    mended = DFAD(replace(MENDED, tau=1e9), (8, 8), (8, 8)).double()(student, teacher, TASK, 0.0).weights
    assert abs(float(published[1])) < 1e-9 < float(published[0])
    assert float(mended[1] / mended[0]) > MENDED.epsilon


def test_at_the_start_nothing_is_aligned_as_published_and_everything_by_default(features):
    widths = (768,) * 4
    student, teacher = features(b=8, n=4, widths=widths), features(b=8, n=4, widths=widths, seed=1)
    published = DFAD(PUBLISHED, widths, widths).double()(student, teacher, TASK, 0.0)
    mended = DFAD(DFADConfig(levels=("token",), kl_share=0.0), widths, widths).double()(student, teacher, TASK, 0.0)
    assert float(published.weights.detach().abs().sum()) < 0.02
    assert float(mended.weights.sum()) == pytest.approx(1.0)


def test_as_published_the_loss_is_lowered_by_turning_away_and_by_default_by_coming_near(features):
    student, teacher = features(widths=(8,)), features(widths=(8,), seed=1)
    (away,), published = aligned_by(PUBLISHED, student, teacher, steps=150)
    (near,), mended = aligned_by(MENDED, student, teacher, steps=150)
    cos = [float(torch.cosine_similarity(x.detach(), teacher.layers[0], dim=-1).mean()) for x in (away, near)]
    assert cos[0] < -0.3
    assert float(published.align_token.detach()) < 0
    assert cos[1] > 0.8  # not 1: the standardised distance leaves each token's offset free
    assert 0 <= float(mended.align_token.detach()) < 0.05


def test_the_weight_s_gradient_is_none_by_default(features):
    student = features(requires_grad=True)
    dfad = DFAD(DFADConfig(), (8, 8), (8, 8)).double()
    loss = dfad(student, features(seed=1), TASK, 0.0)
    assert loss.weights.requires_grad is False
    assert dfad.cos_mean.requires_grad is False
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(loss.weights.sum(), student.layers)


def test_the_published_sigmoid_saturates_on_deep_teachers_and_starves_shallow_ones():
    deep, shallow = list(range(1, 25)), [1, 2, 3, 4]
    published = depth_factors(PUBLISHED, deep, layers=24)
    mended = depth_factors(MENDED, deep, layers=24)
    assert float(published[15] / published[23]) > 0.99
    assert float(mended[15] / mended[23]) < 0.85
    assert float(depth_factors(PUBLISHED, shallow, layers=4).max()) < 0.27
    assert float(depth_factors(MENDED, shallow, layers=4).max()) > 0.9


def test_the_bell_favours_the_middle_as_the_text_says_and_the_sigmoid_the_end():
    depths = list(range(1, 13))
    assert int(depth_factors(replace(MENDED, depth="bell"), depths, layers=12).argmax()) == 5
    assert int(depth_factors(MENDED, depths, layers=12).argmax()) == 11


def test_widths_and_counts_may_differ_and_both_measures_are_returned(features):
    teacher = features(b=12, n=9, widths=(10, 10, 10), seed=1)
    loss = DFAD(MENDED, (10, 10, 10), (6,)).double()(features(b=12, n=5, widths=(6,)), teacher, TASK, 0.0)
    assert loss.cos.shape == loss.cka.shape == (1,)
    assert torch.isfinite(loss.cka).all()


def test_cka_is_of_the_raw_features_and_cos_of_the_projected_ones(features):
    teacher = features(b=16, n=3, widths=(8,), seed=1)
    rotation = torch.linalg.qr(features(b=1, n=8, widths=(8,), seed=2).layers[0][0])[0]
    turned = replace(teacher, layers=(teacher.layers[0] @ rotation,))
    loss = DFAD(MENDED, (8,), (8,)).double()(turned, teacher, TASK, 0.0)
    assert float(loss.cka[0]) == pytest.approx(1.0, abs=1e-6)
    assert float(loss.cos[0].detach()) < 0.5


def three_levels(x):
    """A quantizer so coarse that its floor is plain to see: {-1, 0, 1} times the token's largest, straight-through."""
    scale = x.detach().abs().amax(-1, keepdim=True)
    return x + (torch.round(x / scale) * scale - x).detach()


@pytest.mark.parametrize(("quantizer", "floor"), [(fake_activation, 1e-5), (three_levels, 1e-1)])
def test_the_student_s_quantizer_on_the_teacher_removes_the_loss_floor(features, quantizer, floor):
    student, teacher = features(b=4, widths=(16,)), features(b=4, widths=(16,), seed=1)
    _, plain = aligned_by(MENDED, student, teacher, steps=300, rate=0.1, before=quantizer)
    _, mended = aligned_by(MENDED, student, teacher, steps=300, rate=0.1, before=quantizer, quantizer=quantizer)
    assert float(plain.align_token.detach()) > floor
    assert float(mended.align_token.detach()) < 1e-3 * floor


def test_under_the_quantizer_a_student_that_says_all_it_can_has_no_loss_on_any_level(features):
    teacher = features(b=4, widths=(16,), seed=1)
    config = replace(MENDED, levels=("token", "layer", "global"))
    leaf = teacher.layers[0].clone().requires_grad_()
    shown = replace(teacher, layers=(fake_activation(leaf),), pooled=fake_activation(teacher.pooled))
    dfad = DFAD(config, (16,), (16,), quantizer=fake_activation).double()
    loss = dfad(shown, teacher, TASK, 0.0)
    (loss.align_token + loss.align_layer + loss.align_global).backward()
    assert max(loss.align().values()) < 1e-20
    assert float(leaf.grad.abs().max()) < 1e-10
    plain = DFAD(config, (16,), (16,)).double()(shown, teacher, TASK, 0.0)
    assert min(plain.align().values()) > 1e-8


def test_a_learned_mixture_of_layers_is_put_on_the_student_s_grid_too(features):
    teacher = features(b=4, widths=(16, 16, 16), seed=1)
    config = replace(MENDED, pairing="learned")
    dfad = DFAD(config, (16,) * 3, (16,), quantizer=fake_activation).double()
    shares = dfad.eval().assignment()
    standard = torch.stack([torch.nn.functional.layer_norm(x, (16,)) for x in teacher.layers])
    mixture = torch.einsum("t,tbnd->bnd", shares[0], standard)
    loss = dfad(replace(teacher, layers=(fake_activation(mixture),)), teacher, TASK, 0.0)
    assert float(loss.align_token.detach()) < 1e-20
