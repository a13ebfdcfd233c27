"""fuse: what it reports, what it refuses and by which name, what is loud afterwards, and our own models."""

import copy

import pytest
import torch
from torch import nn

from ml_core.errors import InputError
from ml_core.layers.blocks import Block, KVCache
from ml_core.layers.fuse import fuse, super_ops
from ml_core.layers.launches import count_launches
from ml_core.layers.superops import dispatch
from ml_core.models.fraud_student import FraudStudent, FraudStudentConfig
from ml_core.models.report_student import ReportStudent, ReportStudentConfig
from ml_core.models.timm_shim import timm_import
from ml_core.models.transformers_shim import transformers_import

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 60}


def make(name, **changes):
    torch.manual_seed(0)
    transformers = transformers_import()
    if name == "bert":
        model = transformers.BertModel(transformers.BertConfig(**(SIZES | changes)))
    elif name == "mpnet":
        model = transformers.MPNetModel(transformers.MPNetConfig(**(SIZES | changes)))
    elif name == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, num_key_value_heads=2))
    else:
        settings = {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 4, "num_classes": 3}
        model = timm_import().create_model("vit_tiny_patch16_224", **(settings | changes))
    return model.eval()


def call(model):
    return model(input_ids=torch.arange(3, 12)[None])[0]


def off(got, wanted):
    return float(((got - wanted).norm() / wanted.norm()).detach())


class TestReport:
    @pytest.mark.parametrize(("name", "before"), [("bert", 12), ("mpnet", 12), ("llama", 12), ("vit", 10)])
    def test_it_names_blocks_and_counts_operators(self, name, before):
        model, report = fuse(make(name))
        stack = {"bert": "encoder.layer", "mpnet": "encoder.layer", "llama": "model.layers", "vit": "blocks"}[name]
        assert [each.name for each in report.blocks] == [f"{stack}.0", f"{stack}.1"]
        assert {(len(each.before), len(each.after)) for each in report.fused} == {(before, 3)}
        assert f"{before} operators -> 3" in str(report)
        assert list(super_ops(model)) == [each.name for each in report.blocks]

    def test_fewer_operators_run(self):
        plain = make("bert", attn_implementation="eager")
        fused, _ = fuse(copy.deepcopy(plain))
        with torch.no_grad():
            assert count_launches(lambda: call(fused)) < count_launches(lambda: call(plain))

    def test_fusing_twice_changes_nothing_and_says_so(self):
        fused, _ = fuse(make("bert"))
        _, report = fuse(fused)
        assert [each.skipped for each in report.blocks] == ["it is fused already"] * 2

    def test_every_product_has_a_path_and_a_reason(self):
        fused, _ = fuse(make("bert"))
        for ops in super_ops(fused).values():
            lines = [str(choice) for choice in dispatch(ops, torch.randn(2, 5, 32)).values()]
            assert len(lines) == 4
            assert all("nothing measured" in line for line in lines)

    def test_an_unknown_block_is_named_and_left_alone(self):
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        _, report = fuse(model)
        assert [(each.name, each.skipped) for each in report.blocks] == [
            (f"layers.{i}", "its structure is not known") for i in range(2)
        ]
        assert type(model.layers[0]) is nn.TransformerEncoderLayer

    def test_a_model_without_blocks_is_said_to_have_none(self):
        assert str(fuse(nn.Sequential(nn.Linear(2, 2)))[1]) == "no block of any known structure"


class TestRefusals:
    def left(self, model, *, reason, others=1):
        before = {name: type(part) for name, part in model.named_modules()}
        _, report = fuse(model)
        assert len(report.fused) == others, str(report)
        (skipped,) = report.skipped[:1]
        assert reason in skipped.skipped, str(report)
        assert type(model.get_submodule(skipped.name)) is before[skipped.name]

    def test_tied_parameters_are_refused_by_name(self):
        model = make("bert")
        layers = model.encoder.layer
        layers[0].output.dense.weight = layers[1].output.dense.weight
        self.left(model, reason="output.dense.weight is tied to encoder.layer.1.output.dense.weight", others=0)

    def test_tied_storage_is_refused_too(self):
        model = make("bert")
        query = model.encoder.layer[0].attention.self.query
        model.encoder.layer[0].attention.self.key.weight = nn.Parameter(query.weight.data)
        self.left(model, reason="attention.self.query.weight is tied to encoder.layer.0.attention.self.key.weight")

    def test_shared_modules_are_refused_by_name(self):
        model = make("bert")
        model.encoder.layer[1] = model.encoder.layer[0]
        self.left(model, reason="it is shared with encoder.layer.1", others=0)
        model = make("bert")
        model.encoder.layer[0].intermediate = model.encoder.layer[1].intermediate
        self.left(model, reason="intermediate is shared with encoder.layer.1.intermediate", others=0)

    def test_other_layers_than_linear_are_named(self):
        class Quantized(nn.Linear):
            pass

        model = make("vit")
        model.blocks[0].mlp.fc1 = Quantized(32, 128)
        self.left(model, reason="mlp.fc1 is a Quantized, not a Linear")

    def test_a_layer_without_a_place_is_named(self):
        self.left(make("vit", qk_norm=True), reason="attn.q_norm (LayerNorm) has no place", others=0)

    def test_an_unknown_activation_or_norm_is_named(self):
        self.left(make("bert", hidden_act="relu"), reason="ReLU computes none of gelu", others=0)
        model = make("vit")
        model.blocks[0].norm1 = nn.GroupNorm(1, 32)
        self.left(model, reason="GroupNorm")

    def test_a_decoder_with_cross_attention_is_left_alone(self):
        model = make("bert", is_decoder=True, add_cross_attention=True)
        self.left(model, reason="crossattention", others=0)

    def test_hooks_on_inner_layers_are_refused(self):
        model = make("bert")
        model.encoder.layer[0].attention.self.query.register_forward_hook(lambda *_: None)
        self.left(model, reason="attention.self.query has a hook")

    def test_what_looks_alike_and_computes_something_else_is_found_out(self):
        class Scaled(timm_import().models.vision_transformer.Block):
            def forward(self, x, attn_mask=None, is_causal=False):
                x = x + self.attn(self.norm1(x), attn_mask=attn_mask)
                return x + 0.999 * self.mlp(self.norm2(x))

        model = make("vit")
        model.blocks[0].__class__ = Scaled
        self.left(model, reason="its output is not that of the family vit")

    def test_another_attention_implementation_is_left_alone(self):
        model = make("bert")
        model.config._attn_implementation = "flex_attention"
        self.left(model, reason="flex_attention", others=0)


