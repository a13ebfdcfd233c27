"""Tests of the engine: shapes of public signatures are checked at run time (jaxtyping), one thread for torch."""

from collections.abc import Iterator

import pytest
import torch
from jaxtyping import config, install_import_hook
from testkit import interpreter

install_import_hook(["ml_core.kernels", "ml_core.layers", "ml_core.distill", "ml_core.quant"], "beartype.beartype")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _quick_interpreter() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        interpreter.install(patch)
        yield


@pytest.fixture
def shapes_checked_before() -> Iterator[None]:
    """For tests that do again what their module's fixtures did under the checks of shapes, which treble its time."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
