"""Few rows times an int8 weight: every path against naive in float64, what is refused, and which path is chosen."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported

from ml_core.errors import InputError
from ml_core.kernels.gemv_int8 import kernel, naive, op
from ml_core.kernels.gemv_int8.op import _check, candidates, choose, gemv_int8, quantize_rows
from ml_core.kernels.norm_qkv.paths import TABLE, PathTable, shape_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SLACK = 4.0  # a path may be this much further off than naive in the same dtype
PATHS = ["triton", "triton-sum", "triton-dot", "triton-sum-8x64w4s3", "triton-dot-16x32w4s2"]
# on the CPU 202 columns: many blocks and a tail; a thousand would only be more of the interpreter's programs
SIZES = [(1, 1), (63, 100), (100, 63), (1000, 17), (33, 1000 if DEVICE == "cuda" else 202)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Triton's interpreter multiplies bf16's bits in tl.dot, and cuts where a GPU rounds: bf16 is tested on GPUs alone
HERE = DTYPES if DEVICE == "cuda" else DTYPES[:2]


def inputs(*, m=1, d=24, c=32, bias=True, dtype=torch.float32, seed=0):
    """x, weight, scale and bias."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(DEVICE)  # noqa: E731
    weight, scale = quantize_rows(draw(c, d) * d**-0.5)
    return draw(m, d).to(dtype), weight, scale, draw(c).to(dtype) if bias else None


def exact(x, weight, scale, bias):
    return naive.gemv_int8(x.double(), weight, scale.double(), None if bias is None else bias.double())


def off(got, wanted):
    """Relative RMS."""
    return float((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))


def test_naive_is_the_formula_written_out():
    x, weight, scale, bias = inputs(m=2, d=5, c=3)
    got = exact(x, weight, scale, bias)
    for i in range(2):
        for j in range(3):
            products = [float(x[i, p]) * int(weight[j, p]) * float(scale[j]) for p in range(5)]
            assert float(got[i, j]) == pytest.approx(sum(products) + float(bias[j]), rel=1e-12)


def test_a_quantized_weight_is_within_half_a_step_and_uses_the_whole_range():
    weight = torch.randn(63, 100, generator=torch.Generator().manual_seed(1))
    weight[5] = 0
    levels, scale = quantize_rows(weight)
    assert ((levels * scale[:, None] - weight).abs() <= 0.5001 * scale[:, None]).all()
    assert (levels.abs().amax(1)[torch.arange(63) != 5] == 127).all()
    assert torch.isfinite(scale).all()
    assert (levels[5] == 0).all()


@pytest.mark.parametrize("dtype", HERE)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("m", [1, 3])
def test_a_path_is_as_near_to_the_truth_as_naive(dtype, path, size, m):
    given = inputs(m=m, d=size[0], c=size[1], dtype=dtype)
    wanted = exact(*given)
    assert off(gemv_int8(*given, path=path), wanted) <= SLACK * max(off(naive.gemv_int8(*given), wanted), 5e-8)


@pytest.mark.parametrize("dtype", HERE)
@pytest.mark.parametrize("m", [5, 16])
def test_up_to_sixteen_rows_through_the_matrix_unit(dtype, m):
    given = inputs(m=m, d=100, c=63, dtype=dtype)
    wanted = exact(*given)
    assert off(gemv_int8(*given, path="triton"), wanted) <= SLACK * max(off(naive.gemv_int8(*given), wanted), 5e-8)


@pytest.mark.parametrize("path", ["naive", *PATHS])
def test_it_is_another_function_with_another_weight_scale_or_bias(path):
    x, weight, scale, bias = inputs(m=2)
    base = gemv_int8(x, weight, scale, bias, path=path)
    assert torch.allclose(gemv_int8(x, weight, scale * 2, None, path=path), 2 * (base - bias), atol=1e-5)
    assert torch.allclose(gemv_int8(x, -weight, scale, bias, path=path), 2 * bias - base, atol=1e-5)


@pytest.mark.parametrize("path", ["naive", *PATHS])
def test_rows_that_are_not_contiguous_give_the_same(path):
    x, weight, scale, bias = inputs(m=4, d=20)
    every_second = torch.stack([x, torch.full_like(x, torch.nan)], dim=-1).flatten(-2)[..., ::2]
    wide = torch.cat([x, torch.full_like(x, torch.nan)], dim=-1)[..., :20]
    for other in (every_second, wide, x.T.contiguous().T):
        assert torch.equal(
            gemv_int8(other, weight, scale, bias, path=path), gemv_int8(x, weight, scale, bias, path=path)
        )


@pytest.mark.parametrize("path", PATHS)
def test_the_kernel_writes_every_number_and_reads_none_that_is_not_there(path):
    x, weight, scale, bias = inputs(m=3, d=20, c=35)
    poisoned = torch.full((4, 40), torch.nan, device=DEVICE)
    poisoned[:3, :20] = x
    guarded = torch.full((37,), torch.nan, device=DEVICE)
    guarded[:35] = scale
    out = torch.full((4, 35), torch.nan, device=DEVICE)
    kernel.gemv_int8(poisoned[:3, :20], weight, guarded[:35], bias, path=path, out=out[:3])
    assert torch.isfinite(out[:3]).all()
    assert out[3].isnan().all()  # nothing behind the rows is touched


