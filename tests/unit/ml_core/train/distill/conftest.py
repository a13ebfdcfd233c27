"""A case that trains in a second: quick digits."""

from dataclasses import replace

import pytest
import torch

from ml_core.distill.tasks import digits
from ml_core.distill.tasks.request import Tuned
from ml_core.train.distill.protocol import Plan


@pytest.fixture
def plan(tmp_path):
    """A plan of the quick ViT case for two systems and one seed; `make(**changes)` changes it."""

    def make(**changes) -> Plan:
        base = Plan(
            cases=digits.cases(quick=True)[1:2],
            systems=("ce", "dfad"),
            seeds=1,
            tuned=Tuned(),
            work=tmp_path,
            device=torch.device("cpu"),
        )
        return replace(base, **changes)

    return make
