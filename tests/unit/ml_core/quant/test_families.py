"""Models of transformers and timm, torch's own attention, and the artifacts that ship."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ml_core import artifacts
from ml_core.contracts import ModelKind
from ml_core.errors import InputError
from ml_core.models.fraud_student import FraudStudent, FraudStudentConfig
from ml_core.models.timm_shim import timm_import
from ml_core.models.transformers_shim import transformers_import
from ml_core.quant import (
    GeneralQuantLinear,
    QuantEmbedding,
    Quantizer,
    QuantLinear,
    QuantPatches,
    load_quantized,
    quantized_state,
)
from ml_core.quant.artifact import build, quantize_artifact

PRETRAINED = Path(artifacts.__file__).parent / "pretrained"
BITS = [8, 6, 4]
# how far outputs of a random model may be off, relative: each bit less doubles the step
NEAR = {8: 0.05, 6: 0.2, 4: 0.8}


def gpt2():
    transformers = transformers_import()
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=60, n_positions=16, n_embd=32, n_layer=2, n_head=2)
    return transformers.GPT2LMHeadModel(config).eval()


def bert():
    transformers = transformers_import()
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    return transformers.BertForSequenceClassification(config).eval()


def vit():
    timm = timm_import()
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=5
    ).eval()


def relative(got, wanted):
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("bits", BITS)
def test_gpt2_with_its_turned_weights_and_tied_head_is_quantized_whole(bits):
    model, ids = gpt2(), torch.randint(0, 60, (2, 9))
    quantizer = Quantizer(model, bits=bits)
    quantizer.fit([{"input_ids": ids}], epochs=1, outputs=lambda net, batch: net(**batch).logits)
    converted, report = quantizer.convert()
    rows = {row.name: row for row in report}
    assert rows["transformer.h.0.attn.c_attn"].kind == "Conv1D"
    assert rows["transformer.h.0.attn.c_attn"].shape == (32, 96)
    assert {row.kind for row in report if row.skipped} == {"LayerNorm"}
    assert converted.lm_head.weight is converted.transformer.wte.weight
    with torch.no_grad():
        assert relative(converted(input_ids=ids).logits, model(input_ids=ids).logits) < NEAR[bits]
        assert relative(converted(input_ids=ids).logits, quantizer.model(input_ids=ids).logits) < 1e-3
    loaded = load_quantized(gpt2(), quantized_state(converted))
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, converted(input_ids=ids).logits)


def test_gpt2_in_training_gets_every_gradient_and_smooths():
    model, ids = gpt2(), torch.randint(0, 60, (2, 9))
    quantizer = Quantizer(model, smooth=0.5, activations="tensor", learn_weight_scales=True)
    quantizer.calibrate([{"input_ids": ids}])
    assert quantizer.smoothed["transformer.h.0.attn.c_attn"] == "into transformer.h.0.ln_1"
    with torch.no_grad(), quantizer.floating() as smoothed:
        assert torch.allclose(smoothed(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-4)
    quantizer.model(input_ids=ids).logits.pow(2).mean().backward()
    assert all(p.grad is not None for p in quantizer.model.parameters())


@pytest.mark.parametrize("bits", BITS)
def test_bert_is_quantized_with_its_embeddings_and_head_and_needs_no_outputs(bits):
    model, ids = bert(), torch.randint(0, 60, (2, 9))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    converted, report = Quantizer(model, bits=bits).fit([batch], epochs=1).convert()
    done = {row.name for row in report if not row.skipped}
    assert {"bert.embeddings.word_embeddings", "bert.embeddings.position_embeddings", "classifier"} <= done
    with torch.no_grad():
        hidden = [net.bert(**batch).last_hidden_state for net in (converted, model)]
        assert relative(*hidden) < NEAR[bits]
    loaded = load_quantized(bert(), quantized_state(converted))
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, converted(**batch).logits)


def test_bert_smoothed_is_the_same_function():
    model, ids = bert(), torch.randint(0, 60, (2, 9))
    quantizer = Quantizer(model, smooth=0.5).calibrate([{"input_ids": ids}])
    # post-LN: every norm is a residual too
    assert set(quantizer.smoothed.values()) == {"factor an input"}
    with torch.no_grad(), quantizer.floating() as smoothed:
        assert torch.allclose(smoothed(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("activations", ["token", "tensor"])
def test_a_patch_embedding_is_a_linear_layer_over_patches(bits, activations):
    model, images = vit(), torch.randn(3, 3, 32, 32)
    quantizer = Quantizer(model, bits=bits, activations=activations, patches=True)
    quantizer.calibrate([(images,)])
    with torch.no_grad(), quantizer.floating() as same:
        assert torch.allclose(same(images), model(images), atol=1e-5)
    converted, report = quantizer.convert()
    rows = {row.name: row for row in report}
    assert isinstance(converted.patch_embed.proj, QuantPatches)
    assert rows["patch_embed.proj"].kind == "Conv2d (patches)"
    assert rows["patch_embed.proj"].shape == (24, 3, 8, 8)
    with torch.no_grad():
        assert relative(converted(images), model(images)) < NEAR[bits]
        assert relative(converted(images), quantizer.model(images)) < (1e-3 if bits == 8 else 0.05)
    loaded = load_quantized(vit(), quantized_state(converted))
    with torch.no_grad():
        assert torch.equal(loaded(images), converted(images))


def test_patches_that_are_not_asked_for_and_other_convolutions_say_why_they_are_float():
    model = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1))
    reasons = [row.skipped for row in Quantizer(model).convert()[1]]
    assert reasons[0] == "a patch embedding: quantized with patches=True"
    assert reasons[1:] == ["no int8 form of Conv2d yet"] * 2
    converted, _ = Quantizer(model, patches=True).convert()
    assert isinstance(converted[0], QuantPatches)
    assert converted(torch.randn(2, 3, 17, 18)).shape == (2, 4, 4, 4)


def test_torchs_encoder_is_left_whole_and_its_fast_path_still_gives_its_answer():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)).eval()
    x = torch.randn(2, 5, 16)
    converted, report = Quantizer(model, smooth=0.5).calibrate([(x,)]).convert()
    rows = {row.name: row for row in report}
    assert rows["1"].scheme.startswith("W8A8")
    inside = [row for row in report if row.name.startswith("0.layers")]
    assert all("directly" in row.skipped for row in inside)
    assert any("packed in_proj" in row.skipped for row in inside)
    with torch.inference_mode():
        assert relative(converted(x), model(x)) < 0.02


@pytest.mark.parametrize("kind", ["fraud-student", "report-student"])
def test_shipped_artifacts_load_as_the_same_layers_with_the_same_tensors(kind):
    manifest = artifacts.read(PRETRAINED / kind)
    tensors = artifacts.load_tensors(PRETRAINED / kind)
    tensors = {name: each.float() if each.dtype == torch.float16 else each for name, each in tensors.items()}
    model = load_quantized(build(manifest.kind, config=manifest.config), tensors)
    integer = [each for each in model.modules() if "weight_scale" in dict(each.named_buffers(recurse=False))]
    assert {type(each) for each in integer} == {QuantLinear, QuantEmbedding}
    assert not any(isinstance(each, GeneralQuantLinear) for each in model.modules())
    state = quantized_state(model)
    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[name], each) for name, each in tensors.items())


@pytest.mark.parametrize("bits", BITS)
def test_a_float_artifact_becomes_one_of_few_bits(bits, tmp_path):
    torch.manual_seed(0)
    config = FraudStudentConfig(features=5, channels=4, d=16, ffn=32, wide=16, steps=8)
    student = FraudStudent(config).eval()
    artifacts.write(
        tmp_path / "float", kind=ModelKind.FRAUD, name="f", recipe="test",
        config={"student": {**{key: getattr(config, key) for key in config.__slots__}, "categories": []}},
        tensors=student.state_dict(), metrics={}, data_digest="", teacher_digest="", parameters=1, licence="", card="",
    )  # fmt: skip
    description, report = quantize_artifact(tmp_path / "float", out=tmp_path / "few", bits=bits)
    assert f"INT{bits}" in description.name
    assert any(row.scheme.startswith(f"W{bits}A{bits}") for row in report)
    loaded = load_quantized(FraudStudent(config), artifacts.load_tensors(tmp_path / "few"))
    inputs = torch.rand(3, 5) * 50, torch.rand(3, 16, 4), torch.rand(3, 24, 4)
    wanted, _ = Quantizer(student, bits=bits).convert()
    assert torch.equal(loaded(*inputs), wanted(*inputs))
    with pytest.raises(InputError, match="quantized already"):
        quantize_artifact(tmp_path / "few", out=tmp_path / "again")
