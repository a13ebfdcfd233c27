"""Whether an engine computes what the torch CPU path computes: the products, the outputs, and each row by itself.

Products are held to float rounding, on inputs near full scale, where an engine that saturates shows itself, and
between two levels, where one that does not round to levels does. Outputs cannot be: two right paths differ by float
roundings, which now and then move an activation to the neighbouring level, and some layers later this is nearly as much
as rounding to levels costs at all (docs/log.md). So outputs may be as far apart as two int8 paths whose roundings have
nothing in common: √2 times the distance between the int8 path and the same weights without rounding of activations.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ml_core.layers.blocks import project_all
from ml_core.quant.layers import QuantLinear
from ml_core.quant.scheme import LEVELS
from ml_core.seed import torch_generator
from ml_core.serving.engines.build import compiled, export_for
from ml_core.serving.engines.forms import exact_weights
from ml_core.serving.engines.interface import Compiled, Program, Sizes, System

PRODUCTS = 1e-5  # relative RMS of one layer: float roundings of the epilogue, and of sums beyond 2^24
APART = 2**0.5
SEEDS = 4
FLOAT = {"fp32": 1e-4, "bf16": 3e-2}  # relative RMS of a float model, as in evals.encoder_paths
_FLOOR = 1e-5
_ROWS = (1, 5, 64)


def product_error(program: Program, *, system: System, threads: int) -> float:
    """The worst relative RMS of one layer at full scale, over the program's distinct layers and several row counts."""
    layers = _FullScale(
        [tuple(each.weight.shape) for each in program.module.modules() if isinstance(each, QuantLinear)]
    )
    names = tuple(f"x{i}" for i in layers.widths)
    full = Program(
        module=layers,
        inputs=names,
        outputs=tuple(f"y{o}_{i}" for i, outputs in layers.widths.items() for o in outputs),
        axes={name: {0: "m"} for name in names},
        limits={"m": 4_096},
        example=lambda sizes, seed: tuple(_full_scale(sizes["m"], inputs=i) for i in layers.widths),
    )
    model = export_for(full, system=system, sizes={"m": 4})
    call = compiled(full, system=system, model=model, threads=threads)
    worst = 0.0
    for rows in _ROWS:
        given = full.example({"m": rows}, 0)
        with torch.no_grad():
            wanted = full.module(*given)
        worst = max(worst, *(relative(y, to=truth) for y, truth in zip(call(*given), wanted, strict=True)))
    return worst


def output_errors(program: Program, call: Compiled, *, reference: Compiled, sizes: Sizes) -> tuple[float, float]:
    """How far the outputs are from the reference's, and how far they may be: APART times what rounding costs.

    Both are relative RMS over SEEDS examples, and RMS over the outputs: an output of one number has none of its own.
    """
    module = exact_weights(program.module)
    found, wanted, exact = [], [], []
    for seed in range(SEEDS):
        given = program.example(sizes, seed)
        with torch.no_grad():
            truth = module(*given)
        exact.append(truth if isinstance(truth, tuple) else (truth,))
        found.append(call(*given))
        wanted.append(reference(*given))
    error, noise = (_pooled(values, to=truth) for values, truth in ((found, wanted), (wanted, exact)))
    return error, max(_FLOOR, APART * noise)


def _pooled(values: Sequence[Sequence[Tensor]], *, to: Sequence[Sequence[Tensor]]) -> float:
    """values, to: outputs by example."""
    pairs = zip(zip(*values, strict=True), zip(*to, strict=True), strict=True)
    errors = [relative(torch.cat(y), to=torch.cat(truth)) for y, truth in pairs]
    return (sum(error**2 for error in errors) / len(errors)) ** 0.5


def relative(value: Tensor, *, to: Tensor) -> float:
    """RMS of the difference over RMS of `to`."""
    wanted, found = to.double(), value.double()
    return float((found - wanted).pow(2).sum().sqrt() / wanted.pow(2).sum().sqrt().clamp_min(1e-30))


def rows_differ(call: Compiled, program: Program, *, axis: str, sizes: Sizes) -> bool:
    """Whether any row of a batch comes out with other bits than alone."""
    given = program.example(sizes, 0)
    whole = call(*given)
    for row in range(sizes[axis]):
        alone = call(*(each[row : row + 1] for each in given))
        if not all(torch.equal(one[0], many[row]) for one, many in zip(alone, whole, strict=True)):
            return True
    return False


class _FullScale(nn.Module):
    """Layers whose weights and inputs are at the ends of their range, most products of one sign."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.widths: dict[int, list[int]] = {}
        self.layers = nn.ModuleDict()
        for o, i in sorted(set(shapes)):
            weight = torch.full((o, i), LEVELS, dtype=torch.int8)
            weight[:, ::7] = -LEVELS
            self.widths.setdefault(i, []).append(o)
            layers = self.layers[str(i)] if str(i) in self.layers else nn.ModuleList()
            layers.append(QuantLinear(weight, torch.full((o,), 1e-3)))
            self.layers[str(i)] = layers

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """An input for each width, and all layers of that width on it."""
        pairs = zip(inputs, self.layers.values(), strict=True)
        return tuple(y for x, layers in pairs for y in project_all(x, *layers.children()))


def _full_scale(rows: int, *, inputs: int) -> Tensor:
    """Signs of which nine in ten agree; but for the first, each input lies 0.3 of a step inside the last level."""
    signs = torch.rand(rows, inputs, generator=torch_generator(0, "engines", "full scale", str(inputs))) > 0.1
    size = torch.full((inputs,), (LEVELS - 0.3) / LEVELS)
    size[0] = 1.0
    return torch.where(signs, size, -size)
