"""Super-operators: equal to the layers they are made of, packed without copies, their paths said."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from ml_core.errors import InputError
from ml_core.kernels.dpe_attention.op import dpe_attention
from ml_core.layers.launches import count_launches
from ml_core.layers.packing import PackedLinears
from ml_core.layers.superops import Attention, NormMLP, NormQKV, SuperOps, dispatch, norm_view

D, H, K, F = 24, 4, 6, 40


def linears(*sizes, bias=True, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return [nn.Linear(i, o, bias=bias, dtype=dtype) for i, o in sizes]


def layer_norm(dtype=torch.float64):
    norm = nn.LayerNorm(D, dtype=dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def heads(y, count):
    return y.unflatten(-1, (count, -1)).transpose(1, 2)


def tokens(*, b=2, n=7, dtype=torch.float64, seed=1):
    return torch.randn(b, n, D, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_norm_qkv_is_its_layers_forward_and_backward(norm, kv_heads):
    q, k, v = linears((D, H * K), (D, kv_heads * K), (D, kv_heads * K))
    own = layer_norm() if norm else None
    ops = NormQKV(own, [q, k, v], heads=H, kv_heads=kv_heads)
    x = tokens().requires_grad_()
    y = own(x) if norm else x
    wanted = [heads(q(y), H), heads(k(y), kv_heads), heads(v(y), kv_heads)]
    got = ops(x)
    for mine, theirs in zip(got, wanted, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-12)
    leaves = [x, *ops.parameters()]
    one, two = (torch.autograd.grad(sum((each**2).sum() for each in out), leaves) for out in (got, wanted))
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(one, two, strict=True))


def test_one_layer_may_hold_all_three():
    (packed,) = linears((D, 3 * H * K))
    q, k, v = NormQKV(None, [packed], heads=H)(tokens())
    for got, rows in zip((q, k, v), packed(tokens()).chunk(3, -1), strict=True):
        assert torch.allclose(got, heads(rows, H), atol=1e-12)


def test_a_rotation_turns_pairs_of_halves_by_the_position():
    ops = NormQKV(None, linears((D, D), (D, D), (D, D)), heads=H)
    angle = torch.randn(1, 7, K // 2, dtype=torch.float64)
    wide = torch.cat([angle, angle], -1)
    plain, turned = ops(tokens()), ops(tokens(), rotation=(wide.cos(), wide.sin()))
    for before, after in zip(plain[:2], turned[:2], strict=True):
        as_complex = lambda y: torch.complex(y[..., : K // 2], y[..., K // 2 :])  # noqa: E731
        assert torch.allclose(as_complex(after), as_complex(before) * torch.exp(1j * angle)[:, None], atol=1e-12)
    assert torch.equal(plain[2], turned[2])


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("kind", ["none", "additive", "visible", "causal"])
def test_attention_is_the_formula_with_projection_residual_and_norm(after, kind):
    (out,) = linears((H * K, D))
    norm = layer_norm() if after else None
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, H, 7, K, generator=generator, dtype=torch.float64) for _ in range(3))
    lower = torch.ones(7, 7, dtype=torch.bool).tril()
    bias = torch.randn(2, H, 7, 7, generator=generator, dtype=torch.float64)
    mask = {"none": None, "additive": bias, "visible": lower[None, None], "causal": None}[kind]
    scores = q @ k.transpose(-1, -2) * 0.3
    if kind == "additive":
        scores = scores + bias
    if kind in ("visible", "causal"):
        scores = scores.masked_fill(~lower, -torch.inf)
    context = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    wanted = tokens() + out(context)
    got = Attention(out, after=norm, scale=0.3)(q, k, v, tokens(), mask=mask, causal=kind == "causal")
    assert torch.allclose(got, norm(wanted) if after else wanted, atol=1e-12)


@pytest.mark.parametrize("masked", [True, False])
def test_shared_keys_and_values_are_each_groups_own(masked):
    (out,) = linears((H * K, D))
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(2, H, 5, K, generator=generator, dtype=torch.float64)
    k, v = (torch.randn(2, 2, 5, K, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()[None, None] if masked else None
    x, attention = tokens(n=5), Attention(out)
    wanted = attention(q, *(each[:, [0, 0, 1, 1]] for each in (k, v)), x, mask=mask)
    assert torch.allclose(attention(q, k, v, x, mask=mask), wanted, atol=1e-12)


def test_attention_with_distances_is_dpe_attention():
    (out,) = linears((H * K, D))
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, H, 7, K, generator=generator, dtype=torch.float64) for _ in range(3))
    table = torch.randn(H, 9, generator=generator, dtype=torch.float64)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    wanted = tokens() + out(dpe_attention(q, k, v, table, causal=True, key_mask=mask).transpose(1, 2).flatten(2))
    got = Attention(out).with_distances(q, k, v, tokens(), table=table, causal=True, key_mask=mask)
    assert torch.allclose(got, wanted, atol=1e-12)


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("gated", [True, False])
def test_norm_mlp_is_its_layers(order, activation, gated):
    gate, up, down = linears((D, F), (D, F), (F, D))
    norm = layer_norm()
    function = {
        "gelu": functional.gelu,
        "gelu_tanh": lambda y: functional.gelu(y, approximate="tanh"),
        "silu": functional.silu,
    }[activation]
    x = tokens()
    y = norm(x) if order == "pre" else x
    hidden = function(gate(y)) * up(y) if gated else function(up(y))
    wanted = x + down(hidden)
    given = {"norm": norm} if order == "pre" else {"after": norm}
    ops = NormMLP([gate, up] if gated else [up], down, activation=activation, **given)
    assert torch.allclose(ops(x), wanted if order == "pre" else norm(wanted), atol=1e-12)


def test_dropout_acts_in_training_alone_and_at_its_places():
    up, down = linears((D, F), (F, D))
    hidden, branch = nn.Dropout(1.0), nn.Dropout(1.0)
    ops = NormMLP([up], down, activation="gelu", hidden_dropout=hidden, branch=[branch])
    x = tokens()
    plain = x + down(functional.gelu(up(x)))
    assert torch.allclose(ops.eval()(x), plain, atol=1e-12)
    ops.train()
    assert torch.equal(ops(x), x)
    branch.p = 0.0
    assert torch.allclose(ops(x), x + down.bias, atol=1e-12)


class TestPacking:
    def test_parameters_keep_their_names_values_and_identity(self):
        q, k, v = linears((D, D), (D, D), (D, D))
        before = {name: value.clone() for name, value in nn.ModuleList([q, k, v]).state_dict().items()}
        parameters = [q.weight, k.weight, v.weight]
        ops = NormQKV(None, [q, k, v], heads=H)
        names = {name.removeprefix("projections."): value for name, value in ops.state_dict().items()}
        assert names.keys() == before.keys()
        assert all(torch.equal(names[name], before[name]) for name in names)
        assert [q.weight, k.weight, v.weight][0] is parameters[0]

    def test_the_state_goes_both_ways(self):
        ops, other = (NormQKV(None, linears((D, D), (D, D), (D, D), seed=seed), heads=H) for seed in (1, 2))
        assert not torch.allclose(ops(tokens())[0], other(tokens())[0])
        for assign in (False, True):
            other.load_state_dict({name: value.clone() for name, value in ops.state_dict().items()}, assign=assign)
            with torch.no_grad():
                assert all(torch.equal(a, b) for a, b in zip(ops(tokens()), other(tokens()), strict=True))

    def test_without_gradients_nothing_is_copied(self):
        layers = linears((D, D), (D, 6), (D, 6))
        packed = PackedLinears(layers)
        with torch.no_grad():
            weight, bias = packed.tensors()
        assert weight.data_ptr() == layers[0].weight.data_ptr()
        assert weight.shape == (D + 12, D)
        with torch.no_grad():
            layers[1].weight.fill_(7.0)
            layers[2].bias.fill_(5.0)
        assert (weight[D : D + 6] == 7.0).all()
        assert (bias[-6:] == 5.0).all()

    @pytest.mark.parametrize("change", ["moved", "assigned", "copied"])
    def test_what_was_moved_is_laid_out_again(self, change):
        layers = linears((D, D), (D, D))
        packed = PackedLinears(layers)
        if change == "moved":
            layers[1].to(torch.float32).to(torch.float64)
        if change == "assigned":
            layers[1].weight = nn.Parameter(torch.randn(D, D, dtype=torch.float64))
        if change == "copied":
            packed = copy.deepcopy(packed)
            assert packed.linears[0] is not layers[0]
        with torch.no_grad():
            weight, bias = packed.tensors()
        assert torch.equal(weight, torch.cat([each.weight.detach() for each in packed.linears]))
        assert torch.equal(bias, torch.cat([each.bias.detach() for each in packed.linears]))
        assert packed._in_place()

    def test_a_frozen_layer_among_trained_ones_gets_no_gradient(self):
        layers = linears((D, D), (D, D), (D, D))
        layers[1].requires_grad_(False)
        sum(each.sum() for each in NormQKV(None, layers, heads=H)(tokens())).backward()
        assert layers[1].weight.grad is None
        assert layers[0].weight.grad.abs().sum() > 0

    def test_layers_that_do_not_fit_are_refused(self):
        with pytest.raises(InputError, match="width"):
            PackedLinears(linears((D, D), (D + 1, D)))
        with pytest.raises(InputError, match="bias"):
            PackedLinears([*linears((D, D)), *linears((D, D), bias=False)])
        with pytest.raises(InputError, match="dtype"):
            PackedLinears([*linears((D, D)), *linears((D, D), dtype=torch.float32)])


def test_unknown_norms_are_refused_by_name():
    for norm in (nn.BatchNorm1d(D), nn.LayerNorm((3, D)), nn.RMSNorm(D, eps=None), nn.GroupNorm(2, D)):
        with pytest.raises(InputError, match=type(norm).__name__):
            norm_view(norm)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match="heads"):
        NormQKV(None, linears((D, D), (D, D), (D, D)), heads=5)


def test_dispatch_says_the_path_of_every_product_and_that_nothing_was_measured():
    q, k, v, out, up, down = linears((D, D), (D, D), (D, D), (D, D), (D, F), (F, D))
    ops = SuperOps(
        qkv=NormQKV(layer_norm(), [q, k, v], heads=H),
        attention=Attention(out),
        mlp=NormMLP([up], down, activation="gelu", norm=layer_norm()),
    )
    choices = dispatch(ops, tokens())
    assert {name: choice.path for name, choice in choices.items()} == {
        "qkv": "packed",
        "out": "torch",
        "up": "torch",
        "down": "torch",
    }
    assert [(c.shape.m, c.shape.d, c.shape.c) for c in choices.values()] == [
        (14, D, 3 * D),
        (14, D, D),
        (14, D, F),
        (14, F, D),
    ]
    assert all("nothing measured" in str(choice) for choice in choices.values())


def test_launches_are_counted_and_views_are_not():
    x = torch.randn(4, 4)
    assert count_launches(lambda: x.T.reshape(16)[1:].view(3, 5)) <= 2  # a copy, at most
    one, three = (count_launches(lambda times=times: [torch.relu(x) for _ in range(times)]) for times in (1, 3))
    assert three == 3 * one > 0


def test_a_packed_product_needs_fewer_launches():
    q, k, v = linears((D, D), (D, D), (D, D))
    norm, ops = layer_norm(), None
    apart = count_launches(lambda: [each(norm(tokens())) for each in (q, k, v)])
    ops = NormQKV(norm, [q, k, v], heads=H)
    with torch.no_grad():
        assert count_launches(lambda: ops(tokens())) < apart
