"""Boosted trees as teachers: the stages add up to the booster's own margin, whichever library and objective."""

import lightgbm
import numpy as np
import pytest
import torch
from torch.nn import functional

from ml_core.distill.dfad import DFAD, DFADConfig
from ml_core.distill.teachers.trees import TreeTaps, trees_load
from ml_core.errors import InputError

X = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
TWO = (X[:, 0] + X[:, 1] ** 2 > 0.8).astype(int)
THREE = np.digitize(X[:, 0], [-0.5, 0.7])


def lgb(classes):
    objective = {"objective": "binary"} if classes == 2 else {"objective": "multiclass", "num_class": 3}
    data = lightgbm.Dataset(X, TWO if classes == 2 else THREE)
    return lightgbm.train({**objective, "verbose": -1, "num_threads": 1, "num_leaves": 7}, data, 20)


def xgb(classes):
    xgboost = pytest.importorskip("xgboost")
    objective = {"objective": "binary:logistic"} if classes == 2 else {"objective": "multi:softprob", "num_class": 3}
    data = xgboost.DMatrix(X, TWO if classes == 2 else THREE)
    return xgboost.train({**objective, "nthread": 1, "max_depth": 3, "base_score": 0.3}, data, 20)


def margin(booster):
    if isinstance(booster, lightgbm.Booster):
        return booster.predict(X, raw_score=True)
    return booster.predict(pytest.importorskip("xgboost").DMatrix(X), output_margin=True)


@pytest.mark.parametrize("make", [lgb, xgb])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("stages", [1, 6, 100])
def test_the_embedding_adds_up_to_the_booster_s_own_margin(make, classes, stages):
    booster = make(classes)
    taps = TreeTaps(booster, stages=stages)
    shown = taps(X)
    c = 1 if classes == 2 else 3
    assert shown.layers[0].shape == (200, 1, min(stages, 20) * c) == (200, 1, taps.width)
    assert torch.allclose(shown.logits, torch.from_numpy(margin(booster).reshape(200, c)).float(), atol=1e-5)
    assert torch.allclose(shown.pooled.reshape(200, -1, c).sum(1), shown.logits, atol=1e-5)


@pytest.mark.parametrize(("make", "file"), [(lgb, "model.txt"), (xgb, "model.json"), (xgb, "model.ubj")])
def test_a_model_file_gives_the_same_teacher(make, file, tmp_path):
    booster = make(2)
    booster.save_model(tmp_path / file)
    assert torch.equal(trees_load(tmp_path / file)(torch.from_numpy(X)).logits, TreeTaps(booster)(X).logits)


def test_trees_teach_a_network():
    torch.manual_seed(0)
    student = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.GELU(), torch.nn.Linear(16, 16), torch.nn.GELU())
    head = torch.nn.Linear(16, 1)
    teacher = TreeTaps(lgb(2), stages=8)
    wanted = teacher(X)
    dfad = DFAD(DFADConfig(kl_share=0.9, warmup_steps=5), (8,), (16,))
    optimizer = torch.optim.Adam([*student.parameters(), *head.parameters(), *dfad.parameters()], lr=1e-2)
    x, y = torch.from_numpy(X), torch.from_numpy(TWO).float()
    kls = []
    for _ in range(60):
        hidden = student(x)
        shown = type(wanted)(layers=(hidden[:, None],), pooled=hidden, logits=head(hidden))
        loss = dfad(shown, wanted, functional.binary_cross_entropy_with_logits(head(hidden)[:, 0], y), 0.5)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        kls.append(float(loss.logits_kl.detach()))
    assert kls[-1] < 0.3 * kls[0]


def test_other_files_and_other_objects_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"\.pkl"):
        trees_load(tmp_path / "model.pkl")
    with pytest.raises(InputError, match="neither"):
        TreeTaps(object())
