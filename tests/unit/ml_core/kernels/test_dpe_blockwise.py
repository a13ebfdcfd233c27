"""Blockwise DPE attention against naive in float64: outputs, sums, gradients; and as an operator of torch."""

import itertools

import pytest
import torch

from ml_core.errors import InputError
from ml_core.kernels.dpe_attention import blockwise
from ml_core.kernels.dpe_attention.op import dpe_attention, dpe_attention_sums
from ml_core.kernels.dpe_attention.positions import Band, LogBuckets

MASKS = list(itertools.product([False, True], [False, True], [None, Band(segment=10, before=1, after=0)]))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", 16)


def inputs(*, b=2, h=2, n=33, m=None, k=8, reach=20, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    m = n if m is None else m
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    return draw(b, h, n, k), draw(b, h, m, k), draw(b, h, m, k), draw(h, 2 * reach + 1)


def masks(*, b, m, causal, packed, band, seed=1):
    """Keyword arguments; packed: texts behind each other, and some keys hidden."""
    given = {"causal": causal, "band": band}
    if packed:
        generator = torch.Generator().manual_seed(seed)
        given["segment_ids"] = torch.randint(0, 3, (b, m), generator=generator).sort(1).values
        given["key_mask"] = torch.rand(b, m, generator=generator) > 0.2
    return given


def results(tensors, *, backend, **given):
    """Output, sums (0 where a row sees nothing), and gradients of a fixed weighting of both."""
    leaves = [each.clone().requires_grad_() for each in tensors]
    out, sums = dpe_attention_sums(*leaves, backend=backend, **given)
    seen = sums.isfinite()
    weights = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape)
    more = torch.cos(torch.arange(sums.numel(), dtype=torch.float64)).view(sums.shape)
    ((out.double() * weights).sum() + (sums.double() * more)[seen].sum()).backward()
    return [out.detach(), torch.where(seen, sums, 0.0).detach(), *(each.grad for each in leaves)]


def off(got, wanted):
    """Relative RMS."""
    return float((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))


@pytest.mark.parametrize("shape", [(2, 2, 7, 7, 8), (1, 2, 63, 63, 48), (2, 1, 33, 50, 16), (1, 1, 1, 40, 64)])
@pytest.mark.parametrize(("causal", "packed", "band"), MASKS)
@pytest.mark.parametrize("buckets", [None, LogBuckets(exact=3, far=30)])
def test_it_equals_naive_forward_and_backward(shape, causal, packed, band, buckets):
    b, h, n, m, k = shape
    tensors = inputs(b=b, h=h, n=n, m=m, k=k)
    given = masks(b=b, m=m, causal=causal, packed=packed, band=band) | {"offset": m - n, "buckets": buckets}
    wanted, got = (results(tensors, backend=backend, **given) for backend in ("naive", "blockwise"))
    assert max(off(ours, truth) for ours, truth in zip(got, wanted, strict=True)) <= 1e-12


def test_a_thousand_tokens_in_float32_are_as_good_as_naives():
    tensors = inputs(b=1, n=1000, k=48, reach=999)
    wanted = results(tensors, backend="naive", causal=True)
    small = [each.float() for each in tensors]
    plain, got = (results(small, backend=backend, causal=True) for backend in ("naive", "blockwise"))
    for ours, theirs, truth in zip(got, plain, wanted, strict=True):
        assert off(ours, truth) <= 2 * off(theirs, truth)


def test_gradients_are_right_by_finite_differences():
    tensors = [each.requires_grad_() for each in inputs(b=1, h=2, n=18, m=20, k=2, reach=4)]
    mask = torch.ones(1, 20, dtype=torch.bool)
    mask[0, 3] = False
    given = {"causal": True, "key_mask": mask, "offset": 2, "backend": "blockwise"}
    assert torch.autograd.gradcheck(lambda *x: dpe_attention_sums(*x, **given), tensors)


