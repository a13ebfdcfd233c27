"""Quantization: fake-quant equals the exported integers; biases, ties, shared modules and layouts survive."""

import copy

import pytest
import torch
from torch import nn

from ml_core import artifacts
from ml_core.contracts import ModelKind
from ml_core.errors import ArtifactError, InputError
from ml_core.layers.blocks import Block
from ml_core.quant import QuantEmbedding, Quantizer, QuantLinear, describe, load_quantized, quantized_state
from ml_core.quant.scheme import (
    ONEDNN_FROM,
    ZERO,
    activation_scale,
    engine_for,
    engines_cpu,
    fake_activation,
    fake_weight,
    onednn_exact,
    pack,
    product,
    quantize_activation,
    quantize_weight,
)

ENGINES = engines_cpu()


class Model(nn.Module):
    """An embedding tied to the head, a block, and one linear layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 48)
        self.block = Block(48, 3, 96, max_n=20)
        self.first = nn.Linear(48, 48)
        self.second = self.first
        self.head = nn.Linear(48, 50, bias=False)
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


def linear(*, i=48, o=40, bias=True):
    torch.manual_seed(1)
    layer = nn.Linear(i, o, bias=bias)
    return layer, QuantLinear(*quantize_weight(layer.weight), layer.bias)


def reference(x, layer):
    """The definition in float64: levels of each token times levels of each row, scaled."""
    wq, ws = quantize_weight(layer.weight)
    xq, xs = quantize_activation(x)
    out = ((xq.double() - 128) @ wq.double().t()) * xs.double() * ws.double()
    return out + layer.bias.double() if layer.bias is not None else out


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rows", [1, 63, 100])
@pytest.mark.parametrize("width", [48, 64, 384])
def test_every_engine_computes_the_definition(engine, rows, width):
    layer, quantized = linear(i=width)
    quantized.engine = engine
    x = torch.randn(rows, width)
    assert torch.allclose(quantized(x).double(), reference(x, layer), rtol=1e-5, atol=1e-5)


def test_all_engines_give_the_same_bits_so_a_row_does_not_depend_on_its_batch():
    _, quantized = linear(i=64, o=256)
    x = torch.randn(4000, 64)
    outputs = []
    for engine in ENGINES:
        quantized.engine = engine
        outputs.append(quantized(x))
    assert all(torch.equal(outputs[0], output) for output in outputs[1:])
    quantized.engine = None
    several = engine_for(rows=4000, outputs=256, device="cpu") != engine_for(rows=1, outputs=256, device="cpu")
    assert several == onednn_exact()
    assert torch.equal(quantized(x[7:8]), quantized(x)[7:8])


def test_the_gpus_engine_gives_the_bits_of_the_cpus_and_shares_a_prepared_input():
    _, quantized = linear(i=48, o=33)
    x = torch.randn(2, 9, 48)
    wanted = quantized(x)
    quantized.engine = "triton"
    assert torch.equal(quantized(x), wanted)
    assert torch.equal(quantized.apply_prepared(quantized.prepare(x)), wanted)
    assert quantized(x.bfloat16()).dtype == torch.bfloat16
    assert engine_for(rows=1, outputs=33, device="cuda") == "triton"


@pytest.mark.parametrize("width", [2, 64, 1536, 3000])
def test_products_at_full_scale_are_the_integers_that_they_should_be(width):
    signs = torch.randint(0, 2, (5, width)) * 2 - 1
    levels = (ZERO + 127 * signs).to(torch.uint8)
    weight = torch.full((9, width), 127, dtype=torch.int8)
    wanted = (127 * signs.sum(1, keepdim=True) * 127).float().expand(-1, 9)
    ones = {"scale": torch.ones(9), "bias": None, "packed": pack(weight)}
    for engine in ENGINES:
        assert torch.equal(product(levels, torch.ones(5, 1), weight=weight, engine=engine, **ones), wanted), engine


def test_an_engine_that_saturates_on_this_cpu_is_refused():
    if onednn_exact():
        assert "onednn" in ENGINES
        return
    weight = torch.ones(9, 4, dtype=torch.int8)
    with pytest.raises(InputError, match="saturate"):
        product(
            torch.ones(2, 4, dtype=torch.uint8), torch.ones(2, 1), weight=weight, scale=torch.ones(9), bias=None,
            engine="onednn", packed=pack(weight),
        )  # fmt: skip


def test_the_bias_is_kept():
    layer, quantized = linear()
    zeros = torch.zeros(3, 48)
    assert torch.equal(quantized(zeros), layer.bias.detach().expand(3, -1))
    assert torch.equal(QuantLinear(*quantize_weight(layer.weight))(zeros), torch.zeros(3, 40))


def test_five_calls_on_one_tensor_give_one_answer_and_leave_it_alone():
    _, quantized = linear(i=64, o=256)
    x = torch.randn(1000, 64)
    before = x.clone()
    answers = [quantized(x) for _ in range(5)]
    assert all(torch.equal(answer, answers[0]) for answer in answers)
    assert torch.equal(x, before)


def test_inputs_and_weights_that_are_not_contiguous_give_the_same():
    layer, quantized = linear()
    x = torch.randn(48, 6, 5).permute(2, 1, 0)
    assert not x.is_contiguous()
    assert torch.equal(quantized(x), quantized(x.contiguous()))
    turned = nn.Linear(48, 40)
    turned.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
    turned.bias = layer.bias
    assert not turned.weight.is_contiguous()
    converted, _ = Quantizer(nn.Sequential(turned)).convert()
    assert torch.equal(converted(x), quantized(x))


def test_an_empty_batch_and_any_leading_shape_work():
    _, quantized = linear()
    assert quantized(torch.randn(0, 48)).shape == (0, 40)
    assert quantized(torch.randn(2, 3, 4, 48)).shape == (2, 3, 4, 40)
    assert quantized(torch.randn(48)).shape == (40,)
    assert quantized(torch.randn(2, 48, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_quantization_error_is_at_most_half_a_step():
    x = 10 * torch.randn(100, 64)
    levels, step = quantize_activation(x)
    assert int(levels.min()) >= 1
    assert ((levels.float() - 128) * step - x).abs().max() <= 0.5001 * step.max()
    assert torch.equal(activation_scale(x), step)


def test_fake_quant_equals_the_exported_model_within_one_step(model, ids):
    quantizer = Quantizer(model).fit([(ids,)] * 3, epochs=2, lr=1e-3, held_out=())
    exported, _ = quantizer.convert()
    fake = quantizer.model(ids).detach()
    step = activation_scale(fake)
    assert ((exported(ids) - fake).abs() <= step).all()
    assert (exported(ids) - fake).abs().max() < 1e-4


def test_training_changes_the_copy_and_never_the_model(model, ids):
    before = copy.deepcopy(model.state_dict())
    quantizer = Quantizer(model).fit([(ids,)] * 2, epochs=1, lr=1e-3, held_out=())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not torch.equal(quantizer.model.first.weight, model.first.weight)
    assert type(model.first) is nn.Linear


def test_the_self_teacher_brings_the_int8_model_nearer_to_the_float_one(model, ids):
    plain, _ = Quantizer(model).convert()
    trained, _ = Quantizer(model).fit([(ids,)] * 40, epochs=2, lr=1e-4).convert()
    wanted = model(ids).detach()
    assert (trained(ids) - wanted).pow(2).mean() < (plain(ids) - wanted).pow(2).mean()


def test_every_embedding_linear_and_bias_gets_a_gradient(model, ids):
    quantizer = Quantizer(model)
    quantizer.model(ids).pow(2).mean().backward()
    assert all(p.grad is not None for p in quantizer.model.parameters())


def test_ties_and_shared_modules_survive_conversion_saving_and_loading(model, ids, tmp_path):
    converted, _ = Quantizer(model).convert()
    assert converted.first is converted.second
    assert converted.head.weight is converted.embedding.weight
    assert isinstance(converted.embedding, QuantEmbedding)
    artifacts.write(
        tmp_path / "a",
        kind=ModelKind.FRAUD,
        name="tied",
        recipe="test",
        config={},
        tensors=quantized_state(converted),
        metrics={},
        data_digest="",
        teacher_digest="",
        parameters=1,
        licence="",
        card="",
    )
    loaded = load_quantized(Model(), artifacts.load_tensors(tmp_path / "a"))
    assert torch.equal(loaded(ids), converted(ids))
    assert loaded.first is loaded.second
    assert loaded.head.weight is loaded.embedding.weight
    assert artifacts.read(tmp_path / "a").tied["head.weight"] == "embedding.weight"


def test_a_loaded_model_can_be_copied(model, ids):
    converted, _ = Quantizer(model).convert()
    for layer in converted.modules():
        if isinstance(layer, QuantLinear):
            layer.engine = ENGINES[1]
    wanted = converted(ids)
    assert torch.equal(copy.deepcopy(converted)(ids), wanted)


def test_tensors_that_do_not_fit_are_refused(model):
    converted, _ = Quantizer(model).convert()
    tensors = quantized_state(converted)
    del tensors["first.bias"]
    with pytest.raises(ArtifactError, match="first.bias"):
        load_quantized(Model(), tensors)


def test_the_report_has_every_layer_and_says_why_one_was_skipped(model):
    _, report = Quantizer(model, skip=["block.attn.*"]).convert()
    rows = {layer.name: layer for layer in report}
    assert rows["first"].scheme == "W8A8 by row, by token"
    assert rows["first"].bytes_after == 48 * 48 + 4 * 48 + 4 * 48
    assert rows["first"].sqnr_db > 35
    assert rows["block.attn.q_proj"].skipped == "named in skip"
    assert "LayerNorm" in rows["block.norm1"].skipped
    assert "second" not in rows


def test_modules_that_read_their_childrens_weights_are_left_alone():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    x = torch.randn(2, 3, 16)
    converted, report = Quantizer(attention).convert()
    assert torch.allclose(converted(x, x, x)[0], attention(x, x, x)[0])
    assert {layer.skipped for layer in report} == {
        "MultiheadAttention reads the weights directly (packed in_proj and its fast path)"
    }


def test_a_lone_linear_is_replaced_too():
    layer, quantized = linear()
    converted, _ = Quantizer(layer).convert()
    x = torch.randn(3, 48)
    assert torch.equal(converted(x), quantized(x))


def test_describe_prints_the_engine_for_every_number_of_rows(model):
    converted, _ = Quantizer(model).convert()
    row = next(item for item in describe(converted, rows=(1, 10_000)) if item["name"] == "first")
    few, many = ("int_mm", "onednn") if onednn_exact() else ("exact_float", "exact_float")
    assert row["engines"] == {1: few, 10_000: many}
    assert (str(-(-ONEDNN_FROM // 48)) if onednn_exact() else "saturates") in repr(converted.first)


@pytest.mark.parametrize("bits", [0, 1, 3, 16])
def test_other_numbers_of_bits_are_refused(model, bits):
    with pytest.raises(InputError, match="bits"):
        Quantizer(model, bits=bits)


def test_four_bits_train_on_fifteen_levels(model, ids):
    quantizer = Quantizer(model, bits=4)
    weight = fake_weight(quantizer.model.first.weight, bits=4)
    levels = weight / weight.abs().amax(1, keepdim=True) * 7
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert levels.round().unique().numel() <= 15
    quantizer.fit([(ids,)], epochs=2, lr=1e-3)
    coarse, fine = (Quantizer(model, bits=bits).model.eval()(ids) for bits in (4, 8))
    wanted = model.eval()(ids)
    assert (coarse - wanted).norm() > 4 * (fine - wanted).norm()


@pytest.mark.parametrize("bits", [4, 8])
def test_activations_in_half_precision_take_the_levels_of_single_precision(bits):
    x = torch.randn(50, 96).bfloat16()
    assert torch.equal(fake_activation(x, bits=bits), fake_activation(x.float(), bits=bits).bfloat16())


def test_fit_without_batches_or_without_any_loss_is_refused(model, ids):
    with pytest.raises(InputError, match="no batches"):
        Quantizer(model).fit([])
    with pytest.raises(InputError, match="loss"):
        Quantizer(model).fit([(ids,)], self_teacher=False)
