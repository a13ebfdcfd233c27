"""fuse: the same outputs, gradients, states and names on three operators a block; what is not known is left alone."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ml_core.distill.teachers.text import TextTaps
from ml_core.layers.fuse import fuse, unfuse
from ml_core.layers.fused_blocks import FusedBlock
from ml_core.models.timm_shim import timm_import
from ml_core.models.transformers_shim import transformers_import

ROOT = Path(__file__).resolve().parents[4]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 60}
TEXT = ["bert", "bert-eager", "mpnet", "llama", "llama-eager"]
ALL = [*TEXT, "vit"]
# relative RMS. transformers' RMSNorm computes in fp32 whatever comes in, so that Llama in float64 is no nearer
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}
LLAMA = 1e-6


def make(name, *, dtype=torch.float64, **changes):
    """A tiny model whose weights are large enough for every operator to count."""
    torch.manual_seed(0)
    transformers = transformers_import()
    kind, _, attention = name.partition("-")
    given = SIZES | ({"attn_implementation": attention} if attention else {}) | changes
    if kind == "bert":
        model = transformers.BertModel(transformers.BertConfig(**given))
    elif kind == "mpnet":
        model = transformers.MPNetModel(transformers.MPNetConfig(**given))
    elif kind == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**given, num_key_value_heads=2))
    else:
        settings = {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 4, "num_classes": 3}
        model = timm_import().create_model("vit_tiny_patch16_224", **(settings | changes))
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            parameter.add_(noise * (0.3 if parameter.ndim > 1 else 0.1)) if "norm" not in path.lower() else (
                parameter.add_(noise * 0.2)
            )
    return model.to(dtype).eval()


def both(name, **changes):
    """The model as it is, and fused."""
    plain = make(name, **changes)
    fused, report = fuse(copy.deepcopy(plain))
    assert len(report.fused) == 2, str(report)
    assert not report.skipped
    return plain, fused


def call(model, name, *, masked=True, n=9, device="cpu"):
    """All hidden states and the last output."""
    if name == "vit":
        x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        x = x.to(device, next(model.parameters()).dtype)
        return [*model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True), model(x)]
    ids = torch.randint(3, 60, (2, n), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, n, dtype=torch.long)
    mask[1, n - 3 :] = 0
    ids, mask = ids.to(device), mask.to(device)
    said = model(input_ids=ids, attention_mask=mask if masked else None, output_hidden_states=True)
    real = (mask.bool() if masked else torch.ones_like(mask).bool())[..., None]
    return [each * real for each in (*said.hidden_states, said[0])]


def off(got, wanted):
    return float(((got - wanted).norm() / wanted.norm()).detach())


def bound(name, dtype):
    return max(TOLERANCE[dtype], LLAMA if name.startswith("llama") else 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_outputs_and_hidden_states_are_the_same(name, masked, dtype):
    plain, fused = both(name, dtype=dtype)
    wanted, got = call(plain, name, masked=masked), call(fused, name, masked=masked)
    assert len(got) == len(wanted) >= 3
    for mine, theirs in zip(got, wanted, strict=True):
        assert off(mine, theirs) < bound(name, dtype)
    # and not because the blocks do nothing: leave them out and see
    assert off(wanted[0], wanted[1]) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ALL)
def test_gradients_of_all_parameters_are_the_same(name, dtype):
    plain, fused = both(name, dtype=dtype)
    for model in (plain, fused):
        model.train()
        for part in model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        states = call(model, name)
        sum((torch.sin(torch.arange(each.numel())).view(each.shape) * each).sum() for each in states).backward()
    wanted, got = (dict(model.named_parameters()) for model in (plain, fused))
    assert got.keys() == wanted.keys()
    largest = max(float(each.grad.norm()) for each in wanted.values() if each.grad is not None)
    for path, parameter in wanted.items():
        assert (parameter.grad is None) == (got[path].grad is None), path
        if parameter.grad is not None:
            error = float((got[path].grad - parameter.grad).norm())
            # a key's bias has no gradient but rounding's: what it adds is the same for all keys
            assert error < 10 * bound(name, dtype) * max(float(parameter.grad.norm()), 1e-2 * largest), path


@pytest.mark.parametrize("name", ALL)
def test_training_both_for_some_steps_keeps_them_together(name):
    plain, fused = both(name)
    start = [each.detach() for each in call(plain, name)]
    for model in (plain, fused):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            sum((each**2).mean() for each in call(model, name)).backward()
            optimizer.step()
    with torch.no_grad():
        assert off(call(fused, name)[-1], call(plain, name)[-1]) < 100 * bound(name, torch.float64)
        assert off(call(plain, name)[-1], start[-1]) > 1e-3


@pytest.mark.parametrize("name", ALL)
def test_the_state_dict_is_the_unfused_models_and_goes_both_ways(name, tmp_path):
    plain, fused = both(name)
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(fused.state_dict().values(), plain.state_dict().values(), strict=True))
    other = make(name)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    wanted = [each.detach() for each in call(other, name)]
    for assign in (False, True):
        fused.load_state_dict(other.state_dict(), assign=assign)
        with torch.no_grad():
            assert off(call(fused, name)[-1], wanted[-1]) < bound(name, torch.float64)
    save_file({key: value for key, value in fused.state_dict().items() if key != "lm_head.weight"}, tmp_path / "x")
    plain.load_state_dict(load_file(tmp_path / "x"), strict=name.partition("-")[0] != "llama")
    if not name.startswith("llama"):
        assert off(call(plain, name)[-1], wanted[-1]) < 1e-12


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_transformers_own_saving_and_loading_go_on_working(name, tmp_path):
    plain, fused = both(name)
    fused.save_pretrained(tmp_path)
    again = type(plain).from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert off(call(again, name)[-1], call(plain, name)[-1]) < 1e-12


@pytest.mark.parametrize("name", ["bert", "mpnet", "vit"])
@pytest.mark.parametrize("which", ["attention", "others"])
def test_dropout_of_everything_leaves_what_it_leaves_in_the_plain_model(name, which):
    plain, fused = both(name)
    outputs = []
    for model in (plain, fused):
        model.train()
        for path, part in model.named_modules():
            if isinstance(part, nn.Dropout):
                attention = path.endswith(("attn_drop", "self.dropout", "attn.dropout"))
                part.p = 1.0 if attention == (which == "attention") else 0.0
        outputs.append(call(model, name)[-1])
    assert off(outputs[1], outputs[0]) < 1e-12
    assert off(outputs[0], call(plain.eval(), name)[-1]) > 1e-3


def test_llamas_dropout_acts_in_training():
    plain, fused = both("llama", attention_dropout=1.0)
    outputs = [call(model.train(), "llama")[-1] for model in (plain, fused)]
    assert off(outputs[1], outputs[0]) < LLAMA
    assert off(outputs[0], call(plain.eval(), "llama")[-1]) > 1e-3


def test_dropout_is_drawn_anew_in_training_and_eval_is_the_same_twice():
    _, fused = both("bert", hidden_dropout_prob=0.5)
    assert all(torch.equal(a, b) for a, b in zip(call(fused, "bert"), call(fused, "bert"), strict=True))
    fused.train()
    assert not torch.equal(call(fused, "bert")[-1], call(fused, "bert")[-1])


def test_stochastic_depth_and_layer_scale_stay():
    plain, fused = both("vit", drop_path_rate=0.5, init_values=0.3)
    assert off(call(fused, "vit")[-1], call(plain, "vit")[-1]) < 1e-12
    outputs = []
    for model in (plain, fused):
        model.train()
        torch.manual_seed(3)
        outputs.append(call(model, "vit")[-1])
    assert off(outputs[1], outputs[0]) < 1e-12


def test_generation_with_a_cache_gives_the_same_tokens():
    plain, fused = both("llama")
    ids = torch.randint(3, 60, (2, 5), generator=torch.Generator().manual_seed(1))
    given = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(plain.generate(ids, **given), fused.generate(ids, **given))
    whole = fused(input_ids=ids)
    first = fused(input_ids=ids[:, :4], use_cache=True)
    last = fused(input_ids=ids[:, 4:], past_key_values=first.past_key_values)
    assert off(last.logits[:, -1], whole.logits[:, -1]) < LLAMA


@pytest.mark.parametrize("name", ["bert", "mpnet", "llama"])
def test_the_text_teachers_features_are_the_same(name):
    plain, fused = both(name)
    ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 5:] = 0
    wanted, got = (TextTaps(model, head_layers=(-1,))(ids, mask) for model in (plain, fused))
    for mine, theirs in zip(got.layers, wanted.layers, strict=True):
        assert off(mine[mask.bool()], theirs[mask.bool()]) < LLAMA
    assert off(got.pooled, wanted.pooled) < LLAMA
    assert off(got.heads[0].k[mask.bool()], wanted.heads[0].k[mask.bool()]) < LLAMA


def test_hooks_on_a_block_and_checkpointing_go_on_working():
    plain, fused = both("bert")
    seen = []
    fused.encoder.layer[0].register_forward_hook(lambda module, args, out: seen.append(out))
    state = call(fused, "bert")[1]
    assert torch.equal(seen[0][0], state[0])
    plain.activation_checkpointing_enable()
    fused.activation_checkpointing_enable()
    for model in (plain, fused):
        model.train()
        for part in model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        call(model, "bert")[-1].sum().backward()
    one, two = (model.encoder.layer[0].attention.self.query.weight.grad for model in (fused, plain))
    assert off(one, two) < 1e-10


def test_moving_to_another_dtype_and_copying_keep_it_right():
    plain, fused = both("bert")
    assert off(call(fused.float(), "bert")[-1], call(plain.float(), "bert")[-1]) < TOLERANCE[torch.float32]
    twin = copy.deepcopy(fused)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
        assert off(call(twin, "bert")[-1], call(plain, "bert")[-1]) < TOLERANCE[torch.float32]


def test_unfuse_gives_the_model_back_with_what_it_learned():
    plain, fused = both("bert")
    with torch.no_grad():
        fused.encoder.layer[0].intermediate.dense.weight.mul_(1.1)
        plain.encoder.layer[0].intermediate.dense.weight.mul_(1.1)
    unfuse(fused)
    assert not any(isinstance(part, FusedBlock) for part in fused.modules())
    assert {type(part) for part in fused.modules()} == {type(part) for part in plain.modules()}
    assert torch.equal(call(fused, "bert")[-1], call(plain, "bert")[-1])
    _, report = fuse(fused)
    assert len(report.fused) == 2


def test_a_fused_model_compiles_in_one_graph_and_sees_new_weights():
    # apart: here jaxtyping's checks stand in every function, and dynamo cannot trace them
    code = """if True:
        import copy, torch
        from torch import nn
        from ml_core.layers.blocks import Block
        from ml_core.layers.fuse import fuse
        torch.manual_seed(0)
        plain = nn.Sequential(*(Block(16, 2, 24, max_n=8) for _ in range(2))).eval()
        fused, report = fuse(copy.deepcopy(plain))
        assert len(report.fused) == 2, str(report)
        x = torch.randn(2, 5, 16)
        compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            assert torch.allclose(compiled(x), plain(x), atol=1e-5)
            for parameter in [*fused.parameters(), *plain.parameters()]:
                parameter.mul_(1.2)
            assert torch.allclose(compiled(x), plain(x), atol=1e-5)
            fused.load_state_dict({k: v * 1.1 for k, v in plain.state_dict().items()}, assign=True)
            plain.load_state_dict(fused.state_dict())
            assert torch.allclose(compiled(x), plain(x), atol=1e-5)
        (compiled(x).sum() - plain(x).sum()).backward()
        for one, two in zip(fused.parameters(), plain.parameters()):
            assert torch.allclose(one.grad, -two.grad, atol=1e-3)
    """
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_on_a_gpu_in_half_precision_it_is_as_near_to_float64_as_the_plain_model(name, dtype):
    plain, fused = both(name)
    with torch.no_grad():
        wanted = call(plain, name, masked=False)[-1]
        one, two = (
            call(model.to("cuda", dtype), name, masked=False, device="cuda")[-1].double().cpu()
            for model in (plain, fused)
        )
    assert off(two, wanted) < 2 * off(one, wanted)