def test_a_row_without_keys_gives_zeros_and_gradients_without_nan():
    q, k, v, table = (each.requires_grad_() for each in inputs())
    mask = torch.zeros(2, 33, dtype=torch.bool)
    mask[1] = True
    out = dpe_attention(q, k, v, table, key_mask=mask, backend="blockwise")
    out.sum().backward()
    assert out[0].abs().max() == 0
    assert v.grad[0].abs().max() == 0
    assert all(each.grad.isfinite().all() for each in (q, k, v, table))


def test_no_keys_at_all_and_no_batch_are_no_errors():
    q, k, v, table = inputs()
    assert dpe_attention(q, k[:, :, :0], v[:, :, :0], table, backend="blockwise").abs().max() == 0
    assert dpe_attention(q[:0], k[:0], v[:0], table, backend="blockwise").shape == (0, 2, 33, 8)


def test_memory_poisoned_with_nan_never_shows(monkeypatch):
    real = torch.empty_like

    def poisoned(*args, **given):
        made = real(*args, **given)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    tensors = inputs(n=40)
    wanted = results(tensors, backend="naive", causal=True)
    monkeypatch.setattr(torch, "empty_like", poisoned)
    got = results(tensors, backend="blockwise", causal=True)
    assert max(off(ours, truth) for ours, truth in zip(got, wanted, strict=True)) <= 1e-12


@pytest.mark.parametrize("backward", [False, True])
def test_its_memory_does_not_grow_with_the_square(backward, monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", 128)
    peaks = [_peak(n, backward=backward) for n in (1024, 4096)]
    assert peaks[1] <= 5 * peaks[0], peaks  # four times the tokens; scores written out would be 16 times


def _peak(n, *, backward):
    """Live bytes of tensors at most during a call, inputs and result included."""
    live, most = 0, 0
    q, k, v, table = (
        each.requires_grad_(backward) for each in inputs(b=1, h=1, n=n, k=8, reach=n - 1, dtype=torch.float32)
    )
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        out = dpe_attention(q, k, v, table, causal=True, backend="blockwise")
        if backward:
            out.sum().backward()
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


def test_it_goes_through_export():
    class Attention(torch.nn.Module):
        def forward(self, q, k, v, table):
            return dpe_attention(q, k, v, table, backend="blockwise")

    tensors = tuple(each.float() for each in inputs())
    exported = torch.export.export(Attention(), tensors)
    assert any("assay.dpe_forward" in str(node.target) for node in exported.graph.nodes)
    assert torch.allclose(exported.module()(*tensors), Attention()(*tensors))


def test_the_operator_keeps_torchs_own_rules():
    q, k, v, table = (each.requires_grad_() for each in inputs(n=20))
    from ml_core.kernels.dpe_attention.library import dpe_forward

    ids = torch.zeros(2, 20, dtype=torch.int32)
    args = (q, k, v, table, ids, ids, True, 0, 0, 0, 0, 3, 30, 0.3, "blockwise", False)
    torch.library.opcheck(dpe_forward, args)


def test_autocast_computes_in_the_lower_precision():
    q, k, v, table = (each.float() for each in inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = dpe_attention(q, k, v, table, backend="blockwise")
    assert out.dtype == torch.bfloat16
    assert off(out, dpe_attention(q, k, v, table, backend="naive").double()) < 0.02


def test_the_tables_gradient_has_one_order_where_that_is_asked_for():
    tensors = inputs(n=60, reach=5)
    wanted = results(tensors, backend="naive", buckets=LogBuckets(exact=2, far=40))[-1]
    got = results(tensors, backend="blockwise", buckets=LogBuckets(exact=2, far=40), deterministic=True)[-1]
    assert off(got, wanted) <= 1e-12


def test_mixed_dtypes_are_refused_by_name():
    q, k, v, table = inputs()
    with pytest.raises(InputError, match="v: torch.float32"):
        dpe_attention(q, k, v.float(), table, backend="blockwise")
