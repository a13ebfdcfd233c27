"""Two processes under torchrun train what one trains at the same global batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ml_core.events import read

ROOT = Path(__file__).resolve().parents[4]
SCRIPT = Path(__file__).with_name("two_processes.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of the run by one process and of the run by two."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    folders = []
    for launcher in ((), TORCHRUN):
        folder = tmp_path_factory.mktemp("run")
        done = subprocess.run(
            [sys.executable, *launcher, str(SCRIPT), str(folder)],
            env=environment, capture_output=True, text=True, timeout=250, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        folders.append(folder)
    return folders


pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("weighting", "tolerance"), [("uniform", 1e-5), ("default", 2e-3)])
def test_the_weights_are_those_of_one_process(trained, weighting, tolerance):
    # by default the running mean of the cosines is the mean of two halves' means, which is near the whole's
    alone, together = (load_file(folder / f"{weighting}-0.safetensors") for folder in trained)
    moved = 0.0
    for name, value in alone.items():
        if "dfad.steps" in name or "cos_mean" in name:
            continue
        assert torch.allclose(value.float(), together[name].float(), atol=tolerance), name
        moved = max(moved, float(value.float().abs().max()))
    assert moved > 0.1


@pytest.mark.parametrize("weighting", ["uniform", "default"])
def test_both_processes_hold_the_same_bits_though_they_began_apart(trained, weighting):
    first, second = (load_file(trained[1] / f"{weighting}-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_of_two_cut_off_within_an_epoch_reaches_the_same_bits(trained):
    assert all((trained[1] / f"resumed-{rank}").exists() for rank in (0, 1))


def test_the_first_process_alone_writes_and_its_losses_are_the_whole_group_s(trained):
    alone, together = (
        [event for event in read(folder / "uniform" / "events.jsonl")[0] if event["kind"] == "step"]
        for folder in trained
    )
    assert [event["step"] for event in together] == list(range(1, 10))
    assert [event["loss"] for event in together] == pytest.approx([event["loss"] for event in alone], rel=1e-3)
