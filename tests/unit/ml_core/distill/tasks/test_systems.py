"""The systems by name: six, one a mend left out, and each of those really is another loss."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from ml_core.distill.tasks import digits
from ml_core.distill.tasks.request import Tuned
from ml_core.distill.tasks.systems import (
    ABLATIONS,
    SIX,
    SYSTEMS,
    VARIANTS,
    applies,
    config_of,
    criterion_of,
    names_expand,
)
from ml_core.errors import InputError
from ml_core.quant.scheme import fake_activation

TUNED = Tuned(temperature=4.0, share=0.7, fitnets_alpha=0.3, minilm_alpha=0.1, dfad_alpha=0.5)


def losses(system, features, *, steps=3, quantizer=None):
    torch.manual_seed(0)
    student = features(b=6, n=4, widths=(8, 8), seed=1, logits=(3,), dtype=torch.float32, requires_grad=True)
    teacher = features(b=6, n=4, widths=(16,) * 8, seed=2, logits=(3,), dtype=torch.float32)
    config = config_of(system, tuned=TUNED, relation_heads=0)
    criterion = criterion_of(system, config, [(student, teacher)], quantizer=quantizer).train()
    criterion.steps += 200  # past the warm-up, where all weights are alike
    total = torch.stack([criterion(student, teacher, torch.tensor(1.0), 0.0).total for _ in range(steps)])
    gradient = torch.autograd.grad(total.sum(), student.layers)
    return torch.cat([total, *(part.flatten() for part in gradient)])


def test_tuned_settings_reach_the_systems_that_they_are_for():
    kd, fitnets, dfad = (config_of(name, tuned=TUNED, relation_heads=0) for name in ("kd", "fitnets", "dfad"))
    assert (kd.temperature, kd.kl_share, kd.alpha) == (4.0, 0.7, 0.0)
    assert (fitnets.temperature, fitnets.kl_share, fitnets.alpha) == (4.0, 0.7, 0.3)
    assert (dfad.temperature, dfad.kl_share, dfad.alpha) == (4.0, 0.7, 0.5)
    assert config_of("minilm", tuned=TUNED, relation_heads=4).alpha == 0.1
    assert config_of("dfad_as_published", tuned=TUNED, relation_heads=0).alpha == 0.7


@pytest.mark.parametrize("name", [*ABLATIONS, *VARIANTS])
def test_each_mend_left_out_is_another_loss_or_another_gradient(name, features):
    quantizer = partial(fake_activation, bits=4) if name == "no_quantizer" else None
    of_dfad = losses("dfad", features, quantizer=quantizer)
    assert not torch.allclose(losses(name, features, quantizer=quantizer), of_dfad, atol=1e-6)


def test_the_students_quantizer_is_for_dfad_and_what_is_made_of_it_alone(features):
    quantizer = partial(fake_activation, bits=4)
    for name in ("fitnets", "dfad_as_published", "dfad", *ABLATIONS, *VARIANTS):
        same = torch.equal(losses(name, features), losses(name, features, quantizer=quantizer))
        assert same == (name in {"fitnets", "dfad_as_published", "no_quantizer"}), name


def test_groups_of_names_expand_once_each_and_unknown_ones_are_errors():
    assert names_expand(["six"]) == list(SIX)
    assert names_expand(["dfad", "ablate", "dfad"]) == ["dfad", *ABLATIONS]
    assert set(names_expand(["six", "ablate", "variants"])) == set(SYSTEMS)
    with pytest.raises(InputError, match="nix"):
        names_expand(["nix"])


def test_the_quantizer_can_be_left_out_where_the_student_has_one():
    cases = {case.name: case for case in digits.cases()}
    assert not applies("no_quantizer", cases["vit96x6>vit32x3/digits"])
    assert applies("no_quantizer", cases["vit96x6>vit32x3-int4/digits"])


def test_minilm_needs_attention():
    cases = {case.name: case for case in digits.cases()}
    assert not applies("minilm", cases["cnn>vit32x3/digits"])
    assert applies("minilm", cases["vit96x6>vit32x3/digits"])
    with pytest.raises(InputError, match="attention"):
        config_of("minilm", tuned=TUNED, relation_heads=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", [name for name in SYSTEMS if name != "minilm"])
def test_the_loss_of_every_system_is_one_cuda_graph(name, features):
    student = features(b=6, n=4, widths=(8, 8), seed=1, logits=(3,), dtype=torch.float32).detach()
    teacher = features(b=6, n=4, widths=(16,) * 8, seed=2, logits=(3,), dtype=torch.float32)
    config = config_of(name, tuned=TUNED, relation_heads=0)
    criterion = criterion_of(name, config, [(student, teacher)]).train().to("cuda")
    layers = [layer.to("cuda").requires_grad_() for layer in student.layers]
    own = replace(student, layers=tuple(layers), pooled=student.pooled.cuda(), logits=student.logits.cuda(), mask=None)
    other = replace(
        teacher, layers=tuple(layer.cuda() for layer in teacher.layers), pooled=teacher.pooled.cuda(),
        logits=teacher.logits.cuda(), mask=None,
    )  # fmt: skip
    task, progress = torch.ones((), device="cuda"), torch.zeros((), device="cuda")

    def step():
        total = criterion(own, None if name == "ce" else other, task, progress).total
        if config.levels:
            total.backward()
        return total

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total = step()
    graph.replay()
    assert torch.isfinite(total)
