"""W8A8 kernels give the bits of naive and of the CPU's own products."""

import pytest
import torch

from ml_core.errors import InputError
from ml_core.kernels.linear_w8a8 import kernel, naive, op
from ml_core.quant import scheme

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(1, 63, 100), (3, 100, 1), (16, 48, 64), (17, 1000, 33), (70, 64, 130)]


def inputs(m, d, c, *, seed=0):
    """x, weight, scale, bias; x holds rows of all sizes, zeros and exact halves of a step."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, d, generator=generator) * torch.logspace(-6, 3, m)[:, None]
    x[m // 2] = 0.0
    x[0] = torch.arange(d) % 255 / 2.0 - 63.5
    weight = torch.randint(-127, 128, (c, d), generator=generator, dtype=torch.int8)
    scale, bias = torch.rand(c, generator=generator) + 0.1, torch.randn(c, generator=generator)
    return tuple(each.to(DEVICE) for each in (x, weight, scale, bias))


@pytest.mark.parametrize(("m", "d", "c"), SHAPES)
def test_levels_and_steps_are_those_of_the_cpu_to_the_bit(m, d, c):
    x = inputs(m, d, c)[0]
    levels, step = op.quantize_rows(x)
    for wanted in (naive.quantize_rows(x), scheme.quantize_activation(x.cpu())):
        assert torch.equal(levels.cpu(), wanted[0].cpu())
        assert torch.equal(step.cpu(), wanted[1].cpu())


@pytest.mark.parametrize(("m", "d", "c"), SHAPES)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("tiles", [None, kernel.Tiles(16, 16, 32, 4, 2), kernel.Tiles(32, 64, 64, 4, 2)])
def test_products_are_those_of_the_cpu_to_the_bit(m, d, c, with_bias, tiles):
    x, weight, scale, bias = inputs(m, d, c)
    bias = bias if with_bias else None
    levels, step = naive.quantize_rows(x)
    got = kernel.linear_w8a8(levels, step, weight, scale, bias, tiles=tiles)
    assert torch.equal(
        got, naive.linear_w8a8(levels.cpu(), *(_cpu(each) for each in (step, weight, scale, bias))).to(DEVICE)
    )
    on_cpu = scheme.product(
        levels.cpu(), step.cpu(), weight=weight.cpu(), scale=scale.cpu(), bias=_cpu(bias), engine="exact_float"
    )
    assert torch.equal(got.cpu(), on_cpu)


def _cpu(tensor):
    return None if tensor is None else tensor.cpu()


def test_the_largest_sums_are_exact():
    levels = torch.full((2, 4096), 255, dtype=torch.uint8, device=DEVICE)
    weight = torch.full((3, 4096), -127, dtype=torch.int8, device=DEVICE)
    ones = torch.ones(3, device=DEVICE)
    out = op.linear_w8a8(levels, torch.ones(2, 1, device=DEVICE), weight, ones)
    assert out.eq(-127.0 * 127 * 4096).all()


def test_memory_poisoned_with_nan_never_shows(monkeypatch):
    x, weight, scale, bias = inputs(17, 100, 33)
    wanted = naive.linear_w8a8(*naive.quantize_rows(x), weight, scale, bias)
    real = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **given: real(*shape, **given).fill_(77))
    got = op.linear_w8a8(*op.quantize_rows(x), weight, scale, bias)
    assert torch.equal(got, wanted)


def test_rows_with_gaps_and_no_rows_at_all():
    x, weight, scale, bias = inputs(8, 64, 33)
    wide = torch.cat([x, x], dim=1)[:, :64]
    assert wide.stride(0) == 128
    wanted = op.linear_w8a8(*op.quantize_rows(x), weight, scale, bias)
    assert torch.equal(op.linear_w8a8(*op.quantize_rows(wide), weight, scale, bias), wanted)
    assert op.linear_w8a8(*op.quantize_rows(x[:0]), weight, scale, bias).shape == (0, 33)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"weight": torch.ones(3, 7, dtype=torch.int8)}, "weight:"),
        ({"weight": torch.ones(3, 8)}, "weight:"),
        ({"scale": torch.ones(2)}, "scale:"),
        ({"step": torch.ones(2, 1, dtype=torch.float64)}, "step:"),
        ({"bias": torch.ones(4)}, "bias:"),
        ({"levels": torch.ones(2, 8, dtype=torch.int8)}, "levels:"),
    ],
)
def test_a_wrong_argument_is_named(change, name):
    given = {
        "levels": torch.ones(2, 8, dtype=torch.uint8),
        "step": torch.ones(2, 1),
        "weight": torch.ones(3, 8, dtype=torch.int8),
        "scale": torch.ones(3),
        "bias": None,
    }
    with pytest.raises(InputError, match=name):
        op._check(**(given | change))


def test_quantizing_refuses_float64():
    with pytest.raises(InputError, match="x: expected"):
        op.quantize_rows(torch.ones(2, 3, dtype=torch.float64, device=DEVICE))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs CUDA")
@pytest.mark.parametrize("tiles", kernel.CANDIDATES)
@pytest.mark.parametrize(("m", "d", "c"), [(1, 384, 1536), (16, 768, 2304), (1000, 3072, 768)])
def test_on_a_gpu_every_tiling_gives_the_bits_of_the_cpu(tiles, m, d, c):
    x, weight, scale, bias = inputs(m, d, c)
    levels, step = op.quantize_rows(x)
    assert torch.equal(step.cpu(), naive.quantize_rows(x.cpu())[1])
    assert torch.equal(levels.cpu(), naive.quantize_rows(x.cpu())[0])
    got = kernel.linear_w8a8(levels, step, weight, scale, bias, tiles=tiles)
    on_cpu = scheme.product(
        levels.cpu(), step.cpu(), weight=weight.cpu(), scale=scale.cpu(), bias=bias.cpu(), engine="exact_float"
    )
    assert torch.equal(got.cpu(), on_cpu)
