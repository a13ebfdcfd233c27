"""Real engines on a tiny model: the same products, outputs, rows and sizes; what saturates is refused."""

import copy
from dataclasses import replace

import pytest
import torch

from ml_core.quant.scheme import onednn_exact
from ml_core.serving.engines import parity
from ml_core.serving.engines.build import compiled
from ml_core.serving.engines.forms import SpeltLinear, exact_weights, spelt
from ml_core.serving.engines.interface import SYSTEMS
from ml_core.serving.engines.torch_cpu import TorchCpu

EXACT = ["onnxruntime int8", "openvino int8 in fp32"]
FLOATS = ["openvino fp32"]


@pytest.mark.parametrize("name", EXACT)
def test_products_at_full_scale_are_exact(tiny, name):
    assert (
        parity.product_error(replace(tiny, module=tiny.module.head), system=SYSTEMS[name], threads=1) <= parity.PRODUCTS
    )


@pytest.mark.skipif(onednn_exact(), reason="this CPU has VNNI: nothing saturates")
@pytest.mark.parametrize("name", ["onnxruntime int8 u8s8", "openvino int8"])
def test_products_that_saturate_are_seen(tiny, name):
    assert parity.product_error(replace(tiny, module=tiny.module.head), system=SYSTEMS[name], threads=1) > 0.01


@pytest.mark.parametrize("name", EXACT)
def test_outputs_are_the_torch_paths(tiny, engine, name):
    error, limit = parity.output_errors(tiny, engine(name), reference=engine("torch int8"), sizes={"b": 4, "n": 9})
    assert error <= limit


def test_a_system_that_drops_a_bias_is_farther_off_than_the_limit(tiny, engine):
    faulty = copy.deepcopy(tiny.module)
    faulty.block.attn.out_proj.bias = None
    found = compiled(replace(tiny, module=faulty), system=SYSTEMS["torch int8"], model=b"", threads=1)
    error, limit = parity.output_errors(tiny, found, reference=engine("torch int8"), sizes={"b": 8, "n": 16})
    assert error > limit


def test_a_layer_that_does_not_round_its_input_is_farther_off_than_float_rounding(tiny, monkeypatch):
    monkeypatch.setattr(TorchCpu, "__call__", lambda self, *given: exact_weights(self._call)(*given))
    with torch.no_grad():
        assert parity.product_error(tiny, system=SYSTEMS["torch int8"], threads=1) > 100 * parity.PRODUCTS


@pytest.mark.parametrize("name", FLOATS)
def test_a_float_model_is_the_same_on_every_engine(tiny, engine, name):
    given = tiny.example({"b": 4, "n": 9}, 0)
    assert parity.relative(engine(name)(*given)[0], to=engine("torch fp32")(*given)[0]) <= parity.FLOAT["fp32"]


@pytest.mark.parametrize("name", EXACT)
def test_any_sizes_run_and_a_row_is_the_same_in_any_batch(tiny, engine, name):
    for sizes in ({"b": 1, "n": 2}, {"b": 7, "n": 16}, {"b": 2, "n": 5}):
        assert engine(name)(*tiny.example(sizes, 0))[0].shape == (sizes["b"], sizes["n"], 5)
        assert not parity.rows_differ(engine(name), tiny, axis="b", sizes=sizes)


@pytest.mark.parametrize("name", ["torch int8", *EXACT, *FLOATS])
def test_inputs_are_unchanged_and_five_calls_give_one_answer(tiny, engine, name):
    given = tiny.example({"b": 4, "n": 8}, 1)
    before = [each.clone() for each in given]
    first, *others = (engine(name)(*given)[0].clone() for _ in range(5))
    assert all(torch.equal(each, first) for each in others)
    assert all(torch.equal(each, kept) for each, kept in zip(given, before, strict=True))


@pytest.mark.parametrize("name", EXACT)
def test_an_output_is_the_callers_own(tiny, engine, name):
    given, other = tiny.example({"b": 2, "n": 8}, 1), tiny.example({"b": 2, "n": 8}, 2)
    out = engine(name)(*given)[0]
    kept = out.clone()
    engine(name)(*other)
    assert torch.equal(out, kept)
    out.add_(1)


@pytest.mark.parametrize("form", ["u8u8", "u8s8", "held", "fake"])
def test_each_form_is_the_layer_itself_in_torch(tiny, form):
    given = tiny.example({"b": 4, "n": 9}, 0)
    with torch.no_grad():
        found, wanted = spelt(tiny.module, form=form)(*given), tiny.module(*given)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(each, SpeltLinear) for each in tiny.module.modules()), "the model is left as it is"
