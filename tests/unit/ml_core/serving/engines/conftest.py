"""A tiny INT8 model of our own blocks, and its exports: made once for all tests of the engines."""

from functools import cache

import jaxtyping
import pytest
import torch
from torch import nn

from ml_core.layers.blocks import Block
from ml_core.quant import Quantizer
from ml_core.serving.engines.build import compiled, export_for
from ml_core.serving.engines.interface import SYSTEMS, Program

SMALL = {"b": 3, "n": 6}


class Tiny(nn.Module):
    """An embedding, a block with a padding mask, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 32)
        self.block = Block(32, 2, 48, max_n=16)
        self.head = nn.Linear(32, 5)

    def forward(self, ids, mask):
        return self.head(self.block(self.embedding(ids), key_mask=mask > 0))


def example(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(40, (sizes["b"], sizes["n"]), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, sizes["n"] - sizes["n"] // 3 :] = 0
    return ids, mask


@cache
def program(*, integer=True):
    torch.manual_seed(0)
    model = Tiny().eval()
    nn.init.normal_(model.block.attn.dpe.table)
    axes = {0: "b", 1: "n"}
    return Program(
        module=Quantizer(model).convert()[0] if integer else model,
        inputs=("ids", "mask"),
        outputs=("scores",),
        axes={"ids": axes, "mask": axes},
        limits={"b": 64, "n": 16},
        example=example,
    )


@cache
def graph(name):
    system = SYSTEMS[name]
    return export_for(program(integer=system.form != "float"), system=system, sizes=SMALL)


@cache
def call(name):
    system = SYSTEMS[name]
    return compiled(program(integer=system.form != "float"), system=system, model=graph(name), threads=1)


@pytest.fixture(autouse=True)
def _shapes_are_symbols():
    """While a model is traced its sizes are symbols, which the run-time check of shapes does not know."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def tiny():
    return program()


@pytest.fixture
def engine():
    """By a system's name: the tiny program on it."""
    return call
