"""The decoder of Llama shapes writes what transformers writes, whatever the neighbours, the buckets or the padding."""

import copy
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from testkit.llama_models import LENGTHS, LLAMA3, SHAPES, VOCABULARY, make, prompts

from ml_core.errors import ArtifactError, InputError
from ml_core.kernels.gemv_int8.naive import quantize_rows
from ml_core.models.llama import Llama, LlamaConfig, Rope, checkpoint
from ml_core.serving.decode import DecodeEngine

ROOT = Path(__file__).resolve().parents[4]
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


@pytest.fixture(scope="module", params=list(SHAPES))
def pair(request, tmp_path_factory):
    """transformers' model, and our engine on the same folder."""
    folder = tmp_path_factory.mktemp("llama")
    model = make(folder, **SHAPES[request.param])
    return model, DecodeEngine.load(folder, device="cpu", dtype=torch.float32, lengths=LENGTHS)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grouped")
    return folder, make(folder, num_key_value_heads=2)


def theirs(model, prompt, new):
    ids = torch.tensor([prompt])
    out = model.generate(ids, max_new_tokens=new, do_sample=False, attention_mask=torch.ones_like(ids), pad_token_id=0)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize(("length", "new"), [(1, 20), (9, 40), (15, 3), (16, 17), (33, 31), (64, 1)])
def test_the_text_is_transformers_text_across_every_bucket(pair, length, new):
    model, engine = pair
    (prompt,) = prompts(length, seed=length)
    wanted = theirs(model, prompt, new)
    assert engine.generate([prompt], max_new_tokens=new) == [wanted]
    assert length == 64 or len(set(wanted)) > 1  # a text of one token would agree by chance


def test_logits_are_transformers_logits(pair):
    model, engine = pair
    asked = prompts(7, 12, 1, 30)
    for prompt, got in zip(asked, engine.logits(asked), strict=True):
        with torch.no_grad():
            wanted = model(torch.tensor([prompt])).logits[0, -1]
        assert torch.allclose(got, wanted, atol=1e-4 * float(wanted.abs().max()))


def test_a_row_does_not_depend_on_its_neighbours(pair):
    _, engine = pair
    asked = prompts(1, 30, 4, 9, 17, seed=4)
    together = engine.generate(asked, max_new_tokens=21)
    for prompt, text in zip(asked, together, strict=True):
        assert engine.generate([prompt], max_new_tokens=21) == [text]
    turned = engine.generate(asked[::-1], max_new_tokens=21)
    assert turned[::-1] == together
    others = [asked[0], *prompts(5, 5, 5, 33, seed=8)]
    assert engine.generate(others, max_new_tokens=21)[0] == together[0]
    assert len({tuple(each) for each in together}) == 5


def test_sixteen_rows_of_all_lengths_are_transformers_sixteen_texts(grouped):
    folder, model = grouped
    engine = DecodeEngine.load(folder, device="cpu", dtype=torch.float32, lengths=LENGTHS)
    asked = prompts(*range(1, 33, 2), seed=6)
    assert engine.generate(asked, max_new_tokens=18) == [theirs(model, prompt, 18) for prompt in asked]


def test_threads_take_turns(grouped):
    engine = DecodeEngine.load(grouped[0], device=DEVICE, dtype=torch.float32, lengths=LENGTHS)
    asked = [prompts(*range(1, 2 + i % 3), seed=i) for i in range(12)]
    wanted = [engine.generate(each, max_new_tokens=12) for each in asked]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda each: engine.generate(each, max_new_tokens=12), asked)) == wanted


@pytest.mark.parametrize("every", [1, 3, 50])
def test_a_stop_ends_a_row_where_it_stands_and_no_other(grouped, every):
    engine = DecodeEngine(Llama.load(grouped[0], device="cpu", dtype=torch.float32, weights="dense"), every=every)
    asked = prompts(5, 8, seed=2)
    whole = engine.generate(asked, max_new_tokens=30)
    stop = whole[0][11]
    ended = engine.generate(asked, max_new_tokens=30, stop=[stop])
    for before, after in zip(whole, ended, strict=True):
        assert after == (before[: before.index(stop)] if stop in before else before)
    assert len(ended[0]) < 30
    assert engine.generate(asked[:1], max_new_tokens=30, stop=[whole[0][0]]) == [[]]


