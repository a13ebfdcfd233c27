"""Norm, MLP and residual: every path against naive in float64, forward and backward."""

import pytest
import torch

from ml_core.errors import InputError
from ml_core.kernels.norm_mlp import kernel, naive
from ml_core.kernels.norm_mlp.op import (
    _check_down,
    _check_up,
    choose_down,
    choose_up,
    linear_residual,
    norm_mlp,
    norm_up,
    torch_activated,
)
from ml_core.kernels.norm_qkv.kernel import CANDIDATES
from ml_core.kernels.norm_qkv.naive import Norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SLACK = 4.0  # a path may be this much further off than naive in the same dtype
SHAPES = [(1, 1, 48, 64), (1, 63, 100, 40), (2, 25, 33, 72)]


def draws(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).mul(shape[-1] ** -0.5 if len(shape) == 2 else 1.0)
        for shape in shapes
    ]


def pairs(tensors):
    """In fp32 on the device, and the same numbers in float64."""
    single = [each.to(DEVICE, torch.float32) for each in tensors]
    return single, [each.double() for each in single]


def off(got, wanted):
    return float((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))


def graded(function, tensors):
    leaves = [each.clone().requires_grad_() for each in tensors]
    out = function(*leaves)
    weights = torch.sin(torch.arange(out.numel(), device=out.device, dtype=torch.float64)).view(out.shape).to(out.dtype)
    (out * weights).sum().backward()
    return [out.detach(), *(each.grad for each in leaves)]


def agree(function, tensors, *, path):
    """Outputs and gradients of `path` are as near to naive's in float64 as naive's in fp32 are."""
    single, double = pairs(tensors)
    truth = graded(lambda *t: function(*t, "naive"), double)
    plain = graded(lambda *t: function(*t, "naive"), single)
    got = graded(lambda *t: function(*t, path), single)
    for mine, theirs, wanted in zip(got, plain, truth, strict=True):
        assert off(mine, wanted) <= SLACK * max(off(theirs, wanted), 1e-7)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
def test_the_activations_are_torchs_own(activation):
    x = torch.linspace(-9, 9, 1001, dtype=torch.float64)
    assert torch.allclose(naive.activated(x, activation), torch_activated(x, activation), atol=1e-12)


def test_erf_and_tanh_are_different_functions_and_stay_so():
    x = torch.linspace(-4, 4, 101)[None, None]
    weight = torch.eye(101)
    for path in ("naive", "torch", "triton"):
        erf, tanh = (norm_up(x, weight, activation=each, path=path) for each in ("gelu", "gelu_tanh"))
        assert 1e-4 < float((erf - tanh).abs().max()) < 1e-3
        assert torch.allclose(erf, torch.nn.functional.gelu(x), atol=1e-6)
        assert torch.allclose(tanh, torch.nn.functional.gelu(x, approximate="tanh"), atol=1e-6)


@pytest.mark.parametrize("path", ["torch", "triton", "triton-16x32x32w4s2"])
@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize(("activation", "gated"), [("gelu", False), ("gelu_tanh", False), ("silu", True)])
@pytest.mark.parametrize("shape", SHAPES)
def test_norm_and_up_are_as_near_to_the_truth_as_naive(path, kind, activation, gated, shape):
    b, n, d, f = shape

    def function(x, w, bias, nw, *rest):
        *nb, path = rest
        norm = Norm(kind=kind, eps=1e-5, weight=nw, bias=nb[0] if nb else None)
        return norm_up(x, w, bias, activation=activation, gated=gated, norm=norm, path=path)

    c = 2 * f if gated else f
    own = [(d,), (d,)] if kind == "layer" else [(d,)]
    agree(function, draws((b, n, d), (c, d), (c,), *own), path=path)


