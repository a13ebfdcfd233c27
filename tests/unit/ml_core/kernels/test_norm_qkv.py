"""Norm and projections: every path against naive in float64, forward and backward, and which path is chosen."""

import pytest
import torch

from ml_core.errors import InputError
from ml_core.kernels.norm_qkv import kernel, naive
from ml_core.kernels.norm_qkv.naive import Norm
from ml_core.kernels.norm_qkv.op import _check, choose, norm_qkv
from ml_core.kernels.norm_qkv.paths import PathTable, measure, shape_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SLACK = 4.0  # a path may be this much further off than naive in the same dtype
PATHS = ["packed", "separate", "triton", "triton-16x32x32w4s2"]
SHAPES = [(1, 1, 48, 1, 1, 48), (1, 63, 100, 3, 1, 48), (2, 25, 33, 2, 2, 64), (1, 1000, 17, 1, 1, 16)]
# but a thousand rows in the smallest tiles: the rule's own tiles for so many rows are what that shape is about
PATHS_OF_SHAPES = [(path, shape) for shape in SHAPES for path in PATHS if shape[1] < 1000 or "x" not in path]


def inputs(*, b=2, n=7, d=24, heads=2, kv_heads=2, k=16, kind="layer", bias=True, dtype=torch.float64, seed=0):
    """x, weight, bias and the norm's weight and bias."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)  # noqa: E731
    c = (heads + 2 * kv_heads) * k
    x = draw(b, n, d) * 2 + 1
    return (
        x,
        draw(c, d) * d**-0.5,
        draw(c) if bias else None,
        draw(d) if kind else None,
        draw(d) if kind == "layer" else None,
    )


def call(x, w, b, nw, nb, *, kind, heads, kv_heads, path):
    norm = Norm(kind=kind, eps=1e-5, weight=nw, bias=nb) if kind else None
    return torch.cat(norm_qkv(x, w, b, heads=heads, kv_heads=kv_heads, norm=norm, path=path), dim=1)


def off(got, wanted):
    """Relative RMS."""
    return float((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))


def with_gradients(tensors, **given):
    """The output, and the gradients of every input, of a fixed weighting of it."""
    leaves = [None if each is None else each.clone().requires_grad_() for each in tensors]
    out = call(*leaves, **given)
    weights = torch.sin(torch.arange(out.numel(), device=out.device, dtype=torch.float64)).view(out.shape).to(out.dtype)
    (out * weights).sum().backward()
    return out.detach(), [each.grad for each in leaves if each is not None]


@pytest.mark.parametrize("kind", ["layer", "rms", None])
def test_naive_is_the_formula_written_out(kind):
    x, w, b, nw, nb = inputs(b=1, n=2, d=5, heads=2, kv_heads=1, k=3, kind=kind)
    norm = Norm(kind=kind, eps=1e-5, weight=nw, bias=nb) if kind else None
    q, k, v = naive.norm_qkv(x, w, b, heads=2, kv_heads=1, norm=norm)
    for i in range(2):
        row = x[0, i]
        if kind == "layer":
            row = (row - row.mean()) / (row.var(unbiased=False) + 1e-5).sqrt() * nw + nb
        if kind == "rms":
            row = row / ((row**2).sum() / 5 + 1e-5).sqrt() * nw
        y = torch.stack([w[j] @ row + b[j] for j in range(12)])
        for place, got in enumerate((q[0, 0, i], q[0, 1, i], k[0, 0, i], v[0, 0, i])):
            assert torch.allclose(got, y[3 * place : 3 * place + 3], atol=1e-12)


def test_naive_has_right_gradients():
    x, w, b, nw, nb = (each.requires_grad_() for each in inputs(b=1, n=2, d=3, heads=1, kv_heads=1, k=2))
    given = {"kind": "layer", "heads": 1, "kv_heads": 1, "path": "naive"}
    assert torch.autograd.gradcheck(lambda *tensors: call(*tensors, **given), (x, w, b, nw, nb))


@pytest.mark.parametrize("kind", ["layer", "rms", None])
@pytest.mark.parametrize(("path", "shape"), PATHS_OF_SHAPES)
def test_a_path_is_as_near_to_the_truth_as_naive_forward_and_backward(path, kind, shape):
    b, n, d, heads, kv_heads, k = shape
    exact = inputs(b=b, n=n, d=d, heads=heads, kv_heads=kv_heads, k=k, kind=kind)
    rounded = [None if each is None else each.float() for each in exact]
    exact = [None if each is None else each.double() for each in rounded]
    given = {"kind": kind, "heads": heads, "kv_heads": kv_heads}
    wanted, wanted_gradients = with_gradients(exact, path="naive", **given)
    plain, plain_gradients = with_gradients(rounded, path="naive", **given)
    got, gradients = with_gradients(rounded, path=path, **given)
    assert off(got, wanted) <= SLACK * max(off(plain, wanted), 5e-8)
    # gradients of weights are sums over rows, which a machine may take in one chain: √rows roundings
    chain = 2**-24 * (b * n) ** 0.5
    for mine, theirs, truth in zip(gradients, plain_gradients, wanted_gradients, strict=True):
        assert off(mine, truth) <= max(SLACK * max(off(theirs, truth), 1e-7), chain)


@pytest.mark.parametrize("path", PATHS)
def test_rows_that_are_not_contiguous_give_the_same(path):
    exact = inputs(n=9)
    given = {"kind": "layer", "heads": 2, "kv_heads": 2, "path": path}
    x, *rest = (each.float() for each in exact)
    loose = x.transpose(0, 1).contiguous().transpose(0, 1)
    every_second = torch.stack([x, torch.full_like(x, torch.nan)], dim=-1).flatten(-2)[..., ::2]
    wide = torch.cat([x, torch.full_like(x, torch.nan)], dim=-1)[..., : x.shape[-1]]
    weight = rest[0].T.contiguous().T
    for other in (loose, every_second, wide):
        assert torch.allclose(call(other, weight, *rest[1:], **given), call(x, *rest, **given), atol=1e-5)


def test_the_kernel_writes_every_number_and_reads_none_that_is_not_there():
    x, w, b, nw, nb = (each.float() for each in inputs(b=2, n=5, d=20, k=16))
    poisoned = torch.full((3, 5, 40), torch.nan, device=DEVICE)
    poisoned[:2, :, :20] = x
    out = torch.full((2, 6, 5, 16), torch.nan, device=DEVICE)
    norm = Norm(kind="layer", eps=1e-5, weight=nw, bias=nb)
    kernel.norm_qkv(poisoned[:2, :, :20], w, b, head_size=16, norm=norm, path="triton", out=out)
    assert torch.isfinite(out).all()


def test_a_row_far_from_zero_keeps_its_variance():
    x, w, b, nw, nb = inputs(n=3, d=64)
    x = (x * 1e-2 + 100).float()
    rest = [each.float() for each in (w, b, nw, nb)]
    given = {"kind": "layer", "heads": 2, "kv_heads": 2}
    wanted = call(*(each.double() for each in (x, *rest)), path="naive", **given)
    for path in ("packed", "triton"):
        assert off(call(x, *rest, path=path, **given), wanted) < 2e-3  # the input's own rounding is 4e-6 of 100


@pytest.mark.parametrize("path", PATHS)
def test_an_empty_batch_is_no_error(path):
    x, *rest = (each.float() for each in inputs())
    assert call(x[:0], *rest, kind="layer", heads=2, kv_heads=2, path=path).shape == (0, 6, 7, 16)


@pytest.mark.parametrize("bias", [True, False])
def test_without_norm_weights_or_bias(bias):
    x, w, b, _, _ = inputs(bias=bias)
    given = {"kind": "layer", "heads": 2, "kv_heads": 2}
    wanted = call(x, w, b, None, None, path="naive", **given)
    single = [None if each is None else each.float() for each in (x, w, b)]
    assert off(call(*single, None, None, path="triton", **given), wanted) < 1e-6


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tiles", kernel.CANDIDATES)
def test_on_a_gpu_every_tiling_is_right_in_half_precision(dtype, tiles):
    given = {"kind": "layer", "heads": 12, "kv_heads": 12}
    rounded = [each.to(dtype) for each in inputs(b=2, n=100, d=768, heads=12, kv_heads=12, k=64)]
    wanted = call(*(each.double() for each in rounded), path="naive", **given)
    plain = call(*rounded, path="naive", **given)
    assert off(call(*rounded, path=tiles.path, **given), wanted) <= SLACK * off(plain, wanted)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"weight": torch.ones(96, 23)}, "weight:"),
        ({"weight": torch.ones(95, 24)}, "weight:"),
        ({"bias": torch.ones(3)}, "bias:"),
        ({"kv_heads": 3}, "kv_heads:"),
        ({"x": torch.ones(7, 24)}, "x:"),
    ],
)
def test_a_wrong_shape_is_named(change, name):
    given = {"x": torch.ones(2, 7, 24), "weight": torch.ones(96, 24), "bias": None, "heads": 2, "kv_heads": 2}
    with pytest.raises(InputError, match=name):
        _check(**(given | change))


@pytest.mark.parametrize("path", ["cutlass", "triton-1x2"])
def test_an_unknown_path_is_named(path):
    with pytest.raises(InputError, match=f"path: '{path}'"):
        norm_qkv(torch.ones(2, 7, 24), torch.ones(96, 24), heads=2, path=path)


def test_a_norm_that_does_not_fit_is_named():
    for norm in (Norm(kind="rms", eps=1e-5, bias=torch.ones(24)), Norm(kind="layer", eps=1e-5, weight=torch.ones(23))):
        with pytest.raises(InputError, match="norm:"):
            norm_qkv(torch.ones(2, 7, 24), torch.ones(96, 24), heads=2, norm=norm)


def test_a_path_that_cannot_run_is_refused_and_not_replaced():
    x, w, b, _, _ = inputs()
    with pytest.raises(InputError, match="float64"):
        norm_qkv(x, w, b, heads=2, path="triton")
    with pytest.raises(InputError, match="one dtype"):
        norm_qkv(x.float(), w, b, heads=2, path="triton")


def test_without_a_measurement_the_choice_says_so():
    choice = choose(torch.ones(1, 3, 17, device=DEVICE), c=51, norm=None)
    assert choice.path == "packed"
    assert "nothing measured" in str(choice)


def test_the_fastest_measured_path_is_taken_and_the_reason_given():
    x = torch.ones(1, 100, 24)
    shape = shape_of(x, op="norm_qkv", c=96, form="layer")
    table = PathTable({shape: {"packed": 2.0, "separate": 1.0, "triton": 0.1}})
    choice = table.choose(shape, candidates=["packed", "separate"], otherwise="packed")
    assert (choice.path, choice.ms) == ("separate", {"packed": 2.0, "separate": 1.0})
    assert "m 100: 1 ms" in choice.why
    near = table.choose(shape_of(x[:, :60], op="norm_qkv", c=96, form="layer"), candidates=["packed"], otherwise="x")
    assert "m 100" in near.why
    far = table.choose(
        shape_of(x[:, :20], op="norm_qkv", c=96, form="layer"), candidates=["packed"], otherwise="packed"
    )
    assert "nothing measured" in far.why
    assert [choice.path for choice in table.chosen()] == ["separate", "packed", "packed"]


def test_a_table_survives_its_file(tmp_path):
    shape = shape_of(torch.ones(1, 2, 3), op="norm_qkv", c=9, form="rms")
    table = PathTable({shape: {"packed": 2.0}})
    table.save(tmp_path / "measured.json")
    assert PathTable.load(tmp_path / "measured.json").rows == table.rows
    (tmp_path / "measured.json").write_text('[{"op": 1}]')
    with pytest.raises(InputError, match="no table"):
        PathTable.load(tmp_path / "measured.json")


def test_a_path_that_is_wrong_is_never_put_into_the_table():
    shape, table = shape_of(torch.ones(1, 2, 3), op="norm_qkv", c=9, form="none"), PathTable()
    truth = torch.ones(4, dtype=torch.float64)
    runs = {"right": lambda: truth.float(), "wrong": lambda: truth * 1.1}
    said = measure(shape, runs, truth=truth, clock=lambda run: 1.0, tolerance=1e-3, table=table)
    assert (list(table.rows[shape]), list(said["wrong"])) == (["right"], ["wrong"])
