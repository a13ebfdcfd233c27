"""Triton's DPE attention against naive in float64: in its interpreter on the CPU, and on a GPU in half precision."""

import itertools

import pytest
import torch

from ml_core.errors import InputError
from ml_core.kernels.dpe_attention import launch, naive
from ml_core.kernels.dpe_attention.kernel import Tiles
from ml_core.kernels.dpe_attention.launch import Plan
from ml_core.kernels.dpe_attention.op import _ids, dpe_attention, dpe_attention_sums
from ml_core.kernels.dpe_attention.positions import Band, LogBuckets, Masks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
on_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs CUDA")
BANDS = [None, Band(segment=16), Band(segment=10, before=1, after=0)]
MASKS = list(itertools.product([False, True], [False, True], BANDS))
SHAPES = [(2, 2, 7, 7, 8), (1, 1, 63, 63, 48), (2, 1, 33, 50, 64), (1, 1, 1, 40, 16), (1, 1, 64, 64, 16)]
SLACK = 4.0  # a kernel may be this much further off than naive in the same dtype
FLOOR = 2e-7  # relative RMS that summing in another order costs in fp32 where naive happens to be exact


def inputs(*, b=2, h=2, n=33, m=None, k=8, reach=None, seed=0, dtype=torch.float32):
    """q, k, v of the dtype and a table in fp32, all rounded to the dtype already."""
    generator = torch.Generator().manual_seed(seed)
    m = n if m is None else m
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(DEVICE, dtype)  # noqa: E731
    table = draw(h, 2 * (m if reach is None else reach) + 1).float()
    return draw(b, h, n, k), draw(b, h, m, k), draw(b, h, m, k), table


def masks(*, b, m, causal, packed, band=None, seed=1):
    """Keyword arguments; packed: texts behind each other, and some keys hidden."""
    given = {"causal": causal, "band": band}
    if packed:
        generator = torch.Generator().manual_seed(seed)
        given["segment_ids"] = torch.randint(0, 3, (b, m), generator=generator).sort(1).values.to(DEVICE)
        given["key_mask"] = (torch.rand(b, m, generator=generator) > 0.2).to(DEVICE)
    return given


def weighting(shape, function):
    return function(torch.arange(torch.Size(shape).numel(), device=DEVICE, dtype=torch.float64)).view(shape)


def truth(tensors, *, dtype=torch.float64, **given):
    """Naive's output, sums and gradients."""
    leaves = [each.detach().to(dtype, copy=True).requires_grad_() for each in tensors]
    out, sums = naive.dpe_attention_sums(*leaves, **given)
    seen = sums.isfinite()
    loss = (out.double() * weighting(out.shape, torch.sin)).sum()
    (loss + (sums.double() * weighting(sums.shape, torch.cos))[seen].sum()).backward()
    return [out.detach(), torch.where(seen, sums, 0.0).detach(), *(each.grad for each in leaves)]


def kernels(tensors, *, plan, tiles, causal=False, band=None, offset=0, buckets=None, **hidden):
    """The same from the kernels, with tiles of the test's own."""
    q, k, v, table = (each.detach() for each in tensors)
    m, scale = k.shape[2], q.shape[3] ** -0.5
    ids = _ids(q, m=m, key_mask=hidden.get("key_mask"), segment_ids=hidden.get("segment_ids"), offset=offset)
    seen_by = Masks(causal, *ids, *((0, 0, 0) if band is None else (band.segment, band.before, band.after)), offset)
    given = {"scale": scale, "buckets": buckets}
    out, sums = launch.forward(q, k, v, table, seen_by, tiles=tiles, **given)
    do = weighting(out.shape, torch.sin).to(out.dtype)
    dsums = torch.where(sums.isfinite(), weighting(sums.shape, torch.cos), 0.0).float()
    grads = launch.backward(q, k, v, table, out, sums, do, dsums, seen_by, plan=plan, **given)
    return [out, torch.where(sums.isfinite(), sums, 0.0), *grads]


def off(got, wanted):
    """Relative RMS."""
    return float((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))


def assert_as_good(got, plain, wanted):
    for name, ours, theirs, right in zip(["out", "sums", "dq", "dk", "dv", "dtable"], got, plain, wanted, strict=True):
        assert off(ours, right) <= max(SLACK * off(theirs, right), FLOOR), name


def plan_of(rows, columns, *, ordered):
    square = Tiles(min(rows, columns), min(rows, columns), 4, 1)
    return Plan(ordered=ordered, keys=Tiles(rows, columns, 4, 1), queries=Tiles(rows, columns, 4, 1), diagonals=square)


TILED = [(0, 16, 16), (1, 32, 16), (1, 16, 32), (2, 32, 32), (3, 16, 16), (4, 16, 32), (4, 32, 32)]