@pytest.mark.parametrize("path", ["naive", *PATHS])
def test_leading_dimensions_stay_and_an_empty_batch_is_no_error(path):
    x, weight, scale, bias = inputs(m=4)
    assert gemv_int8(x.view(2, 1, 2, 24), weight, scale, bias, path=path).shape == (2, 1, 2, 32)
    assert gemv_int8(x[0], weight, scale, bias, path=path).shape == (32,)
    assert gemv_int8(x[:0], weight, scale, bias, path=path).shape == (0, 32)


def test_large_values_do_not_overflow_in_half_precision_before_the_scale():
    x = torch.full((1, 1000), 30.0, device=DEVICE, dtype=torch.float16)
    weight = torch.full((3, 1000), 127, device=DEVICE, dtype=torch.int8)
    scale = torch.full((3,), 1e-3, device=DEVICE)  # the bare sum is 3.8e6, beyond fp16's 65504
    for path in ("naive", *PATHS):
        assert torch.allclose(gemv_int8(x, weight, scale, path=path).float(), torch.tensor(3810.0), rtol=2e-3)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"x": torch.ones(1, 23)}, "weight:"),
        ({"x": torch.ones(17, 24)}, "x: 17 rows"),
        ({"x": torch.ones(1, 24, dtype=torch.int32)}, "x:"),
        ({"x": torch.ones(1, 24, requires_grad=True)}, "inference only"),
        ({"weight": torch.ones(32, 24)}, "weight:"),
        ({"weight": torch.ones(24, 32, dtype=torch.int8).T}, "contiguous"),
        ({"scale": torch.ones(31)}, "scale:"),
        ({"bias": torch.ones(3)}, "bias:"),
        ({"bias": torch.ones(32, requires_grad=True)}, "inference only"),
    ],
)
def test_what_does_not_fit_is_named(change, name):
    given = {
        "x": torch.ones(1, 24),
        "weight": torch.ones(32, 24, dtype=torch.int8),
        "scale": torch.ones(32),
        "bias": None,
    }
    _check(**given)
    with pytest.raises(InputError, match=name):
        _check(**(given | change))


def test_no_gradient_is_asked_for_under_no_grad():
    x, weight, scale, bias = inputs()
    with torch.no_grad():
        assert not gemv_int8(x.requires_grad_(), weight, scale, bias).requires_grad


@pytest.mark.parametrize("path", ["cublas", "triton-1x2", "triton-sum-4x"])
def test_an_unknown_path_is_named(path):
    with pytest.raises(InputError, match=f"path: '{path}'"):
        gemv_int8(*inputs(), path=path)


def test_a_path_that_cannot_run_is_refused_and_not_replaced():
    with pytest.raises(InputError, match="float64"):
        gemv_int8(*inputs(dtype=torch.float64), path="triton")
    with pytest.raises(InputError, match="up to 4 rows, not 5"):
        gemv_int8(*inputs(m=5), path="triton-sum")


def test_without_a_measurement_the_choice_says_so():
    choice = choose(torch.ones(1, 17, device=DEVICE), c=51)
    assert choice.path.startswith("triton-sum" if DEVICE == "cuda" else "naive")
    assert "nothing measured" in str(choice)


def test_the_fastest_measured_path_is_taken(monkeypatch):
    x = torch.ones(1, 24, device=DEVICE)
    other = kernel.CANDIDATES[0].path
    monkeypatch.setattr(TABLE, "rows", {shape_of(x, op="gemv_int8", c=9, form="none"): {"naive": 2.0, other: 1.0}})
    monkeypatch.setattr(TABLE, "_chosen", {})
    assert choose(x, c=9).path == (other if DEVICE == "cuda" else "naive")
    assert "m 1" in choose(x, c=9).why


def test_what_is_measured_is_heeded_and_what_is_wrong_is_left_out(monkeypatch):
    given, table = inputs(m=2), PathTable()
    wrong, right = kernel.CANDIDATES[1].path, kernel.CANDIDATES[4].path
    monkeypatch.setattr(op, "candidates", lambda x: ["naive", wrong, right])
    honest = op._operator
    monkeypatch.setattr(op, "_operator", lambda *args: honest(*args) * (1.1 if args[-1] == wrong else 1))
    said = op.measure(*given, clock=lambda run: float(run().shape[0]), table=table)
    assert set(said["ms"]) == {"naive", right}
    assert set(said["wrong"]) == {wrong}
    assert table.rows == {shape_of(given[0], op="gemv_int8", c=32, form="bias"): {"naive": 2.0, right: 2.0}}


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs CUDA")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(4096, 4096), (4096, 11008), (11008, 4096), (576, 1536), (1000, 63)])
@pytest.mark.parametrize("m", [1, 2, 16])
def test_on_a_gpu_every_tiling_is_right(dtype, size, m):
    given = inputs(m=m, d=size[0], c=size[1], dtype=dtype)
    wanted = exact(*given)
    allowed = SLACK * max(off(naive.gemv_int8(*given), wanted), 5e-8)
    for path in candidates(given[0]):
        assert off(gemv_int8(*given, path=path), wanted) <= allowed, path


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs CUDA")
def test_on_a_gpu_it_is_captured_in_a_graph():
    x, weight, scale, bias = inputs(m=1, d=4096, c=4096, dtype=torch.bfloat16)
    gemv_int8(x, weight, scale, bias)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = gemv_int8(x, weight, scale, bias)
    x.mul_(2)
    graph.replay()
    assert torch.equal(out, gemv_int8(x, weight, scale, bias))
