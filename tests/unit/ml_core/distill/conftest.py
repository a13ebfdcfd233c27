"""Drawn features for the tests of distillation, and a small student with everything to show."""

from collections.abc import Callable

import pytest
import torch

from ml_core.distill.features import Features, HeadTaps


def draw(
    *, b=3, n=5, widths=(8, 8), seed=0, logits=None, mask=None, heads=(), dtype=torch.float64, requires_grad=False
) -> Features:
    """Features of normal numbers; `heads`: widths of q, k and v of each tapped layer."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_(requires_grad)

    return Features(
        layers=tuple(normal(b, n, width) for width in widths),
        pooled=normal(b, widths[-1]),
        mask=mask,
        logits=None if logits is None else normal(b, *logits),
        heads=tuple(
            HeadTaps(name=f"blocks.{index}", q=normal(b, n, width), k=normal(b, n, width), v=normal(b, n, width))
            for index, width in enumerate(heads)
        ),
    )


@pytest.fixture
def features() -> Callable[..., Features]:
    return draw
