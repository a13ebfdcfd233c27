"""A case that trains in a second: quick digits."""

import shutil
from dataclasses import replace

import pytest
import torch

from ml_core.distill.tasks import digits
from ml_core.distill.tasks.request import Tuned
from ml_core.train.distill.protocol import Plan, measure


def quick(work) -> Plan:
    """The quick ViT case for two systems and one seed."""
    return Plan(
        cases=digits.cases(quick=True)[1:2],
        systems=("ce", "dfad"),
        seeds=1,
        tuned=Tuned(),
        work=work,
        device=torch.device("cpu"),
    )


@pytest.fixture(scope="session")
def teachers(tmp_path_factory):
    """The folder of the case's teacher as a run leaves it: every other run would train the same one again."""
    work = tmp_path_factory.mktemp("taught")
    measure(replace(quick(work), systems=("ce",)), say=lambda text: None)
    return work / "teachers"


@pytest.fixture
def plan(tmp_path, teachers):
    """The quick plan, its teacher trained; `make(**changes)` changes it."""

    def make(**changes) -> Plan:
        made = replace(quick(tmp_path), **changes)
        if not (made.work / "teachers").exists():
            shutil.copytree(teachers, made.work / "teachers")
        return made

    return make