def test_once_every_row_has_stopped_no_more_steps_are_made(grouped):
    engine = DecodeEngine(Llama.load(grouped[0], device="cpu", dtype=torch.float32, weights="dense"), every=4)
    asked = prompts(5, seed=2)
    stop = engine.generate(asked, max_new_tokens=50)[0][6]
    fresh = DecodeEngine(engine.model, every=4)
    fresh.generate(asked, max_new_tokens=50, stop=[stop])
    assert f"{fresh._states[1].ran}" in ("{64: 4}", "{64: 8}")


def test_what_runs_where_is_said(grouped):
    engine = DecodeEngine.load(grouped[0], device="cpu", dtype=torch.float32, lengths=LENGTHS)
    engine.generate(prompts(10), max_new_tokens=10)
    said = engine.describe()
    assert "eager steps, no CUDA graphs on cpu" in said
    assert "1 rows × 16: 6 steps" in said
    assert "1 rows × 32: 3 steps" in said
    int8 = DecodeEngine.load(grouped[0], device="cpu", dtype=torch.float32, weights="int8")
    assert "int8 by output channel" in int8.describe()


def rounded(model):
    """transformers' model with every product's weight at the level that int8 gives it; the embedding stays exact."""
    exact = copy.deepcopy(model)
    for module in exact.modules():
        if isinstance(module, torch.nn.Linear):
            levels, scale = quantize_rows(module.weight)
            module.weight = torch.nn.Parameter(levels * scale[:, None])
    return exact


def test_int8_logits_are_those_of_the_rounded_weights_and_near_those_of_the_exact(pair, tmp_path):
    """1e-5 of the logits' size from the same weights rounded in transformers' model, 10% from the exact ones."""
    model, _ = pair
    model.save_pretrained(tmp_path)
    engine = DecodeEngine.load(tmp_path, device="cpu", dtype=torch.float32, weights="int8", lengths=LENGTHS)
    same, asked = rounded(model), prompts(7, 12, 1, 30)
    for prompt, got in zip(asked, engine.logits(asked), strict=True):
        with torch.no_grad():
            wanted, exact = (each(torch.tensor([prompt])).logits[0, -1] for each in (same, model))
        assert float((got - wanted).norm() / wanted.norm()) < 1e-5
        assert 1e-4 < float((got - exact).norm() / exact.norm()) < 0.1


def test_an_int8_step_says_what_an_int8_prompt_says(grouped):
    """The prompt goes through the widened weight, steps through the kernel's product: one text from both."""
    engine = DecodeEngine.load(grouped[0], device="cpu", dtype=torch.float32, weights="int8", lengths=LENGTHS)
    (prompt,) = prompts(20, seed=5)
    (text,) = engine.generate([prompt], max_new_tokens=12)
    for at in range(12):
        assert int(engine.logits([prompt + text[:at]]).argmax()) == text[at]


def test_the_head_of_a_tied_model_is_the_embedding(tmp_path):
    make(tmp_path, tie_word_embeddings=True)
    model = Llama.load(tmp_path, device="cpu", dtype=torch.float32, weights="dense")
    assert model.head.weight.data_ptr() == model.embed.data_ptr()


def test_a_checkpoint_in_several_files_is_the_same_model(grouped, tmp_path):
    folder, model = grouped
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    one, several = (Llama.load(each, device="cpu", dtype=torch.float32, weights="dense") for each in (folder, tmp_path))
    assert torch.equal(one.layers[1].up.weight, several.layers[1].up.weight)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"model_type": "mistral"}, "model_type: 'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling: 'yarn'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling: 'dynamic'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
    ],
)
def test_what_is_not_known_is_refused_by_name(grouped, change, name):
    given = json.loads((grouped[0] / "config.json").read_text())
    LlamaConfig.from_transformers(given)
    with pytest.raises(InputError, match=name):
        LlamaConfig.from_transformers(given | change)


def test_the_older_way_to_write_a_rotation_means_the_same(grouped):
    given = json.loads((grouped[0] / "config.json").read_text())
    del given["rope_parameters"]
    assert LlamaConfig.from_transformers(given | {"rope_theta": 5e5}).rope == Rope(theta=5e5)
    older = LlamaConfig.from_transformers(given | {"rope_scaling": LLAMA3 | {"rope_theta": 100.0}}).rope
    assert older == LlamaConfig.from_transformers(given | {"rope_parameters": LLAMA3}).rope


