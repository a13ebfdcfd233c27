"""Segmented attention: what is seen is what the definition says, a stream is the whole, and little of it is kept."""

from functools import partial

import pytest
import torch

from ml_core.errors import InputError
from ml_core.kernels.dpe_attention.op import dpe_attention_prefixed
from ml_core.kernels.dpe_attention.positions import Band
from ml_core.layers import segments_whole
from ml_core.layers.segments import SegmentedAttention, SegmentedBlock, StreamState, stream
from ml_core.layers.segments_whole import segmented_attention

D, H, SIZE = 12, 3, 4


def layer(*, seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    made = SegmentedAttention(D, H, segment=SIZE, **options)
    for bias in (made.dpe.table, made.sink_bias, made.far_bias):
        torch.nn.init.normal_(bias)
    return made.to(dtype).eval()


def truth(made, x, *, key_mask=None):
    """The definition, key by key: window, sinks out of it, one summary of every segment out of it."""
    b, n, d = x.shape
    real = torch.ones(b, n, dtype=torch.bool) if key_mask is None else key_mask
    heads = [y.unflatten(-1, (H, -1)).transpose(1, 2) for y in (made.q_proj(x), made.k_proj(x), made.v_proj(x))]
    q, k, v = heads
    out = torch.zeros_like(q)
    count = -(-n // SIZE)
    for row in range(b):
        for head in range(H):
            summaries = []
            for segment in range(count):
                at = [j for j in range(segment * SIZE, min(n, segment * SIZE + SIZE)) if real[row, j]]
                if at:
                    share = (k[row, head, at] @ made.pool[head]).softmax(0)
                    summaries.append((segment, share @ k[row, head, at], share @ v[row, head, at]))
            for i in range(n):
                own = i // SIZE
                rows = []
                for j in range(n):
                    if not real[row, j] or (made.causal and j > i):
                        continue
                    if abs(own - j // SIZE) <= made.neighbours:
                        bias = made.dpe.table[head, i - j + made.dpe.table.shape[1] // 2]
                    elif j < made.sinks:
                        bias = made.sink_bias[head]
                    else:
                        continue
                    rows.append((k[row, head, j], v[row, head, j], bias))
                for segment, key, value in summaries:
                    away = own - segment
                    if abs(away) > made.neighbours and (away > 0 or not made.causal):
                        rows.append((key, value, made.far_bias[head, max(-16, min(16, away)) + 16]))
                if rows:
                    keys, values, bias = (torch.stack(each) for each in zip(*rows, strict=True))
                    shares = (keys @ q[row, head, i] * keys.shape[1] ** -0.5 + bias).softmax(0)
                    out[row, head, i] = shares @ values
    return made.out_proj(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("neighbours", "sinks"), [(1, 2), (0, 0), (2, 4)])
@pytest.mark.parametrize("n", [1, 4, 9, 83])
@pytest.mark.parametrize("path", ["loop", "whole"])
def test_every_query_sees_what_the_definition_says(causal, neighbours, sinks, n, path):
    made = layer(neighbours=neighbours, sinks=sinks, causal=causal)
    x = torch.randn(1, n, D, dtype=torch.float64)
    assert torch.allclose(made(x, path=path), truth(made, x), atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("path", ["loop", "whole"])
def test_padding_is_seen_by_nobody_and_summed_up_by_none(causal, path):
    made = layer(causal=causal)
    x = torch.randn(2, 19, D, dtype=torch.float64)
    real = torch.ones(2, 19, dtype=torch.bool)
    real[1, 7:] = False  # two whole segments of padding among them
    wanted = truth(made, x, key_mask=real)
    got = made(x, key_mask=real, path=path)
    assert torch.allclose(got[real], wanted[real], atol=1e-12)
    assert torch.isfinite(got).all()
    assert torch.allclose(got[1, :7], made(x[1:, :7], path=path)[0], atol=1e-12)


def test_gradients_reach_every_parameter():
    made = layer()
    made(torch.randn(1, 19, D, dtype=torch.float64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in made.parameters())


@pytest.mark.parametrize("path", ["loop", "whole"])
def test_gradients_are_those_of_the_definition(path):
    made = layer(neighbours=1, sinks=1)
    x = torch.randn(1, 19, D, dtype=torch.float64)
    real = torch.ones(1, 19, dtype=torch.bool)
    real[0, 14:] = False  # a segment of padding alone: its rows see nothing near
    names = ("pool", "sink_bias", "far_bias", "dpe.table", "k_proj.weight")
    parameters = [made.get_parameter(name) for name in names]
    found = torch.autograd.grad(made(x, key_mask=real, path=path)[real].sin().sum(), parameters)
    wanted = torch.autograd.grad(truth(made, x, key_mask=real)[real].sin().sum(), parameters)
    for name, ours, own in zip(names, found, wanted, strict=True):
        assert torch.allclose(ours, own, atol=1e-10), name


def test_a_stream_is_the_whole_input_and_what_follows_changes_no_bit():
    torch.manual_seed(1)
    blocks = [SegmentedBlock(D, H, 24, segment=SIZE, sinks=2).eval() for _ in range(3)]
    x = torch.randn(2, 30, D)
    whole = x
    for block in blocks:
        whole = block(whole)
    parts = list(stream(blocks, x.split(SIZE, dim=1)))
    # norms and the MLP see other shapes, so products may round otherwise
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)
    fewer = list(stream(blocks, x[:, : 4 * SIZE].split(SIZE, dim=1)))
    assert all(torch.equal(one, other) for one, other in zip(fewer, parts, strict=False))


def test_a_stream_keeps_one_key_and_value_a_segment_and_no_more():
    made, state = layer(dtype=torch.float32), StreamState()
    kept = []
    for _ in range(12):
        made.step(torch.randn(1, SIZE, D), state)
        kept.append(state.bytes)
    grown = {later - earlier for earlier, later in zip(kept[3:], kept[4:], strict=False)}
    assert grown == {2 * 4 * D + 1}  # fp32, and one flag
    storage = state.sinks.k.untyped_storage().nbytes()
    assert storage == 4 * D * made.sinks  # no view of the first segment


def test_what_is_no_stream_is_refused():
    made, state = layer(), StreamState()
    x = torch.randn(1, SIZE, D, dtype=torch.float64)
    made.step(x[:, :2], state)
    with pytest.raises(InputError, match="shorter"):
        made.step(x, state)
    with pytest.raises(InputError, match="more than a segment"):
        made.step(torch.cat([x, x], 1), StreamState())
    with pytest.raises(InputError, match="causal"):
        layer(causal=False).step(x, StreamState())
    with pytest.raises(InputError, match="layout"):
        layer(sinks=SIZE + 1)


def heads_of(n, *, b=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    made = {name: draw(b, 2, n, 16) for name in ("q", "k", "v")}
    return made | {
        "table": draw(2, 4 * 64 - 1), "pool": draw(2, 16), "sink_bias": draw(2), "far_bias": draw(2, 33)
    }  # fmt: skip


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("neighbours", "sinks", "n"), [(1, 3, 330), (0, 0, 256), (1, 70, 200)])
def test_the_one_kernel_is_the_two_parts_joined(causal, neighbours, sinks, n, monkeypatch):
    made = heads_of(n)
    real = torch.ones(2, n, dtype=torch.bool)
    real[1, n - 70 :] = False
    given = {"segment": 64, "neighbours": neighbours, "sinks": sinks, "causal": causal, "key_mask": real}
    with torch.no_grad():
        wanted = segmented_attention(**{name: each.double() for name, each in made.items()}, **given)
        monkeypatch.setattr(segments_whole, "one_kernel", lambda *_, **__: True)
        got = segmented_attention(**made, **given)
    off = (got.double() - wanted)[real[:, None].expand(-1, 2, -1)]
    assert off.norm() / wanted.norm() < 1e-6


def test_the_one_kernel_says_what_it_cannot_do():
    made, band = heads_of(128, b=1), Band(segment=64)
    prefix = (made["k"][:, :, :2], made["v"][:, :, :2], torch.zeros(1, 2, 2, 2))
    call = partial(dpe_attention_prefixed, made["q"], made["k"], made["v"], made["table"])
    assert call(prefix=prefix, band=band).shape == (1, 2, 128, 16)
    with pytest.raises(InputError, match="prefix bias: expected"):
        call(prefix=(*prefix[:2], torch.zeros(1, 2, 3, 2)), band=band)
    with pytest.raises(InputError, match="segment: tiles of 64 rows"):
        call(prefix=(*prefix[:2], torch.zeros(1, 2, 4, 2)), band=Band(segment=32))
    made["q"].requires_grad_()
    with pytest.raises(InputError, match="no gradients"):
        call(prefix=prefix, band=band)
    assert not segments_whole.one_kernel(made["q"], made["table"], segment=128)