@pytest.mark.parametrize("path", ["torch", "triton", "triton-16x32x32w4s2"])
@pytest.mark.parametrize("after", ["layer", "rms", None])
@pytest.mark.parametrize("shape", SHAPES)
def test_down_and_residual_are_as_near_to_the_truth_as_naive(path, after, shape):
    b, n, d, f = shape
    if after is None:
        agree(
            lambda x, w, bias, r, path: linear_residual(x, w, bias, r, path=path),
            draws((b, n, f), (d, f), (d,), (b, n, d)),
            path=path,
        )
        return

    def function(x, w, bias, r, nw, *rest):
        *nb, path = rest
        norm = Norm(kind=after, eps=1e-5, weight=nw, bias=nb[0] if nb else None)
        return linear_residual(x, w, bias, r, after=norm, path=path)

    own = [(d,), (d,)] if after == "layer" else [(d,)]
    agree(function, draws((b, n, f), (d, f), (d,), (b, n, d), *own), path=path)


@pytest.mark.parametrize("norm_first", [True, False])
def test_the_whole_is_the_sum_of_its_parts(norm_first):
    x, up, ub, down, db, nw, nb = draws((2, 7, 20), (48, 20), (48,), (20, 48), (20,), (20,), (20,))
    norm = Norm(kind="layer", eps=1e-5, weight=nw, bias=nb)
    given = {"norm": norm} if norm_first else {"after": norm}
    layer = lambda y: torch.nn.functional.layer_norm(y, (20,), nw, nb)  # noqa: E731
    y = torch.nn.functional.gelu((layer(x) if norm_first else x) @ up.T + ub) @ down.T + db + x
    wanted = y if norm_first else layer(y)
    got = norm_mlp(x, (up, ub), (down, db), activation="gelu", path="naive", **given)
    assert torch.allclose(got, wanted, atol=1e-12)
    assert torch.allclose(norm_mlp(x, (up, ub), (down, db), activation="gelu", **given), wanted, atol=1e-12)


@pytest.mark.parametrize("path", ["torch", "triton"])
def test_rows_that_are_not_contiguous_give_the_same(path):
    x, w, bias, r = pairs(draws((3, 5, 24), (40, 24), (40,), (3, 5, 40)))[0]
    loose = [each.transpose(0, 1).contiguous().transpose(0, 1) for each in (x, r)]
    wide = torch.cat([x, torch.full_like(x, torch.nan)], dim=-1)[..., :24]
    wanted = linear_residual(x, w, bias, r, path="naive")
    assert torch.allclose(linear_residual(loose[0], w, bias, loose[1], path=path), wanted, atol=1e-5)
    assert torch.allclose(linear_residual(wide, w.T.contiguous().T, bias, r, path=path), wanted, atol=1e-5)
    up = norm_up(x, w, bias, activation="gelu", path="naive")
    assert torch.allclose(norm_up(loose[0], w, bias, activation="gelu", path=path), up, atol=1e-5)


def test_the_kernels_write_every_number_and_read_none_that_is_not_there():
    x, w, bias, r = pairs(draws((1, 5, 20), (36, 20), (36,), (1, 5, 36)))[0]
    poisoned = torch.full((1, 9, 50), torch.nan, device=DEVICE)
    poisoned[:, :5, :20] = x
    norm = Norm(kind="rms", eps=1e-5)
    nan = lambda f: torch.full((1, 5, f), torch.nan, device=DEVICE)  # noqa: E731
    given = {"activation": "silu", "norm": norm, "path": "triton"}
    assert torch.isfinite(kernel.norm_up(poisoned[:, :5, :20], w, bias, gated=True, out=nan(18), **given)).all()
    assert torch.isfinite(kernel.linear_residual(poisoned[:, :5, :20], w, bias, r, path="triton", out=nan(36))).all()
    assert torch.isfinite(kernel.add_norm(r, r, after=norm, out=nan(36))).all()


