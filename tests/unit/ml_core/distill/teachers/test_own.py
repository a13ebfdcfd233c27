"""Our own modules as Features."""

import torch

from ml_core.distill.dfad import DFAD, DFADConfig
from ml_core.distill.teachers.own import block_heads, cnn_features, fraud_features, report_features, stack_features
from ml_core.layers.blocks import Block
from ml_core.models.cnn_teacher import CnnTeacher
from ml_core.models.fraud_student import FraudStudent, FraudStudentConfig
from ml_core.models.report_student import ReportStudent, ReportStudentConfig


def test_the_fraud_student_shows_its_tokens_and_one_logit():
    model = FraudStudent(FraudStudentConfig(features=6, channels=4, card_tokens=3, terminal_tokens=2, layers=3))
    inputs = torch.rand(5, 6), torch.rand(5, 3, 4), torch.rand(5, 2, 4)
    shown = fraud_features(model, *inputs)
    assert [tuple(layer.shape) for layer in shown.layers] == [(5, 6, 64)] * 2
    assert torch.allclose(shown.logits[:, 0], model(*inputs))


def test_the_radiology_student_learns_from_the_cnn_teacher():
    torch.manual_seed(0)
    student = ReportStudent(ReportStudentConfig(vocabulary=20, image_size=64, encoder_depth=2, decoder_layers=1))
    teacher = CnnTeacher().eval()
    images = torch.rand(2, 1, 64, 64)
    shown, wanted = report_features(student, images), cnn_features(teacher, images, side=4)
    assert shown.layers[0].shape[:2] == wanted.layers[0].shape[:2] == (2, 16)
    assert shown.logits.shape == wanted.logits.shape == (2, 14, 1)
    dfad = DFAD.measured(DFADConfig(), [(shown, wanted)])
    dfad(shown, wanted, shown.pooled.sum() * 0.0, 0.0).total.backward()
    assert any(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in student.encoder.parameters())


def test_a_stack_of_blocks_shows_the_queries_that_it_computes():
    torch.manual_seed(0)
    blocks = torch.nn.ModuleList(Block(16, 4, 32, max_n=8) for _ in range(3))
    x, mask = torch.randn(2, 6, 16), torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    shown = stack_features(blocks, x, mask=mask, head_layers=(-1,))
    expected = block_heads(blocks[2], shown.layers[1], name="blocks.2")
    assert shown.heads[0].name == expected.name
    assert torch.equal(shown.heads[0].v, expected.v)
    assert torch.allclose(shown.pooled[1], shown.layers[-1][1, :4].mean(0), atol=1e-6)
