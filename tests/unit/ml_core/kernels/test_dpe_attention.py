"""DPE attention against its formula, written out with loops, in float64."""

import pytest
import torch

from ml_core.errors import InputError
from ml_core.kernels.dpe_attention import naive
from ml_core.kernels.dpe_attention.op import WRITTEN_OUT, choose, dpe_attention, dpe_attention_sums, rule
from ml_core.kernels.dpe_attention.positions import Band, LogBuckets, table_entries


def inputs(*, b=2, h=3, n=7, m=None, k=8, reach=None, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    m = m or n
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype)  # noqa: E731
    return draw(b, h, n, k), draw(b, h, m, k), draw(b, h, m, k), draw(h, 2 * (reach or m) - 1)


def by_hand(q, k, v, table, *, visible, offset=0):
    """One number at a time, as the equation is printed."""
    b, h, n, size = q.shape
    reach = (table.shape[1] + 1) // 2
    out = torch.zeros_like(q)
    for bi in range(b):
        for hi in range(h):
            for i in range(n):
                keys = [j for j in range(k.shape[2]) if visible(bi, i + offset, j)]
                if not keys:
                    continue
                distance = [max(-(reach - 1), min(reach - 1, i + offset - j)) for j in keys]
                scores = torch.stack([q[bi, hi, i] @ k[bi, hi, j] / size**0.5 for j in keys])
                scores = scores + torch.stack([table[hi, d + reach - 1] for d in distance])
                out[bi, hi, i] = torch.exp(scores) / torch.exp(scores).sum() @ v[bi, hi, keys]
    return out


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
@pytest.mark.parametrize(("n", "k"), [(1, 48), (7, 64), (33, 48)])
@pytest.mark.parametrize("causal", [False, True])
def test_it_equals_the_formula_written_out(backend, n, k, causal):
    q, key, v, table = inputs(b=1, h=2, n=n, k=k)
    expected = by_hand(q, key, v, table, visible=lambda b, i, j: j <= i or not causal)
    assert torch.allclose(dpe_attention(q, key, v, table, causal=causal, backend=backend), expected, atol=1e-12)


@pytest.mark.parametrize("n", [1, 63, 100])
@pytest.mark.parametrize("k", [48, 64])
def test_sdpa_agrees_with_naive_at_sizes_that_hurt(n, k):
    q, key, v, table = inputs(n=n, k=k)
    mask = torch.rand(2, n, generator=torch.Generator().manual_seed(1)) > 0.3
    given = {"causal": True, "key_mask": mask}
    a, b = (dpe_attention(q, key, v, table, backend=backend, **given) for backend in ("naive", "sdpa"))
    assert torch.allclose(a, b, atol=1e-12)


def test_distances_beyond_the_table_are_clamped():
    q, k, v, table = inputs(n=9, reach=3)
    expected = by_hand(q, k, v, table, visible=lambda b, i, j: True)
    assert torch.allclose(dpe_attention(q, k, v, table), expected, atol=1e-12)


def test_the_bias_is_indexed_by_query_minus_key():
    table = torch.arange(5.0)[None]
    assert naive.distance_bias(table, n=3, m=3)[0].tolist() == [[2, 1, 0], [3, 2, 1], [4, 3, 2]]


def test_a_decoding_step_equals_the_last_row_of_the_whole():
    q, k, v, table = inputs(n=11)
    whole = dpe_attention(q, k, v, table, causal=True)
    step = dpe_attention(q[:, :, -1:], k, v, table, causal=True, offset=10)
    assert torch.allclose(step, whole[:, :, -1:], atol=1e-12)


def test_packed_segments_do_not_see_each_other():
    q, k, v, table = inputs(b=1, n=7)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    packed = dpe_attention(q, k, v, table, segment_ids=segments)
    alone = dpe_attention(q[:, :, 3:], k[:, :, 3:], v[:, :, 3:], table)
    assert torch.allclose(packed[:, :, 3:], alone, atol=1e-12)


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
def test_a_query_without_keys_gives_zeros_and_no_nan_gradient(backend):
    q, k, v, table = inputs(b=2, n=4)
    leaves = [item.requires_grad_() for item in (q, k, v, table)]
    mask = torch.tensor([[False] * 4, [True] * 4])
    out = dpe_attention(*leaves, key_mask=mask, backend=backend)
    out.sum().backward()
    assert out[0].abs().max() == 0
    assert all(torch.isfinite(item.grad).all() for item in leaves)
    assert v.grad[0].abs().max() == 0


def test_gradients_are_right_table_included():
    q, k, v, table = inputs(b=1, h=2, n=5, m=6, k=3, reach=4)
    leaves = [item.requires_grad_() for item in (q, k, v, table)]
    mask = torch.tensor([[True, True, False, True, True, True]])
    given = {"causal": True, "key_mask": mask, "offset": 1}
    assert torch.autograd.gradcheck(lambda *x: naive.dpe_attention_sums(*x, **given), leaves)


def test_inputs_that_are_not_contiguous_give_the_same():
    q, k, v, table = inputs(n=6)
    loose = [item.transpose(1, 2).contiguous().transpose(1, 2) for item in (q, k, v)]
    assert not loose[0].is_contiguous()
    assert torch.equal(dpe_attention(*loose, table), dpe_attention(q, k, v, table))