@pytest.mark.parametrize("path", ["torch", "triton"])
def test_an_empty_batch_is_no_error(path):
    x, w, r = pairs(draws((0, 5, 24), (40, 24), (0, 5, 40)))[0]
    assert norm_up(x, w, activation="silu", gated=True, path=path).shape == (0, 5, 20)
    assert linear_residual(x, w, None, r, path=path).shape == (0, 5, 40)
    after = Norm(kind="layer", eps=1e-5)
    assert linear_residual(x, w, None, r, after=after, path=path).shape == (0, 5, 40)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tiles", CANDIDATES)
def test_on_a_gpu_every_tiling_is_right_in_half_precision(dtype, tiles):
    x, up, ub, down, db = (
        each.to(dtype) for each in pairs(draws((2, 100, 768), (3072, 768), (3072,), (768, 3072), (768,)))[0]
    )
    norm = Norm(kind="layer", eps=1e-5)
    for activation in ("gelu", "gelu_tanh"):
        run = lambda t, path, a=activation: norm_mlp(t[0], t[1:3], t[3:], activation=a, norm=norm, path=path)  # noqa: E731
        tensors = (x, up, ub, down, db)
        wanted = run(tuple(each.double() for each in tensors), "naive")
        assert off(run(tensors, tiles.path), wanted) <= SLACK * off(run(tensors, "naive"), wanted)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs CUDA")
def test_on_a_gpu_cublaslts_epilogue_is_the_tanh_form():
    x, w, bias = (each.half() for each in pairs(draws((2, 64, 768), (3072, 768), (3072,)))[0])
    with torch.no_grad():
        got = norm_up(x, w, bias, activation="gelu_tanh", path="lt")
        wanted = norm_up(x.double(), w.double(), bias.double(), activation="gelu_tanh", path="naive")
        assert off(got, wanted) <= SLACK * off(norm_up(x, w, bias, activation="gelu_tanh", path="naive"), wanted)


def test_cublaslts_epilogue_is_refused_where_it_is_another_function():
    x, w, bias = draws((1, 3, 8), (8, 8), (8,))
    for activation in ("gelu", "gelu_tanh"):  # erf anywhere; the tanh form on a CPU, where torch computes erf
        with pytest.raises(InputError, match="lt is for"):
            norm_up(x, w, bias, activation=activation, path="lt")


@pytest.mark.parametrize(
    ("check", "given", "name"),
    [
        (_check_up, {"weight": torch.ones(8, 5), "bias": None, "gated": False}, "weight:"),
        (_check_up, {"weight": torch.ones(7, 6), "bias": None, "gated": True}, "weight:"),
        (_check_up, {"weight": torch.ones(8, 6), "bias": torch.ones(7), "gated": False}, "bias:"),
        (_check_down, {"weight": torch.ones(8, 6), "bias": None, "residual": torch.ones(1, 2, 6)}, "residual:"),
        (_check_down, {"weight": torch.ones(6, 6), "bias": torch.ones(5), "residual": torch.ones(1, 2, 6)}, "bias:"),
        (_check_down, {"weight": torch.ones(6, 5), "bias": None, "residual": torch.ones(1, 2, 6)}, "weight:"),
    ],
)
def test_a_wrong_shape_is_named(check, given, name):
    with pytest.raises(InputError, match=name):
        check(torch.ones(1, 2, 6), **given)


def test_an_unknown_path_is_named():
    x = torch.ones(1, 2, 6)
    with pytest.raises(InputError, match="path: 'nix'"):
        norm_up(x, torch.ones(6, 6), activation="gelu", path="nix")
    with pytest.raises(InputError, match="path: 'lt'"):
        linear_residual(x, torch.ones(6, 6), None, x, path="lt")


def test_the_choice_says_its_reason():
    x, w = torch.ones(1, 2, 6, device=DEVICE), torch.ones(6, 6, device=DEVICE)
    up = choose_up(x, weight=w, bias=None, activation="gelu", gated=False, norm=None)
    down = choose_down(x, weight=w, after=None)
    assert (up.path, down.path) == ("torch", "torch")
    assert all("nothing measured" in choice.why for choice in (up, down))
