"""SmoothQuant: the floating-point function stays, factors go where they fit, and outliers stop hurting."""

import copy

import pytest
import torch
from torch import nn

from ml_core.layers.blocks import Block
from ml_core.quant import Quantizer, load_quantized, quantized_state


class PreNorm(nn.Module):
    """Blocks whose norms feed nothing but products."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(24, 3, 48, max_n=16) for _ in range(2)))
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 7)

    def forward(self, x):
        return self.head(self.norm(self.blocks(x)))


class PostNorm(nn.Module):
    """A norm whose output is also a residual, so that nothing may be folded into it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(24)
        self.up, self.down = nn.Linear(24, 48), nn.Linear(48, 24)

    def forward(self, x):
        y = self.norm(x)
        return y + self.down(torch.relu(self.up(y)))


class Chain(nn.Module):
    """Linear on linear, and one layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.again = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 24)

    def forward(self, x):
        return self.again(torch.tanh(self.again(torch.tanh(self.second(self.first(x))))))


class Tied(nn.Module):
    """A head on the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 24)
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 30, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.norm(self.embedding(ids)))


def outliers(seed=0, rows=40):
    """Inputs with two channels a hundred times larger than the others."""
    x = torch.randn(rows, 24, generator=torch.Generator().manual_seed(seed))
    x[:, [3, 17]] *= 100
    return x


def built(kind):
    torch.manual_seed(0)
    model = kind().eval()
    for each in model.modules():
        if isinstance(each, nn.LayerNorm):  # a norm with outlying channels, as in trained models
            each.weight.data[[3, 17]] *= 30
            each.bias.data.normal_()
    return model


@pytest.mark.parametrize("kind", [PreNorm, PostNorm, Chain])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_floating_point_function_stays_the_same(kind, alpha):
    model = built(kind)
    x = outliers()[None] if kind is PreNorm else outliers()
    x = x[:, :16] if kind is PreNorm else x
    quantizer = Quantizer(model, smooth=alpha).calibrate([(x,)])
    other = outliers(seed=1)[None, :16] if kind is PreNorm else outliers(seed=1)
    with torch.no_grad(), quantizer.floating() as smoothed:
        for given in (x, other):
            assert torch.allclose(smoothed(given), model(given), rtol=1e-4, atol=1e-4)
    assert any(not torch.equal(a, b) for a, b in zip(smoothed.parameters(), model.parameters(), strict=True))


def test_factors_go_into_norms_that_feed_nothing_else():
    quantizer = Quantizer(built(PreNorm), smooth=0.5).calibrate([(outliers()[None, :16],)])
    where = quantizer.smoothed
    assert where["blocks.0.attn.q_proj"] == where["blocks.0.attn.v_proj"] == "into blocks.0.norm1"
    assert where["blocks.1.mlp.up"] == "into blocks.1.norm2"
    assert where["head"] == "into norm"
    assert where["blocks.0.mlp.down"] == "factor an input"
    _, report = quantizer.convert()
    rows = {row.name: row for row in report}
    assert rows["head"].smoothed == "into norm"
    assert rows["head"].scheme == "W8A8 by row, by token"
    assert rows["blocks.0.mlp.down"].scheme == "W8A8 by row, by token, factor an input"


def test_a_norm_that_is_a_residual_too_is_left_and_the_layer_keeps_the_factor():
    model = built(PostNorm)
    quantizer = Quantizer(model, smooth=0.5).calibrate([(outliers(),)])
    assert quantizer.smoothed == {"up": "factor an input", "down": "factor an input"}
    assert torch.equal(quantizer.model.norm.weight, model.norm.weight)
    assert quantizer.model.up.input_factor is not None


def test_a_linear_layer_takes_the_factor_of_the_next_and_a_layer_used_twice_keeps_its_own():
    quantizer = Quantizer(built(Chain), smooth=0.5).calibrate([(outliers(),)])
    assert quantizer.smoothed["second"] == "into first"
    assert quantizer.smoothed["again"] == "factor an input"
    assert quantizer.smoothed["first"] == "factor an input"


def test_tied_weights_are_left_alone_and_said_so():
    model = built(Tied)
    ids = torch.arange(30)
    quantizer = Quantizer(model, smooth=0.5).calibrate([(ids,)])
    assert quantizer.smoothed == {"head": "left alone: its weight is tied"}
    assert quantizer.model.head.weight is quantizer.model.embedding.weight
    with torch.no_grad(), quantizer.floating() as smoothed:
        assert torch.equal(smoothed(ids), model(ids))


@pytest.mark.parametrize("activations", ["token", "tensor"])
def test_smoothing_brings_int8_nearer_where_there_are_outliers(activations):
    model = built(PostNorm)
    x = outliers(rows=400)
    wanted = model(x).detach()
    errors = []
    for alpha in (None, 0.5):
        quantizer = Quantizer(model, smooth=alpha, activations=activations).calibrate([(x,)])
        exported, _ = quantizer.convert()
        errors.append(float((exported(x) - wanted).pow(2).mean()))
        with torch.no_grad():
            assert torch.allclose(quantizer.model(x), exported(x), rtol=1e-3, atol=1e-3)
    assert errors[1] < 0.5 * errors[0]


def test_factors_survive_saving_and_loading():
    model = built(PostNorm)
    x = outliers()
    exported, _ = Quantizer(model, smooth=0.5, bits=6).calibrate([(x,)]).convert()
    loaded = load_quantized(PostNorm(), quantized_state(exported))
    assert torch.equal(loaded(x), exported(x))


def test_the_model_given_and_its_mode_are_never_changed():
    model = built(PreNorm).train()
    before = copy.deepcopy(model.state_dict())
    Quantizer(model, smooth=0.5).fit([(outliers()[None, :16],)], epochs=1)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