class TestLoudAtRunTime:
    def test_attention_weights_cannot_be_had(self):
        for name in ("bert", "mpnet", "llama"):
            fused, _ = fuse(make(name))
            with pytest.raises(InputError, match="output_attentions"):
                fused(input_ids=torch.ones(1, 3, dtype=torch.long), output_attentions=True)

    def test_a_changed_attention_implementation_is_refused(self):
        fused, _ = fuse(make("bert"))
        fused.config._attn_implementation = "flash_attention_2"
        with pytest.raises(InputError, match="flash_attention_2"):
            fused.encoder.layer[0](torch.ones(1, 3, 32))

    def test_a_layer_replaced_or_hooked_after_fusing_is_refused(self):
        fused, _ = fuse(make("bert"))
        old = fused.encoder.layer[0].attention.self.query
        fused.encoder.layer[0].attention.self.query = nn.Linear(32, 32)
        with pytest.raises(InputError, match="query: replaced"):
            call(fused)
        fused.encoder.layer[0].attention.self.query = old
        old.register_forward_pre_hook(lambda *_: None)
        with pytest.raises(InputError, match="query: has a hook"):
            call(fused)


class TestOwnModels:
    @pytest.mark.parametrize(("causal", "cross"), [(True, True), (True, False), (False, True), (False, False)])
    def test_the_block_with_masks_cache_and_cross_attention(self, causal, cross):
        torch.manual_seed(0)
        block = Block(24, 3, 40, max_n=8, causal=causal, d_context=10 if cross else None).double().eval()
        nn.init.normal_(block.attn.dpe.table)
        fused, report = fuse(copy.deepcopy(block))
        assert [(each.name, each.family) for each in report.fused] == [("", "assay")], str(report)
        x, context = torch.randn(2, 7, 24).double(), torch.randn(2, 4, 10).double()
        given = {"key_mask": torch.arange(7) < torch.tensor([[7], [5]])}
        if cross:
            given |= {"kv": block.cross.context(context), "context_mask": torch.arange(4) < torch.tensor([[2], [4]])}
        assert off(fused(x, **given), block(x, **given)) < 1e-13
        if causal:
            del given["key_mask"]
            given.pop("context_mask", None)
            cache = KVCache.empty(b=2, h=3, max_n=7, k=8, device=x.device, dtype=x.dtype)
            steps = torch.cat([fused(x[:, i : i + 1], cache=cache, **given) for i in range(7)], dim=1)
            assert off(steps, block(x, **given)) < 1e-13

    def test_the_fraud_student(self):
        torch.manual_seed(0)
        student = FraudStudent(FraudStudentConfig(features=5, channels=4, d=16, ffn=24, wide=16, layers=3)).double()
        for block in student.blocks:
            nn.init.normal_(block.attn.dpe.table)
        fused, report = fuse(copy.deepcopy(student))
        assert [each.name for each in report.fused] == ["blocks.0", "blocks.1", "blocks.2"]
        inputs = [torch.rand(3, 5).double(), torch.rand(3, 16, 4).double(), torch.rand(3, 24, 4).double()]
        wanted, got = (model.taps(*inputs) for model in (student, fused))
        assert off(got.logits, wanted.logits) < 1e-12
        for mine, theirs in zip(got.layers, wanted.layers, strict=True):
            assert off(mine, theirs) < 1e-12

    def test_the_report_student(self):
        torch.manual_seed(0)
        config = ReportStudentConfig(vocabulary=20, image_size=64, encoder_depth=2, decoder_layers=2)
        student = ReportStudent(config).eval()
        fused, report = fuse(copy.deepcopy(student))
        families = [(each.name, each.family) for each in report.fused]
        assert families == [
            ("encoder.blocks.0", "vit"),
            ("encoder.blocks.1", "vit"),
            ("decoder.0", "assay"),
            ("decoder.1", "assay"),
        ]
        images, text = torch.rand(2, 1, 64, 64), torch.randint(0, 20, (2, 6))
        with torch.no_grad():
            outputs = []
            for model in (student, fused):
                seen = model.forward_seen(images)
                memory = model.memory(seen, seen.states.argmax(-1))
                outputs.append(
                    (seen.states, model.forward_text(memory, text), model.decode_plan(memory, [[3], [4]], stop=1))
                )
        for mine, theirs in zip(outputs[1][:2], outputs[0][:2], strict=True):
            assert off(mine, theirs) < 1e-5
        words = [[tuple(s.tokens for s in row.sentences) for row in out[2]] for out in outputs]
        assert words[0] == words[1]
