"""Schemes beside W8A8 by token: 6 and 4 bits, learned and static steps, half precision; what is stored is what runs."""

import copy

import pytest
import torch
from torch import nn

from ml_core import artifacts
from ml_core.contracts import ModelKind
from ml_core.errors import InputError
from ml_core.layers.blocks import Block
from ml_core.quant import (
    GeneralQuantLinear,
    PackedEmbedding,
    QuantEmbedding,
    Quantizer,
    QuantLinear,
    describe,
    load_quantized,
    quantized_state,
)
from ml_core.quant.scheme import engines_cpu, levels_of, quantize_static, weight_levels
from ml_core.quant.steps import learned_activation, learned_weight, pack4, search, unpack4

SCHEMES = [
    {"bits": bits, "activations": activations, "learn_weight_scales": learned}
    for bits in (8, 6, 4)
    for activations in ("token", "tensor")
    for learned in (False, True)
]


class Model(nn.Module):
    """An embedding tied to the head, a block, and one linear layer used twice."""

    def __init__(self, *, width: int = 24) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, width)
        self.block = Block(width, 3, 2 * width, max_n=20)
        self.first = nn.Linear(width, width)
        self.second = self.first
        self.head = nn.Linear(width, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.second(self.first(self.block(self.embedding(ids)))))


