"""Linear CKA: what it is blind to, what it sees, and that small batches do not flatter it."""

import pytest
import torch

from ml_core.distill.cka import cka_table, linear_cka


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rotation_scale_and_shift_change_nothing():
    x = normal(32, 6)
    rotation = torch.linalg.qr(normal(6, 6, seed=1))[0]
    assert float(linear_cka(x, 7.0 * x @ rotation + 3.0)) == pytest.approx(1.0)


def test_unrelated_features_are_near_zero_though_the_batch_is_smaller_than_the_width():
    values = [float(linear_cka(normal(16, 256, seed=seed), normal(16, 128, seed=seed + 100))) for seed in range(20)]
    assert abs(sum(values) / len(values)) < 0.1


def test_half_shared_features_lie_between():
    shared = normal(200, 8)
    x = torch.cat([shared, normal(200, 8, seed=1)], 1)
    y = torch.cat([shared, normal(200, 8, seed=2)], 1)
    assert 0.3 < float(linear_cka(x, y)) < 0.7


def test_fewer_than_four_rows_have_no_answer():
    assert torch.isnan(linear_cka(normal(3, 5), normal(3, 5)))


def test_constant_features_are_alike_with_nothing():
    assert float(linear_cka(torch.ones(8, 3), normal(8, 3).float())) == pytest.approx(0.0, abs=1e-3)


def test_a_table_over_batches_finds_the_layers_that_belong_together():
    batches = []
    for seed in range(4):
        teacher = [normal(12, 20, seed=10 * seed + layer) for layer in range(3)]
        turned = torch.linalg.qr(normal(20, 20, seed=99))[0]
        batches.append(([teacher[2] @ turned, teacher[0] @ turned], teacher))
    table = cka_table(batches)
    assert table.argmax(1).tolist() == [2, 0]
    assert float(table[0, 2]) == pytest.approx(1.0)
