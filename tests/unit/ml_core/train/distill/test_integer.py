"""Students in 4 and 8 bits: trained and measured on fake-quantized layers, aligned through their own quantizer."""

import numpy as np
import pytest
import torch

from ml_core.distill.tasks import digits
from ml_core.distill.tasks.request import Tuned
from ml_core.quant import Quantizer
from ml_core.quant.layers import FakeQuantLinear
from ml_core.train.distill.cell import cell_run, cell_settings
from ml_core.train.distill.model import logits_of
from ml_core.train.distill.protocol import measure
from ml_core.train.distill.teacher import teacher_ready

TUNED = Tuned()


def case_of(bits):
    return next(case for case in digits.cases(quick=True) if case.student.bits == bits)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_student_is_trained_and_measured_on_its_integers(bits, tmp_path):
    case = case_of(bits)
    task = case.load()
    teacher = teacher_ready(case, task, folder=tmp_path, device=torch.device("cpu"), cached=False)
    _, outputs, student = cell_run(
        case, task, system="dfad", seed=0, tuned=TUNED, teacher=teacher, folder=tmp_path, device=torch.device("cpu")
    )
    layers = [module for module in student.modules() if isinstance(module, torch.nn.Linear)]
    assert layers
    assert all(isinstance(layer, FakeQuantLinear) and layer.bits == bits for layer in layers)
    if bits == 8:  # what is served says the same, but for a level that a last bit turned over
        quantizer = Quantizer(case.student.build(task))
        quantizer.model.load_state_dict(student.state_dict())
        converted, _ = quantizer.convert()
        served = logits_of(lambda batch: case.student.show(converted, batch), task=task, split=task.test)
        assert np.linalg.norm(served - outputs) < 0.01 * np.linalg.norm(outputs)


def test_with_and_without_the_quantizer_are_two_cells_of_one_start(plan):
    case = case_of(4)
    result = measure(plan(cases=[case], systems=("ce", "dfad", "no_quantizer")), say=lambda text: None)[0]
    assert [cell.system for cell in result.cells] == ["ce", "dfad", "no_quantizer"]
    assert not np.array_equal(result.outputs["dfad", 0], result.outputs["no_quantizer", 0])


def test_bits_are_part_of_the_settings():
    four, eight = case_of(4), case_of(8)
    task = four.load()
    assert len({cell_settings(case, task, system="dfad", tuned=TUNED) for case in (four, eight)}) == 2