@pytest.fixture
def ids():
    return torch.randint(0, 50, (4, 12), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


@pytest.mark.parametrize("options", SCHEMES, ids=str)
def test_every_scheme_exports_what_it_trained_within_one_step(model, ids, options):
    quantizer = Quantizer(model, **options).fit([(ids,)] * 3, epochs=2, lr=1e-3, held_out=())
    exported, report = quantizer.convert()
    with torch.no_grad():
        fake = quantizer.model(ids)
    step = fake.abs().amax(-1, keepdim=True) / levels_of(options["bits"])
    # a level of an inner layer may fall on the other side of a half, and then a whole step of it shows
    assert ((exported(ids) - fake).abs() <= step).float().mean() > 0.999
    assert (exported(ids) - fake).norm() < 0.02 * fake.norm()
    assert all(row.sqnr_db > 10 for row in report if not row.skipped)


@pytest.mark.parametrize("options", SCHEMES, ids=str)
def test_a_layer_alone_exports_its_very_levels(options):
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(33, 20))
    x = torch.randn(50, 33)
    quantizer = Quantizer(layer, **options).calibrate([(x,)])
    exported, _ = quantizer.convert()
    with torch.no_grad():
        fake = quantizer.model(x)
    assert torch.allclose(exported(x), fake, rtol=1e-5, atol=1e-5)
    inner = exported[0]
    levels = inner.levels() if isinstance(inner, GeneralQuantLinear) else inner.weight
    assert int(levels.abs().max()) <= levels_of(options["bits"])
    wanted = torch.nn.functional.linear(quantizer.model[0].fake_input(x), inner.dequantized(), layer[0].bias)
    assert torch.allclose(exported(x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", SCHEMES, ids=str)
def test_every_scheme_survives_saving_and_loading_with_its_ties(model, ids, options, tmp_path):
    converted, _ = Quantizer(model, **options).calibrate([(ids,)]).convert()
    assert converted.head.weight is converted.embedding.weight
    _write(tmp_path / "a", converted)
    loaded = load_quantized(Model(), artifacts.load_tensors(tmp_path / "a"))
    assert torch.equal(loaded(ids), converted(ids))
    assert loaded.first is loaded.second
    assert loaded.head.weight is loaded.embedding.weight
    assert [type(each) for each in loaded.modules()] == [type(each) for each in converted.modules()]


def test_eight_bits_by_token_stay_the_plain_layers_that_engines_know(model):
    converted, _ = Quantizer(model).convert()
    kinds = {type(each) for each in converted.modules()}
    assert {QuantLinear, QuantEmbedding} <= kinds
    assert GeneralQuantLinear not in kinds


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_the_reports_bytes_are_those_of_the_tensors(model, bits):
    converted, report = Quantizer(model, bits=bits).convert()
    assert sum(row.bytes_after for row in report) == _bytes(converted)
    assert sum(row.bytes_before for row in report) == _bytes(model)
    rows = {row.name: row for row in report}
    assert rows["head"].tied_to == "embedding"
    assert (
        rows["first"].scheme
        == {
            8: "W8A8 by row, by token",
            6: "W6A6 by row, by token",
            4: "W4A4 by row, packed, by token",
        }[bits]
    )
    ratio = rows["block.mlp.up"].bytes_before / rows["block.mlp.up"].bytes_after
    assert ratio > (4.5 if bits == 4 else 2.9)


def test_a_float_layer_tied_to_an_integer_one_counts_its_weight(model):
    converted, report = Quantizer(model, skip=["head"]).convert()
    assert sum(row.bytes_after for row in report) == _bytes(converted)


@pytest.mark.parametrize("width", [1, 2, 7, 8])
def test_packed_levels_come_back(width):
    levels = torch.randint(-7, 8, (5, width)).to(torch.int8)
    packed = pack4(levels)
    assert packed.shape == (5, -(-width // 2))
    assert torch.equal(unpack4(packed, width=width), levels)


def test_four_bit_models_of_odd_width_work_and_store_half_bytes(ids):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 9), nn.Linear(9, 5))
    converted, _ = Quantizer(model, bits=4).convert()
    assert isinstance(converted[0], PackedEmbedding)
    assert converted[0].weight.shape == (50, 5)
    assert converted[1].weight.dtype == torch.uint8
    loaded = load_quantized(nn.Sequential(nn.Embedding(50, 9), nn.Linear(9, 5)), quantized_state(converted))
    assert torch.equal(loaded(ids), converted(ids))


@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("activations", ["token", "tensor"])
def test_five_calls_give_one_answer_and_leave_the_input_alone(bits, activations):
    torch.manual_seed(0)
    x = torch.randn(700, 64)
    quantizer = Quantizer(nn.Sequential(nn.Linear(64, 256)), bits=bits, activations=activations, smooth=0.5)
    layer, _ = quantizer.calibrate([(x,)]).convert()
    before = x.clone()
    answers = [layer(x) for _ in range(5)]
    assert all(torch.equal(answer, answers[0]) for answer in answers)
    assert torch.equal(x, before)
    for engine in engines_cpu():
        layer[0].engine = engine
        assert torch.equal(layer(x), answers[0]), engine


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_empty_batches_leading_shapes_and_gaps_work(bits):
    torch.manual_seed(0)
    quantizer = Quantizer(nn.Sequential(nn.Linear(16, 6)), bits=bits, activations="tensor")
    layer, _ = quantizer.calibrate([(torch.randn(9, 16),)]).convert()
    assert layer(torch.randn(0, 16)).shape == (0, 6)
    assert layer(torch.randn(2, 3, 16)).shape == (2, 3, 6)
    assert layer(torch.randn(16)).shape == (6,)
    x = torch.randn(16, 5, 3).permute(2, 1, 0)
    assert torch.equal(layer(x), layer(x.contiguous()))


def test_weights_with_gaps_give_the_same_levels():
    torch.manual_seed(0)
    plain, turned = nn.Linear(12, 7), nn.Linear(12, 7)
    turned.weight = nn.Parameter(plain.weight.detach().t().contiguous().t())
    turned.bias = plain.bias
    assert not turned.weight.is_contiguous()
    x = torch.randn(4, 12)
    for bits in (8, 6, 4):
        first, second = (Quantizer(nn.Sequential(each), bits=bits).convert()[0] for each in (plain, turned))
        assert torch.equal(first(x), second(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [8, 6, 4])
def test_models_in_half_precision_keep_their_dtype(model, ids, dtype, bits):
    half = model.to(dtype)
    half.block = nn.Identity()  # half-precision attention is no matter of quantization
    quantizer = Quantizer(half, bits=bits)
    converted, _ = quantizer.convert()
    out = converted(ids)
    assert out.dtype == dtype
    assert converted.embedding.weight_scale.dtype == torch.float32
    fake = quantizer.model(ids)
    assert fake.dtype == dtype
    assert (out.float() - fake.float()).norm() < 0.1 * fake.float().norm()


def test_learned_steps_have_lsqs_gradients():
    x = torch.tensor([[0.3, 1.6, -9.0]])
    log_step = torch.tensor([0.0], requires_grad=True)
    weight = x.clone().requires_grad_(True)
    learned_weight(weight, log_step, bits=4).sum().backward()
    share = 1.0 / (3 * 7) ** 0.5
    # equation 3: level - v inside, the end of the range outside; the step is 1, so d/dlog is d/dstep
    assert log_step.grad.item() == pytest.approx(((0 - 0.3) + (2 - 1.6) - 7) * share, rel=1e-5)
    assert weight.grad.tolist() == [[1.0, 1.0, 0.0]]
    step = torch.tensor(0.0, requires_grad=True)
    given = x.clone().requires_grad_(True)
    learned_activation(given, step, bits=4).sum().backward()
    assert step.grad.item() == pytest.approx(((0 - 0.3) + (2 - 1.6) - 7) * share, rel=1e-5)
    assert given.grad.tolist() == [[1.0, 1.0, 0.0]]


def test_a_found_step_is_never_worse_than_the_largest_magnitude():
    x = torch.randn(6, 400, generator=torch.Generator().manual_seed(0))
    for bits in (8, 6, 4):
        top = x.abs().amax(1) / levels_of(bits)
        errors = [
            (weight_levels(x, step, bits=bits).float() * step[:, None] - x).pow(2).sum(1)
            for step in (search(x, bits=bits), top)
        ]
        assert (errors[0] <= errors[1] * (1 + 1e-5)).all()
    assert errors[0].sum() < 0.8 * errors[1].sum()


def test_static_levels_are_clipped_and_halves_round_up():
    x = torch.tensor([-1000.0, -1.5, -0.5, 0.5, 1.5, 1000.0])
    assert (quantize_static(x, torch.tensor(1.0)).int() - 128).tolist() == [-127, -1, 0, 1, 2, 127]
    assert (quantize_static(x, torch.tensor(1.0), bits=4).int() - 128).tolist() == [-7, -1, 0, 1, 2, 7]


def test_learned_steps_move_in_the_first_epoch_and_then_stand_still(model, ids):
    quantizer = Quantizer(model, bits=4, activations="tensor", learn_weight_scales=True)
    quantizer.calibrate([(ids,)])
    seen = []

    def watch(*_) -> None:
        layer = quantizer.model.first
        seen.append((float(layer.input_log_step.detach()), layer.weight_log_step.detach().clone()))

    start = float(quantizer.model.first.input_log_step.detach())
    quantizer.fit([(ids,)] * 3, epochs=3, lr=1e-4, scale_lr=1e-2, held_out=(), progress=watch)
    inputs = [each for each, _ in seen]
    assert len({start, *inputs[:3]}) == 4
    assert len(set(inputs[2:])) == 1
    assert torch.equal(seen[2][1], seen[-1][1])


def test_tied_weights_share_one_learned_step(model, ids):
    quantizer = Quantizer(model, learn_weight_scales=True)
    assert quantizer.model.head.weight_log_step is quantizer.model.embedding.weight_log_step
    quantizer.model(ids).pow(2).mean().backward()
    assert all(p.grad is not None for p in quantizer.model.parameters())


def test_training_with_few_bits_beats_conversion_without(model, ids):
    wanted = model.eval()(ids).detach()
    errors = []
    for epochs in (0, 2):
        quantizer = Quantizer(model, bits=4, activations="tensor", learn_weight_scales=True)
        quantizer.fit([(ids,)] * 40, epochs=epochs, lr=1e-3)
        errors.append(float((quantizer.convert()[0](ids) - wanted).pow(2).mean()))
    assert errors[1] < 0.8 * errors[0]


def test_describe_and_copies_know_every_scheme(model, ids):
    for bits in (6, 4):
        converted, _ = Quantizer(model, bits=bits).convert()
        rows = {row["name"]: row for row in describe(converted, rows=(1, 10_000))}
        assert rows["first"]["scheme"].startswith(f"W{bits}A{bits}")
        assert rows["first"]["shape"] == [24, 24]
        assert f"W{bits}A{bits}" in repr(converted.first)
        assert "W" in repr(converted.embedding)
        assert "onednn" not in (rows["first"]["engines"].values() if bits == 4 else ())
        assert torch.equal(copy.deepcopy(converted)(ids), converted(ids))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"bits": 5}, "bits"),
        ({"activation_bits": 2}, "activation_bits"),
        ({"activations": "row"}, "activations"),
        ({"smooth": 1.5}, "smooth"),
        ({"skip": "head"}, "skip"),
    ],
)
def test_wrong_options_are_refused_by_name(model, options, named):
    with pytest.raises(InputError, match=f"^{named}"):
        Quantizer(model, **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"epochs": -1}, "epochs"),
        ({"freeze_after": -1}, "freeze_after"),
        ({"teacher_share": 2.0}, "teacher_share"),
        ({"lr": 0.0}, "lr"),
        ({"scale_lr": -1.0}, "scale_lr"),
        ({"steps": 0}, "steps"),
        ({"outputs": lambda model, batch: [batch[0]]}, "outputs"),
    ],
)
def test_wrong_training_is_refused_by_name(model, ids, options, named):
    with pytest.raises(InputError, match=named):
        Quantizer(model).fit([(ids,)], **options)


def test_static_ranges_without_data_are_refused(model, ids):
    quantizer = Quantizer(model, activations="tensor")
    with pytest.raises(InputError, match="calibrate"):
        quantizer.convert()
    with pytest.raises(InputError, match="no batches"):
        quantizer.calibrate([])
    with pytest.raises(InputError, match="batches"):
        quantizer.calibrate([(ids,)], batches=0)
    model.unused = nn.Linear(2, 2)
    with pytest.raises(InputError, match="unused"):
        Quantizer(model, activations="tensor").calibrate([(ids,)])


def _bytes(model: nn.Module) -> int:
    tensors = {id(each): each for each in (*model.parameters(), *model.buffers())}
    return sum(each.numel() * each.element_size() for each in tensors.values())


def _write(folder, model: nn.Module) -> None:
    artifacts.write(
        folder, kind=ModelKind.FRAUD, name="tied", recipe="test", config={}, tensors=quantized_state(model), metrics={},
        data_digest="", teacher_digest="", parameters=1, licence="", card="",
    )  # fmt: skip
