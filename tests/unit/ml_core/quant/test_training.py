"""Training of a Quantizer: dropout, rates that fall, batches held out, and what is undone because it did not help."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from ml_core.quant import Quantizer

LEARNED = {"bits": 4, "activations": "tensor", "learn_weight_scales": True, "smooth": 0.5}


class Dropping(nn.Module):
    """Dropout as transformers' attention has it: a function, switched by the mode of the module that calls it."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        return functional.dropout(self.inner(x), 0.5, training=self.training)


def batches(number, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(16, 12, generator=generator),) for _ in range(number)]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.LayerNorm(24), nn.Linear(24, 5))


@pytest.mark.parametrize("last", [lambda: nn.Dropout(0.5), Dropping], ids=["module", "function"])
@pytest.mark.parametrize("dropout", [False, True])
def test_in_training_batch_norms_keep_their_statistics_and_dropout_is_on_only_if_asked_for(dropout, last):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), last())
    seen = []

    def outputs(net, batch):
        shown = net(*batch)
        seen.append(bool((shown == 0).any()))
        return shown

    quantizer = Quantizer(model)
    given = {"lr": 1e-3, "outputs": outputs, "dropout": dropout, "held_out": ()}
    quantizer.fit([(torch.randn(8, 6) + 5,)] * 3, **given)
    assert any(seen) == dropout
    assert torch.equal(quantizer.model[1].running_mean, torch.zeros(6))
    assert not torch.equal(quantizer.model[1].weight, model[1].weight)
    assert not any(module.training for module in quantizer.model.modules())


def test_the_rate_falls_to_nothing_where_the_number_of_steps_is_known():
    torch.manual_seed(0)
    many, moved = [(torch.randn(8, 6),)] * 10, []
    for options in ({"dataset": many}, {"dataset": lambda _: many, "steps": 20}, {"dataset": lambda _: many}):
        weights = []
        quantizer = Quantizer(nn.Sequential(nn.Linear(6, 6)), bits=4)

        def watch(step, steps, loss, *, net=quantizer.model, weights=weights):
            weights.append(net[0].weight.detach().clone())

        quantizer.fit(epochs=2, lr=1e-2, held_out=(), progress=watch, **options)
        moved.append(float((weights[-1] - weights[-2]).norm() / (weights[1] - weights[0]).norm()))
    assert moved[0] < 0.1
    assert moved[1] < 0.1
    assert moved[2] > 0.1


@pytest.mark.parametrize(("bits", "lr"), [(8, 3e-6), (6, 3e-6), (4, 3e-5)])
def test_few_bits_train_faster_unless_a_rate_is_given(bits, lr):
    many, model = batches(3), network()
    weights = [
        Quantizer(model, bits=bits).fit(many, held_out=(), **given).model[0].weight
        for given in ({}, {"lr": lr}, {"lr": 2 * lr})
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("options", [{"bits": 8}, {"bits": 4}, LEARNED], ids=str)
@pytest.mark.parametrize("called", [False, True])
def test_training_that_makes_the_model_worse_is_undone_to_the_last_bit(options, called):
    many, model = batches(9), network()
    given = {"dataset": (lambda _: many[:8]) if called else many, "lr": 0.3, "scale_lr": 0.3}
    spoilt = Quantizer(model, **options).fit(**given, held_out=())
    kept = Quantizer(model, **options).fit(**given, held_out=many[8:] if called else None)
    plain = Quantizer(model, **options).calibrate([*many[:7], many[8]] if not called else many[:8])
    before, after = kept.held_out_losses
    assert before < after
    assert spoilt.held_out_losses is None
    x = batches(1, seed=1)[0][0]
    shown = [each.convert()[0](x) for each in (kept, plain, spoilt)]
    assert torch.equal(shown[0], shown[1])
    assert not torch.equal(shown[0], shown[2])


def test_training_that_helps_is_kept_and_the_losses_are_of_the_batches_held_out():
    many, model = batches(48), network()
    quantizer = Quantizer(model, bits=4, learn_weight_scales=True).fit(many, epochs=2, lr=1e-3)
    plain = Quantizer(model, bits=4, learn_weight_scales=True)
    losses = []
    for each in (plain.model.eval(), quantizer.model):
        with torch.no_grad():
            pairs = [(each(x), model(x)) for (x,) in many[7::8]]
        losses.append(sum(float((a - b).pow(2).mean() / b.var(unbiased=False)) for a, b in pairs) / len(pairs))
    assert losses == pytest.approx(quantizer.held_out_losses, rel=1e-3)
    assert losses[1] < losses[0]


def test_a_loss_that_is_no_number_after_training_is_no_improvement():
    many, model = batches(8), network()

    def loss(net, batch):
        moved = not torch.equal(net[0].weight.detach(), model[0].weight)
        return net(*batch).pow(2).mean() * (float("nan") if moved and not torch.is_grad_enabled() else 1.0)

    quantizer = Quantizer(model).fit(many, loss=loss, lr=1e-3)
    assert torch.equal(quantizer.model[0].weight, model[0].weight)


@pytest.mark.parametrize(
    ("number", "held"), [(1, []), (2, [1]), (7, [6]), (8, [7]), (17, [7, 15])], ids=lambda given: str(given)
)
@pytest.mark.parametrize("kind", [list, tuple])
def test_of_a_list_every_eighth_batch_or_the_last_of_fewer_is_never_trained_or_calibrated_on(number, held, kind):
    many = [(torch.full((4, 12), float(place)) + torch.randn(4, 12) * 0.1,) for place in range(number)]
    trained, asked = set(), set()

    def outputs(net, batch):
        (trained if torch.is_grad_enabled() else asked).add(round(float(batch[0].mean())))
        return net(*batch)

    Quantizer(network(), **LEARNED).fit(kind(many), epochs=1, outputs=outputs)
    assert trained == set(range(number)) - set(held)
    ranges = set()
    Quantizer(network(), **LEARNED).fit(
        kind(many), epochs=0, loss=lambda net, batch: net(*batch).mean(), self_teacher=False,
        outputs=lambda net, batch: ranges.add(round(float(batch[0].mean()))) or net(*batch),
    )  # fmt: skip
    assert not ranges & set(held)
    assert held == [] or asked >= set(held)


def test_of_a_function_nothing_is_held_out_unless_given():
    quantizer = Quantizer(network()).fit(lambda _: batches(9), lr=1e-4)
    assert quantizer.held_out_losses is None
