"""Blocks: names that are fixed, eval mode that is deterministic, a cache that changes nothing."""

import pytest
import torch
from torch import nn

from ml_core.errors import InputError
from ml_core.kernels.dpe_attention.op import dpe_attention
from ml_core.kernels.dpe_attention.positions import LogBuckets
from ml_core.layers.blocks import DPE, Block, CrossAttention, DPEAttention, KVCache, project_all
from ml_core.quant import Quantizer
from ml_core.quant.layers import QuantLinear


def block(**given):
    torch.manual_seed(0)
    made = Block(48, 3, 96, max_n=16, **given)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.double()


def test_parameter_names_are_those_that_the_fused_kernels_will_keep():
    names = {name.removesuffix(".weight").removesuffix(".bias") for name, _ in block().named_parameters()}
    attention = {f"attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj", "dpe.table")}
    assert names == attention | {"norm1", "norm2", "mlp.up", "mlp.down"}


def test_eval_mode_is_deterministic_where_dropout_is_a_half():
    made, x = block(dropout=0.5), torch.randn(2, 9, 48, dtype=torch.float64)
    assert not torch.equal(made.train()(x), made.train()(x))
    assert torch.equal(made.eval()(x), made.eval()(x))


def test_the_block_is_pre_ln_residual():
    made, x = block(), torch.randn(2, 9, 48, dtype=torch.float64)
    middle = x + made.attn(made.norm1(x))
    assert torch.allclose(made(x), middle + made.mlp(made.norm2(middle)))


def test_decoding_with_a_cache_equals_one_causal_pass():
    made, x = block(causal=True).eval(), torch.randn(2, 9, 48, dtype=torch.float64)
    cache = KVCache.empty(b=2, h=3, max_n=9, k=16, device=x.device, dtype=x.dtype)
    with torch.no_grad():
        parts = [made(x[:, :4], cache=cache), *(made(x[:, i : i + 1], cache=cache) for i in range(4, 9))]
        assert torch.allclose(torch.cat(parts, 1), made(x), atol=1e-12)


def test_a_full_cache_says_so():
    cache = KVCache.empty(b=1, h=3, max_n=2, k=16, device=torch.device("cpu"), dtype=torch.float32)
    with pytest.raises(InputError, match="cache"):
        cache.append(torch.zeros(1, 3, 3, 16), torch.zeros(1, 3, 3, 16))


def test_beams_follow_their_rows():
    cache = KVCache.empty(b=2, h=1, max_n=2, k=1, device=torch.device("cpu"), dtype=torch.float32)
    cache.append(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1), torch.zeros(2, 1, 1, 1))
    cache.reorder(torch.tensor([1, 1]))
    assert cache.k[:, 0, 0, 0].tolist() == [2.0, 2.0]


def test_padding_does_not_reach_the_tokens():
    made, x = block().eval(), torch.randn(1, 9, 48, dtype=torch.float64)
    mask = torch.tensor([[True] * 6 + [False] * 3])
    other = x.clone()
    other[:, 6:] = 7.0
    assert torch.allclose(made(x, key_mask=mask)[:, :6], made(other, key_mask=mask)[:, :6], atol=1e-12)


def test_order_matters_through_the_table_alone():
    torch.manual_seed(0)
    attention, x = DPEAttention(48, 3, 16), torch.randn(1, 5, 48)
    turned = torch.tensor([4, 2, 0, 1, 3])
    assert torch.allclose(attention(x)[:, turned], attention(x[:, turned]), atol=1e-5)
    torch.nn.init.normal_(attention.dpe.table)
    assert not torch.allclose(attention(x)[:, turned], attention(x[:, turned]), atol=1e-3)


def test_cross_attention_equals_its_weights_times_values():
    torch.manual_seed(0)
    cross = CrossAttention(48, 3, d_context=20).double()
    x, context = torch.randn(2, 4, 48, dtype=torch.float64), torch.randn(2, 6, 20, dtype=torch.float64)
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    kv = cross.context(context)
    weights = cross.attention(x, kv, key_mask=mask)
    assert torch.allclose(weights.sum(-1), torch.ones_like(weights.sum(-1)))
    assert weights[1, :, :, 2:].abs().max() == 0
    expected = cross.out_proj((weights @ kv[1]).transpose(1, 2).reshape(2, 4, 48))
    assert torch.allclose(cross(x, kv, key_mask=mask), expected, atol=1e-12)


def test_a_block_without_cross_attention_takes_no_context():
    with pytest.raises(InputError, match="kv"):
        block()(torch.zeros(1, 2, 48, dtype=torch.float64), kv=(torch.zeros(1, 3, 2, 16), torch.zeros(1, 3, 2, 16)))


def test_heads_must_divide_the_width():
    with pytest.raises(InputError, match="h:"):
        Block(50, 3, 64, max_n=4)


@pytest.mark.parametrize("quantized", [False, True])
def test_projections_that_share_their_input_give_the_bits_that_each_gives_alone(quantized):
    layers = [nn.Linear(64, out, bias=bias) for out, bias in ((64, True), (64, False), (32, True))]
    if quantized:
        layers = [Quantizer(nn.Sequential(layer)).convert()[0][0] for layer in layers]
        assert all(isinstance(layer, QuantLinear) for layer in layers)
    x = torch.randn(3, 5, 64).transpose(0, 1)
    for layer, together in zip(layers, project_all(x, *layers), strict=True):
        assert torch.equal(together, layer(x))


def test_layers_that_share_a_table_learn_one():
    first = Block(8, 2, 16, max_n=5)
    second = Block(8, 2, 16, max_n=5, dpe=first.attn.dpe)
    x = torch.randn(1, 5, 8)
    second(first(x)).sum().backward()
    both = first.attn.dpe.table.grad.clone()
    first.attn.dpe.table.grad = None
    second(first(x).detach()).sum().backward()
    assert second.attn.dpe.table.grad is first.attn.dpe.table.grad
    assert not torch.equal(both, second.attn.dpe.table.grad)
    with pytest.raises(InputError, match="4 heads does not fit 2"):
        DPEAttention(8, 2, 5, dpe=DPE(4, 5))


def test_buckets_let_far_distances_share_a_bias():
    torch.manual_seed(0)
    dpe = DPE(2, 6, buckets=LogBuckets(exact=2, far=16))
    torch.nn.init.normal_(dpe.table)
    made = DPEAttention(8, 2, 6, dpe=dpe)
    x = torch.randn(1, 30, 8)
    q, k, v = (p(x).unflatten(-1, (2, 4)).transpose(1, 2) for p in (made.q_proj, made.k_proj, made.v_proj))
    seen = dpe_attention(q, k, v, dpe.table, buckets=dpe.buckets, backend="naive")
    assert torch.allclose(made(x), made.out_proj(seen.transpose(1, 2).flatten(2)), atol=1e-6)
    clamped = made.out_proj(dpe_attention(q, k, v, dpe.table, backend="naive").transpose(1, 2).flatten(2))
    assert not torch.allclose(made(x), clamped, atol=1e-3)