@pytest.mark.parametrize(("at", "rows", "columns"), TILED)
@pytest.mark.parametrize("ordered", [False, True])
def test_every_mask_and_shape_forward_and_backward(at, rows, columns, ordered):
    b, h, n, m, k = SHAPES[at]
    tensors = inputs(b=b, h=h, n=n, m=m, k=k)
    wide = [each.double() for each in tensors]
    plan = plan_of(rows, columns, ordered=ordered)
    # every combination of masks meets every tiling over the shapes; all twelve on each would take minutes
    for causal, packed, band in MASKS[at % 3 :: 3] if n > 7 else MASKS:
        given = masks(b=b, m=m, causal=causal, packed=packed, band=band) | {"offset": m - n}
        got = kernels(tensors, plan=plan, tiles=Tiles(rows, columns, 4, 1, ahead=ordered), **given)
        assert_as_good(got, truth(tensors, dtype=torch.float32, **given), truth(wide, **given))


@pytest.mark.parametrize("ordered", [False, True])
def test_through_the_public_face_with_buckets_and_a_table_that_is_shorter_than_the_text(ordered):
    tensors = inputs(b=1, n=70, k=16, reach=9)
    buckets = LogBuckets(exact=4, far=50)
    leaves = [each.clone().requires_grad_() for each in tensors]
    given = {"causal": True, "buckets": buckets}
    out, sums = dpe_attention_sums(*leaves, backend="triton", deterministic=ordered, **given)
    (
        (out.double() * weighting(out.shape, torch.sin)).sum() + (sums * weighting(sums.shape, torch.cos)).sum()
    ).backward()
    got = [out.detach(), sums.detach(), *(each.grad for each in leaves)]
    wide = [each.double() for each in tensors]
    assert_as_good(got, truth(tensors, dtype=torch.float32, **given), truth(wide, **given))


