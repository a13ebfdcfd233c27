"""DFAD: the published formula literally, and each mend by itself, in float64."""

import math
from dataclasses import replace

import pytest
import torch

from ml_core.config import from_mapping
from ml_core.distill.dfad import DFAD, DFADConfig
from ml_core.distill.features import Features
from ml_core.distill.logits import logits_kl
from ml_core.distill.pairing import pair_layers
from ml_core.distill.resample import TokenResampler
from ml_core.distill.weighting import depth_factors
from ml_core.errors import InputError

LITERAL = DFADConfig(weighting="as_published", levels=("token",), kl_share=0.0)


def features(*, b=3, n=5, widths=(8, 8), seed=0, logits=None, mask=None):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return Features(
        layers=tuple(draw(b, n, width) for width in widths),
        pooled=draw(b, widths[-1]),
        mask=mask,
        logits=None if logits is None else draw(b, *logits),
    )


def leaves(shown: Features) -> Features:
    return replace(shown, layers=tuple(layer.clone().requires_grad_() for layer in shown.layers))


TASK = torch.tensor(2.0, dtype=torch.float64)


def test_as_published_is_the_printed_formula():
    student, teacher = features(), features(seed=1)
    dfad = DFAD(LITERAL, (8, 8), (8, 8)).double()
    loss = dfad(student, teacher, TASK, 0.25)
    align = 0.0
    for number, (s, t) in enumerate(zip(student.layers, teacher.layers, strict=True), start=1):
        cos = torch.nn.functional.cosine_similarity(s, t, dim=-1).mean()
        align = align + cos / (1 + math.exp(-0.5 * (number - 6))) * (s - t).pow(2).mean()
    alpha = 0.7 * 0.75
    # the depth factors are kept in single precision
    assert float(loss.total) == pytest.approx(float(alpha * align + (1 - alpha) * TASK), rel=1e-6)


