"""The loss step under torch.compile(fullgraph=True): the same numbers as eager, one graph for every progress.

In a child process, since the checks of shapes that the other tests install are no code that can be compiled.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "device"),
    [
        ("aot_eager", "cpu"),
        # on a CPU inductor gives the same too, but the C++ compiler takes two minutes: tried by hand (docs/log.md)
        pytest.param("inductor", "cuda", marks=pytest.mark.gpu),
    ],
)
def test_the_step_is_one_graph_and_computes_what_eager_does(backend, device, tmp_path):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    script = Path(__file__).with_name("compile_step.py")
    done = subprocess.run(
        [sys.executable, str(script), backend, device],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "equal"