def test_inputs_that_are_views_of_one_product_are_read_where_they_lie():
    packed = torch.randn(2, 33, 6, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    q, k, v = (packed[:, :, 2 * at : 2 * at + 2].transpose(1, 2) for at in range(3))
    table = inputs(k=16)[3]
    wanted = dpe_attention(q, k, v, table, backend="naive")
    assert not q.is_contiguous()
    assert off(dpe_attention(q, k, v, table, backend="triton"), wanted.double()) < 1e-6
    columns = [each.transpose(-1, -2).contiguous().transpose(-1, -2) for each in (q, k, v)]
    assert columns[0].stride(-1) != 1
    assert off(dpe_attention(*columns, table, backend="triton"), wanted.double()) < 1e-6


@pytest.mark.parametrize("ordered", [False, True])
def test_memory_poisoned_with_nan_never_shows(ordered, monkeypatch):
    def poisoned(make):
        def made(*args, **given):
            tensor = make(*args, **given)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor.fill_(7)

        return made

    tensors = inputs(n=40, k=16)
    given = masks(b=2, m=40, causal=True, packed=True)
    wanted = truth([each.double() for each in tensors], **given)
    for place, name in ((torch, "empty_like"), (torch.Tensor, "new_empty"), (torch, "empty")):
        monkeypatch.setattr(place, name, poisoned(getattr(place, name)))
    got = kernels(tensors, plan=plan_of(16, 16, ordered=ordered), tiles=Tiles(16, 16, 4, 1), **given)
    monkeypatch.undo()
    assert max(off(ours, right) for ours, right in zip(got, wanted, strict=True)) < 1e-5


def test_a_row_without_keys_gives_zeros_minus_infinity_and_no_nan():
    q, k, v, table = (each.requires_grad_() for each in inputs(k=16))
    mask = torch.zeros(2, 33, dtype=torch.bool, device=DEVICE)
    mask[1] = True
    out, sums = dpe_attention_sums(q, k, v, table, key_mask=mask, backend="triton")
    out.sum().backward()
    assert out[0].abs().max() == 0
    assert (sums[0] == -torch.inf).all()
    assert v.grad[0].abs().max() == 0
    assert all(each.grad.isfinite().all() for each in (q, k, v, table))


def test_no_keys_and_no_batch_are_no_errors():
    q, k, v, table = (each.requires_grad_() for each in inputs(k=16))
    out = dpe_attention(q, k[:, :, :0], v[:, :, :0], table, backend="triton")
    out.sum().backward()
    assert out.abs().max() == 0
    assert table.grad.abs().max() == 0
    assert dpe_attention(q[:0], k[:0], v[:0], table, backend="triton").shape == (0, 2, 33, 16)


def test_without_a_wish_for_the_tables_gradient_none_is_computed():
    q, k, v, table = inputs(k=16)
    leaves = [each.requires_grad_() for each in (q, k, v)]
    dpe_attention(*leaves, table, backend="triton").pow(2).sum().backward()
    wanted = [each.double().detach().requires_grad_() for each in (q, k, v)]
    dpe_attention(*wanted, table.double(), backend="naive").pow(2).sum().backward()
    assert max(off(a.grad, b.grad) for a, b in zip(leaves, wanted, strict=True)) < 1e-5


def test_what_it_cannot_run_is_refused_by_name():
    q, k, v, table = inputs(k=16)
    with pytest.raises(InputError, match="q: Triton's kernel knows no torch.float64"):
        dpe_attention(q.double(), k.double(), v.double(), table, backend="triton")
    with pytest.raises(InputError, match="k: torch.float64"):
        dpe_attention(q, k.double(), v, table, backend="triton")


def test_tiles_that_have_no_block_diagonals_are_refused():
    tensors = inputs(k=16)
    plan = Plan(ordered=True, keys=Tiles(16, 16, 4, 1), queries=Tiles(16, 16, 4, 1), diagonals=Tiles(16, 32, 4, 1))
    with pytest.raises(InputError, match="16 × 32"):
        kernels(tensors, plan=plan, tiles=Tiles(16, 16, 4, 1))


HALF = [torch.float16, torch.bfloat16]
LONG = [(1, 12, 1000, 1000, 64), (2, 3, 100, 300, 48), (2, 4, 1, 257, 64), (1, 2, 2048, 2048, 128)]


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("shape", LONG)
@pytest.mark.parametrize("ordered", [False, True])
def test_on_a_gpu_in_half_precision(shape, dtype, ordered):
    b, h, n, m, k = shape
    tensors = inputs(b=b, h=h, n=n, m=m, k=k, dtype=dtype)
    for causal, packed, band in itertools.product([False, True], [False, True], [None, Band(segment=128)]):
        given = masks(b=b, m=m, causal=causal, packed=packed, band=band) | {"offset": m - n}
        wanted = truth([each.double() for each in tensors], **given)
        plain = truth([*tensors[:3], tensors[3]], dtype=dtype, **given)
        q = tensors[0]
        plan, tiles = launch.backward_plan(q, deterministic=ordered), launch.forward_tiles(q)
        assert_as_good(kernels(tensors, plan=plan, tiles=tiles, **given), plain, wanted)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("tiles", launch.FORWARD)
def test_on_a_gpu_the_bias_by_ptx_is_the_bias_by_loads_to_the_bit_forward(tiles):
    q, k, v, table = inputs(b=1, h=3, n=1000, k=64, dtype=torch.bfloat16)
    # loads need shared memory of their own, which stages would take; stages change no bit
    by_ptx, by_loads = (
        launch.forward(q, k, v, table, Masks(), scale=0.125, tiles=each)
        for each in (tiles._replace(ptx=True), tiles._replace(ptx=False, stages=1))
    )
    assert torch.equal(by_ptx[0], by_loads[0])
    assert torch.equal(by_ptx[1], by_loads[1])


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("tiles", launch.KEYS)
@pytest.mark.parametrize("ordered", [False, True])
def test_on_a_gpu_the_bias_by_ptx_is_the_bias_by_loads_backward(tiles, ordered):
    tensors = inputs(b=2, h=3, n=1000, k=64, dtype=torch.bfloat16)
    square = Tiles(64, 64, 4, 2)
    results = []
    for ptx in (True, False):
        plan = Plan(
            ordered=ordered,
            keys=tiles._replace(ptx=ptx),
            queries=square._replace(ptx=ptx),
            diagonals=square._replace(ptx=ptx),
        )
        results.append(kernels(tensors, plan=plan, tiles=Tiles(128, 64, 4, 3, ptx), causal=True))
    for name, a, b in zip(["out", "sums", "dq", "dk", "dv", "dtable"], *results, strict=True):
        # what is added by atomics comes in another order each time
        assert torch.equal(a, b) or (not ordered and name in ("dq", "dtable") and off(a, b.double()) < 1e-3), name


@pytest.mark.gpu
@on_gpu
def test_on_a_gpu_the_deterministic_mode_gives_the_same_bits_twice():
    tensors = inputs(b=2, h=3, n=1000, k=64, dtype=torch.bfloat16)
    plan, tiles = launch.backward_plan(tensors[0], deterministic=True), launch.forward_tiles(tensors[0])
    first, second = (kernels(tensors, plan=plan, tiles=tiles) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first[:5], second[:5], strict=True))
    grads = []
    for _ in range(2):
        leaves = [each.clone().requires_grad_() for each in tensors]
        dpe_attention(*leaves, deterministic=True).float().pow(2).sum().backward()
        grads.append([each.grad for each in leaves])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
