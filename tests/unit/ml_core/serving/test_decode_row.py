"""One row decoded by five kernels a layer: what the plain step gives, in Triton's interpreter and on a GPU."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from testkit.llama_models import LENGTHS, SHAPES, make, prompts

from ml_core.kernels.decode_row import op
from ml_core.models.llama import Llama
from ml_core.serving.decode import DecodeEngine

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture
def fused(monkeypatch):
    """As on CUDA in half precision: kernels serve, here in single precision."""
    monkeypatch.setattr(op, "serves", lambda x: True)


@pytest.mark.parametrize("weights", ["dense", "int8"])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_fused_step_gives_the_plain_steps_logits_and_cache(shape, weights, fused, tmp_path):
    make(tmp_path, **SHAPES[shape])
    model = Llama.load(tmp_path, device=DEVICE, dtype=torch.float32, weights=weights)
    (prompt,) = prompts(11)
    results = []
    with torch.inference_mode():
        for step in (model.step_plain, model.step_fused):
            cache = model.empty_cache(b=1, m=LENGTHS[-1])
            model.prefill(
                torch.tensor([prompt], device=DEVICE), torch.tensor([len(prompt)], device=DEVICE), cache=cache
            )
            tokens, position = (torch.tensor([each], device=DEVICE) for each in (5, len(prompt)))
            results.append([step(tokens, position, cache=cache, m=16), *cache.k, *cache.v])
    for plain, ours in zip(*results, strict=True):
        assert torch.allclose(ours, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


def test_greedy_text_by_fused_steps_is_transformers(fused, tmp_path):
    model = make(tmp_path, num_key_value_heads=2)
    engine = DecodeEngine.load(tmp_path, device=DEVICE, dtype=torch.float32, rows=(1,), lengths=LENGTHS)
    assert "five kernels a layer" in engine.describe()
    (prompt,) = prompts(9, seed=1)
    with torch.no_grad():
        wanted = model.to(DEVICE).generate(
            torch.tensor([prompt], device=DEVICE), max_new_tokens=14, min_new_tokens=14, do_sample=False, pad_token_id=0
        )
    assert engine.generate([prompt], max_new_tokens=14) == [wanted[0, len(prompt) :].tolist()]


def test_more_rows_take_the_plain_step(fused, monkeypatch, tmp_path):
    make(tmp_path)
    model = Llama.load(tmp_path, device=DEVICE, dtype=torch.float32, weights="dense")
    monkeypatch.setattr(model, "step_fused", lambda *a, **k: pytest.fail("two rows are not one"))
    two = torch.tensor([1, 2], device=DEVICE)
    with torch.inference_mode():
        assert model.step(two, two, cache=model.empty_cache(b=2, m=16), m=16).shape[0] == 2


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_on_a_gpu_fused_steps_are_as_near_to_the_truth_as_plain_ones(weights, tmp_path):
    make(tmp_path, num_key_value_heads=2)
    (prompt,) = prompts(11)
    kind = "dense" if weights == "bf16" else "int8"
    found = {}
    with torch.inference_mode():
        for name, dtype in (("truth", torch.float64), ("plain", torch.bfloat16), ("fused", torch.bfloat16)):
            model = Llama.load(tmp_path, device="cuda", dtype=dtype, weights=kind)
            cache = model.empty_cache(b=1, m=LENGTHS[-1])
            model.prefill(torch.tensor([prompt], device="cuda"), torch.tensor([11], device="cuda"), cache=cache)
            step = model.step_fused if name == "fused" else model.step_plain
            tokens, position = (torch.tensor([each], device="cuda") for each in (5, 11))
            found[name] = step(tokens, position, cache=cache, m=16).double()
    off = {name: float((x - found["truth"]).norm() / found["truth"].norm()) for name, x in found.items()}
    assert off["fused"] <= 1.5 * off["plain"]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_on_a_gpu_a_captured_step_says_what_the_same_step_says_launched(weights, tmp_path):
    make(tmp_path, num_key_value_heads=2)
    engine = DecodeEngine.load(tmp_path, device="cuda", weights=weights, rows=(1,), lengths=LENGTHS)
    assert "five kernels a layer" in engine.describe()
    (prompt,) = prompts(9, seed=1)
    (text,) = engine.generate([prompt], max_new_tokens=20)
    model = engine.model
    with torch.inference_mode():
        cache = model.empty_cache(b=1, m=LENGTHS[-1])
        ids = torch.tensor([prompt], device="cuda")
        token = model.prefill(ids, torch.tensor([9], device="cuda"), cache=cache).argmax(-1)
        said = [int(token)]
        for position in range(9, 28):
            token = model.step_fused(token, torch.tensor([position], device="cuda"), cache=cache, m=32).argmax(-1)
            said.append(int(token))
    assert text == said