@pytest.mark.parametrize("teacher_widths", [(6, 7, 6), (6, 6, 6)])
def test_pairs_of_any_widths_are_compared_each_by_itself_and_named_in_their_order(teacher_widths):
    config = DFADConfig(levels=("token",), kl_share=0.0, token_share=1.0, weighting="uniform")
    student, teacher = leaves(features(widths=(8, 5, 8))), features(widths=teacher_widths, seed=1)
    dfad = DFAD(config, teacher_widths, (8, 5, 8)).double()
    loss = dfad(student, teacher, TASK, 0.0)
    expected = torch.zeros((), dtype=torch.float64)
    for pair, (s, t) in enumerate(zip(student.layers, teacher.layers, strict=True)):
        mapped = dfad.projectors[pair](s)
        cos = torch.nn.functional.cosine_similarity(mapped, t, dim=-1).mean()
        assert float(loss.cos[pair].detach()) == pytest.approx(float(cos.detach()), rel=1e-9)
        norm = [torch.nn.functional.layer_norm(x, x.shape[-1:]) for x in (mapped, t)]
        expected = expected + (norm[0] - norm[1]).pow(2).mean() / 3
    assert float(loss.align_token.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
    ours = torch.autograd.grad(loss.align_token, student.layers, retain_graph=True)
    for got, want in zip(ours, torch.autograd.grad(expected, student.layers), strict=True):
        assert torch.allclose(got, want, atol=1e-12)


def test_as_published_ascends_where_the_cosine_is_negative_and_the_default_does_not():
    teacher = features(widths=(8,))
    for config, falls in ((LITERAL, False), (DFADConfig(levels=("token",), kl_share=0.0), True)):
        student = leaves(replace(teacher, layers=(-0.9 * teacher.layers[0] + 0.1 * features(seed=3).layers[0],)))
        dfad = DFAD(config, (8,), (8,)).double()
        loss = dfad(student, teacher, TASK, 0.0)
        assert float(loss.cos[0].detach()) < 0
        loss.align_token.backward()
        step = student.layers[0].detach() - 0.01 * student.layers[0].grad
        distance = [float((x - teacher.layers[0]).pow(2).mean()) for x in (student.layers[0].detach(), step)]
        assert (float(loss.align_token.detach()) > 0) is falls
        assert (distance[1] < distance[0]) is falls


def test_the_default_weight_has_no_gradient_and_the_published_one_has():
    teacher = features(seed=1)
    mended = DFAD(DFADConfig(), (8, 8), (8, 8)).double()(leaves(features()), teacher, TASK, 0.0)
    literal = DFAD(LITERAL, (8, 8), (8, 8)).double()(leaves(features()), teacher, TASK, 0.0)
    assert mended.weights.grad_fn is None
    assert mended.weights.requires_grad is False
    assert literal.weights.requires_grad is True


@pytest.mark.parametrize("depth", ["sigmoid", "bell"])
@pytest.mark.parametrize("layers", [1, 4, 12, 24])
def test_default_weights_are_positive_and_sum_to_one(depth, layers):
    widths = (8,) * layers
    dfad = DFAD(DFADConfig(depth=depth, warmup_steps=0), widths, widths).double()
    weights = dfad(features(widths=widths), features(widths=widths, seed=1), TASK, 0.0).weights
    assert float(weights.sum()) == pytest.approx(1.0)
    assert float(weights.min()) > 0


def test_a_misaligned_layer_keeps_the_share_epsilon():
    teacher = features(widths=(8, 8), seed=1)
    student = replace(teacher, layers=(teacher.layers[0], -teacher.layers[1]))
    config = DFADConfig(warmup_steps=0, tau=1e9)
    weights = DFAD(config, (8, 8), (8, 8)).double()(student, teacher, TASK, 0.0).weights
    assert float(weights[1] / weights[0]) == pytest.approx(config.epsilon, rel=1e-6)


def test_the_depth_factors_are_centred_on_the_middle_of_any_teacher():
    for layers in (6, 12, 24):
        depths = list(range(1, layers + 1))
        sigmoid = depth_factors(DFADConfig(), depths, layers=layers)
        bell = depth_factors(DFADConfig(depth="bell"), depths, layers=layers)
        assert float(sigmoid[layers // 2 - 1]) == pytest.approx(0.5)
        assert int(bell.argmax()) == layers // 2 - 1
    twelve = depth_factors(DFADConfig(), list(range(1, 13)), layers=12)
    assert torch.allclose(twelve, depth_factors(LITERAL, list(range(1, 13)), layers=12))


def test_cosines_count_only_after_the_warm_up_and_as_a_running_mean():
    config = DFADConfig(warmup_steps=3, tau=1e9)
    dfad = DFAD(config, (8, 8), (8, 8)).double()
    teacher = features(seed=1)
    student = replace(teacher, layers=(teacher.layers[0], -teacher.layers[1]))
    seen = [dfad(student, teacher, TASK, 0.0).weights for _ in range(4)]
    assert all(torch.allclose(w, torch.full_like(w, 0.5)) for w in seen[:3])
    assert float(seen[3][0]) > float(seen[3][1])
    assert torch.allclose(dfad.cos_mean, torch.tensor([1.0, -1.0], dtype=torch.float64), atol=1e-6)
    dfad(replace(teacher, layers=(-teacher.layers[0], teacher.layers[1])), teacher, TASK, 0.0)
    assert torch.allclose(dfad.cos_mean, torch.tensor([0.6, -0.6], dtype=torch.float64), atol=1e-6)


def test_eval_mode_moves_no_running_mean():
    dfad = DFAD(DFADConfig(), (8, 8), (8, 8)).double().eval()
    dfad(features(), features(seed=1), TASK, 0.0)
    assert float(dfad.steps) == 0


def test_alpha_falls_linearly_from_seven_tenths_to_nothing():
    dfad = DFAD(DFADConfig(), (8, 8), (8, 8)).double()
    losses = [dfad(features(), features(seed=1), TASK, progress) for progress in (0.0, 0.5, 1.0)]
    assert [loss.alpha for loss in losses] == pytest.approx([0.7, 0.35, 0.0])
    assert float(losses[-1].total.detach()) == pytest.approx(2.0)


def test_the_teacher_gets_no_gradient():
    teacher = leaves(features(seed=1))
    DFAD(DFADConfig(), (8, 8), (8, 8)).double()(leaves(features()), teacher, TASK, 0.0).total.backward()
    assert all(layer.grad is None for layer in teacher.layers)


def test_architectures_may_differ_in_width_depth_and_token_count():
    student, teacher = leaves(features(n=5, widths=(6, 6))), features(n=9, widths=(10, 12, 14, 16), seed=1)
    dfad = DFAD(DFADConfig(), (10, 12, 14, 16), (6, 6)).double()
    loss = dfad(student, teacher, TASK, 0.0)
    loss.total.backward()
    assert all(torch.isfinite(layer.grad).all() and layer.grad.abs().sum() > 0 for layer in student.layers)
    assert all(p.grad is not None for p in dfad.projectors.parameters())


def test_a_tree_teacher_of_one_token_is_a_teacher_too():
    student = leaves(features(n=5, widths=(6, 6), logits=(1,)))
    teacher = features(n=1, widths=(10,), seed=1, logits=(1,))
    dfad = DFAD(DFADConfig(levels=("layer", "global")), (10,), (6, 6)).double()
    loss = dfad(student, teacher, TASK, 0.0)
    loss.total.backward()
    assert float(loss.align_token) == 0.0
    assert float(loss.align_layer.detach()) > 0
    assert float(loss.align_global.detach()) > 0


def test_padding_changes_nothing():
    mask = torch.tensor([[True] * 3 + [False] * 2] * 3)
    student, teacher = features(mask=mask), features(seed=1, mask=mask)
    dirty = replace(student, layers=tuple(x.masked_fill(~mask[..., None], 9.0) for x in student.layers))
    dfad = DFAD(DFADConfig(), (8, 8), (8, 8)).double().eval()
    clean, padded = (float(dfad(given, teacher, TASK, 0.0).total.detach()) for given in (student, dirty))
    assert clean == pytest.approx(padded)


def test_the_scale_of_a_teacher_is_no_signal():
    student, teacher = features(), features(seed=1)
    louder = replace(teacher, layers=tuple(100 * x for x in teacher.layers), pooled=100 * teacher.pooled)
    dfad = DFAD(DFADConfig(), (8, 8), (8, 8)).double().eval()
    quiet, loud = (float(dfad(student, given, TASK, 0.0).total.detach()) for given in (teacher, louder))
    assert quiet == pytest.approx(loud, rel=1e-4)


@pytest.mark.parametrize(
    ("teacher", "student", "pairing", "expected"),
    [
        (12, 4, "uniform", (2, 5, 8, 11)),
        (12, 4, "last", (8, 9, 10, 11)),
        (6, 6, "uniform", (0, 1, 2, 3, 4, 5)),
        (1, 3, "uniform", (0, 0, 0)),
        (2, 4, "last", (0, 0, 0, 1)),
    ],
)
def test_layers_pair_as_stated(teacher, student, pairing, expected):
    assert tuple(t for _, t in pair_layers(teacher, student, pairing=pairing)) == expected


@pytest.mark.parametrize("shape", [(4,), (5, 4), (14, 4)])
def test_logits_kl_is_the_textbook_divergence(shape):
    student, teacher = features(logits=shape), features(logits=shape, seed=1)
    p, q = (torch.softmax(x.logits / 3.0, -1) for x in (teacher, student))
    expected = (p * (p / q).log()).sum(-1).mean()
    assert float(logits_kl(student, teacher=teacher, temperature=3.0)) == pytest.approx(float(expected))


def test_one_logit_is_a_bernoulli():
    student, teacher = features(logits=(1,)), features(logits=(1,), seed=1)
    p, q = (torch.sigmoid(x.logits / 2.0) for x in (teacher, student))
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert float(logits_kl(student, teacher=teacher, temperature=2.0)) == pytest.approx(float(expected))


def test_logits_of_unlike_shape_are_refused():
    with pytest.raises(InputError, match="logits"):
        logits_kl(features(logits=(3,)), teacher=features(logits=(4,)), temperature=1.0)


def test_resampling_returns_means_of_real_tokens():
    resampler = TokenResampler(4).double()
    mask = torch.tensor([[True, True, True, False]])
    tokens = torch.arange(4.0, dtype=torch.float64)[None, :, None].expand(1, 4, 4)
    (out,) = resampler([tokens], n=9, mask=mask)
    assert out.shape == (1, 9, 4)
    assert float(out.detach().max()) <= 2.0
    assert (out[0, 1:, 0] >= out[0, :-1, 0]).all()
    (one,) = resampler([tokens], n=1, mask=mask)
    assert float(one[0, 0, 0].detach()) == pytest.approx(1.0)


def test_an_unknown_level_is_refused():
    with pytest.raises(InputError, match="levels"):
        from_mapping(DFADConfig, {"levels": ["tokens"]})


def test_distilling_brings_the_student_to_the_teacher():
    torch.manual_seed(0)
    teacher = features(b=16, widths=(8, 8), seed=1)
    student = leaves(features(b=16, widths=(8, 8)))
    dfad = DFAD(DFADConfig(warmup_steps=5), (8, 8), (8, 8)).double()
    optimizer = torch.optim.Adam([*student.layers, *dfad.parameters()], lr=0.05)
    cosines = []
    for _ in range(60):
        loss = dfad(student, teacher, TASK, 0.0)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        cosines.append(float(loss.cos.detach().mean()))
    assert cosines[0] < 0.1
    assert cosines[-1] > 0.7