def test_a_checkpoint_with_more_or_less_than_the_model_is_refused(grouped, tmp_path):
    folder, model = grouped
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = LlamaConfig.from_transformers(json.loads((folder / "config.json").read_text()))

    def load(change):
        from safetensors.torch import save_file

        save_file(change(dict(state)), tmp_path / "model.safetensors")
        with checkpoint(tmp_path) as source:
            Llama(config, source, device="cpu", dtype=torch.float32, weights="dense")

    load(lambda all: all)
    with pytest.raises(ArtifactError, match="extra"):
        load(lambda all: all | {"extra": torch.ones(1)})
    with pytest.raises(ArtifactError, match=r"no tensor model\.norm\.weight"):
        load(lambda all: {name: x for name, x in all.items() if name != "model.norm.weight"})
    with pytest.raises(ArtifactError, match=r"lm_head\.weight: expected"):
        load(lambda all: all | {"lm_head.weight": torch.ones(3, 64)})
    with pytest.raises(ArtifactError, match=r"no usable config\.json"):
        DecodeEngine.load(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"ids": []}, "ids: 0 rows"),
        ({"ids": [[1]] * 17}, "ids: 17 rows"),
        ({"ids": [[1], []]}, "row 1 is empty"),
        ({"ids": [[VOCABULARY]]}, "holds no token"),
        ({"ids": [[1] * 60], "max_new_tokens": 6}, "exceed 64"),
        ({"ids": [[1]], "max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_what_cannot_be_generated_is_named(grouped, given, name):
    engine = DecodeEngine.load(grouped[0], device="cpu", dtype=torch.float32)
    with pytest.raises(InputError, match=name):
        engine.generate(**({"max_new_tokens": 2} | given))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"rows": (1, 17)}, "rows:"),
        ({"lengths": (16, 65)}, "lengths:"),
        ({"lengths": (16, 32, 48, 64)}, "5 × 4"),
        ({"weights": "int4"}, "weights: 'int4'"),
    ],
)
def test_wrong_buckets_or_weights_are_refused(grouped, given, name):
    with pytest.raises(InputError, match=name):
        DecodeEngine.load(grouped[0], device="cpu", dtype=torch.float32, **given)


@pytest.mark.slow
@pytest.mark.skipif(not CUDA and shutil.which("g++") is None, reason="inductor needs a C++ compiler on the CPU")
def test_compiled_steps_write_what_eager_steps_write(grouped):
    # apart: here jaxtyping's checks stand in the kernels' functions, and dynamo cannot trace them
    code = f"""if True:
        import torch
        from ml_core.serving.decode import DecodeEngine
        asked = [[5, 7, 11, 2], [9] * 14]
        # each bucket takes the compiler seconds: both numbers of rows with the one weight, both lengths with the other
        for weights, rows, lengths in (("bf16", (1, 2), (32,)), ("int8", (2,), (16, 32))):
            given = dict(dtype=torch.float32, weights=weights, rows=rows, lengths=lengths)
            plain, compiled = (
                DecodeEngine.load({str(grouped[0])!r}, device={DEVICE!r}, compiled=each, **given)
                for each in (False, True)
            )
            assert "compiled steps" in compiled.describe() and "eager steps" in plain.describe()
            for prompts in (asked, asked[:1]):
                wanted = plain.generate(prompts, max_new_tokens=18)
                assert compiled.generate(prompts, max_new_tokens=18) == wanted, weights
    """
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs CUDA")
@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_on_a_gpu_graphs_write_what_the_cpu_writes(grouped, weights):
    given = {"dtype": torch.float32, "weights": weights, "lengths": LENGTHS}
    here = DecodeEngine.load(grouped[0], device="cpu", **given)
    there = DecodeEngine.load(grouped[0], device="cuda", **given)
    for seed in range(3):
        asked = prompts(1, 30, 4, 9, 17, seed=seed)
        assert there.generate(asked, max_new_tokens=30) == here.generate(asked, max_new_tokens=30)
        assert there.generate(asked[:1], max_new_tokens=50) == here.generate(asked[:1], max_new_tokens=50)
    assert "6 graphs in one pool" in there.describe()


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs CUDA")
def test_on_a_gpu_a_model_of_random_weights_decodes_in_bf16():
    config = LlamaConfig(
        vocabulary=1000, d=512, layers=3, heads=8, kv_heads=8, head_size=64, ffn=1376, eps=1e-6, max_positions=512
    )
    for weights in ("bf16", "int8"):
        engine = DecodeEngine.of(config, device="cuda", weights=weights, lengths=(128, 512))
        first = engine.generate([[1, 2, 3]], max_new_tokens=200)
        assert engine.generate([[1, 2, 3]], max_new_tokens=200) == first