def test_an_empty_batch_is_no_error():
    q, k, v, table = inputs(b=2)
    assert dpe_attention(q[:0], k[:0], v[:0], table).shape == (0, 3, 7, 8)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda q, k, v, t: (q, k[..., :4], v[..., :4], t), "k:"),
        (lambda q, k, v, t: (q, k, v[:, :, :3], t), "v:"),
        (lambda q, k, v, t: (q, k, v, t[:, :-1]), "table:"),
        (lambda q, k, v, t: (q, k, v, t[:2]), "table:"),
    ],
)
def test_a_wrong_shape_is_named(change, name):
    from ml_core.kernels.dpe_attention.op import _check

    q, k, v, table = change(*inputs())
    with pytest.raises(InputError, match=name):
        _check(q, k=k, v=v, table=table, key_mask=None, segment_ids=None, offset=0)


def test_auto_writes_scores_out_where_they_are_few_and_goes_by_blocks_where_they_are_many():
    q, k, v, table = inputs(b=1, h=1, k=2)
    assert choose(q, k, v, table) == "sdpa"
    assert choose(q.requires_grad_(), k, v, table) == "naive"
    long = torch.zeros(1, 1, 1, 2).expand(1, 1, 1024, 2)
    assert choose(long, long, long, table) == "blockwise"


@pytest.mark.parametrize(
    ("device", "dtype", "scores", "gradients", "backend"),
    [
        ("cuda", torch.bfloat16, 1, True, "triton"),
        ("cuda", torch.float32, 100, True, "naive"),
        ("cuda", torch.float32, 100, False, "sdpa"),
        ("cuda", torch.float32, WRITTEN_OUT, False, "triton"),
        ("cuda", torch.float64, WRITTEN_OUT, False, "blockwise"),
        ("cpu", torch.bfloat16, 100, False, "sdpa"),
        ("cpu", torch.float32, WRITTEN_OUT, True, "blockwise"),
    ],
)
def test_the_rule_of_auto(device, dtype, scores, gradients, backend):
    assert rule(device, dtype, scores=scores, gradients=gradients) == backend


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
@pytest.mark.parametrize(("before", "after"), [(1, 1), (0, 0), (2, 0)])
def test_a_band_shows_a_query_its_segment_and_those_beside_it(backend, before, after):
    q, k, v, table = inputs(b=1, n=11)
    band = Band(segment=3, before=before, after=after)
    expected = by_hand(q, k, v, table, visible=lambda b, i, j: -before <= j // 3 - i // 3 <= after)
    assert torch.allclose(dpe_attention(q, k, v, table, band=band, backend=backend), expected, atol=1e-12)


def test_distances_beyond_the_exact_ones_share_entries_by_their_logarithm():
    buckets = LogBuckets(exact=2, far=32)
    distance = torch.tensor([0, 1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 1000])
    entries = table_entries(distance, reach=6, buckets=buckets)
    assert entries.tolist() == [6, 7, 8, 9, 9, 10, 10, 11, 11, 12, 12, 12]
    assert table_entries(-distance, reach=6, buckets=buckets).tolist() == [12 - entry for entry in entries.tolist()]


@pytest.mark.parametrize("backend", ["naive", "sdpa", "blockwise"])
def test_every_backend_knows_buckets(backend):
    q, k, v, table = inputs(n=40, reach=7)
    buckets = LogBuckets(exact=2, far=20)
    q0 = q[:1, :1, :1] * 0  # scores are the bias alone: weights are its softmax
    entries = table_entries(5 - torch.arange(40), reach=6, buckets=buckets)
    expected = table[0, entries].softmax(-1) @ v[0, 0]
    given = {"buckets": buckets, "offset": 5, "backend": backend}
    assert torch.allclose(dpe_attention(q0, k[:1, :1], v[:1, :1], table[:1], **given)[0, 0, 0], expected, atol=1e-12)


@pytest.mark.parametrize("backend", ["naive", "blockwise"])
def test_attention_on_two_sets_of_keys_is_joined_by_their_sums(backend):
    q, k, v, table = inputs(n=12)
    whole = dpe_attention(q, k, v, table)
    early, first = dpe_attention_sums(q, k[:, :, :5], v[:, :, :5], table, backend=backend)
    late, second = dpe_attention_sums(q, k[:, :, 5:], v[:, :, 5:], table, offset=-5, backend=backend)
    share = torch.stack([first, second]).softmax(0)[..., None]
    assert torch.allclose(share[0] * early + share[1] * late, whole, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"band": Band(segment=0)}, "band:"),
        ({"band": Band(segment=4), "offset": -1}, "offset:"),
        ({"buckets": LogBuckets(exact=6, far=99)}, "buckets:"),
        ({"buckets": LogBuckets(exact=3, far=3)}, "buckets:"),
        ({"buckets": LogBuckets(exact=0, far=9)}, "buckets:"),
    ],
)
def test_positions_that_make_no_sense_are_named(given, name):
    with pytest.raises(InputError, match=name):
        dpe_attention(*inputs(), **given)


def test_sdpa_keeps_its_sums_to_itself_and_is_not_replaced():
    with pytest.raises(InputError, match="does not tell its sums"):
        dpe_attention_sums(*inputs(), backend="sdpa")
    out, sums = dpe_attention_sums(*inputs())
    assert torch.equal(out, dpe_attention(*inputs(), backend="naive"))
    assert sums.shape == (2, 3, 7)
