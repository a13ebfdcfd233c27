"""What models say of films that they did not learn from: probabilities, ROC-AUC, scores and drafts in files."""

import io
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ml_core.contracts import DraftRequest, ImageInput, ModelKey, ModelKind, StudyInput
from ml_core.data.findings import FINDINGS
from ml_core.data.phantom import render
from ml_core.models.cnn_teacher import presence_logit
from ml_core.models.report_student import ReportStudent
from ml_core.serving.report import BATCH, ReportDrafter
from ml_core.train.report_teachers import presence_of

SIMULATED_FIRST, SIMULATED_FILMS = 970_000_000, 160  # what report-quality measures on: far from every recipe's seeds


@torch.inference_mode()
def presence_predict(model: nn.Module, images: NDArray[np.uint8], *, device: str = "cpu") -> NDArray[np.float32]:
    """Probability of presence (n 14) for prepared images (n g g), by a teacher, its lessons or a report model."""
    logits = [presence_of(model, x).float().cpu() for x in _chunks(model, images, device=device)]
    return torch.cat(logits).sigmoid().numpy()


@torch.inference_mode()
def scores_predict(
    model: nn.Module, images: NDArray[np.uint8], *, device: str = "cpu"
) -> dict[str, NDArray[np.float32]]:
    """Logits for prepared images (n g g): `presence` (n 14), and of a report model `states` (n 14 4) and `gate` (n)."""
    if not isinstance(model, ReportStudent):
        logits = [presence_of(model, x).float().cpu() for x in _chunks(model, images, device=device)]
        return {"presence": torch.cat(logits).numpy()}
    seen = [model.forward_seen(x) for x in _chunks(model, images, device=device)]
    states = torch.cat([one.states.float().cpu() for one in seen])
    gate = torch.cat([one.gate.float().cpu() for one in seen])
    return {"presence": presence_logit(states).numpy(), "states": states.numpy(), "gate": gate.numpy()}


def drafts_write(path: Path, drafter: ReportDrafter, pictures: Mapping[str, bytes], *, model: str, films: str) -> None:
    """Append one JSON line a picture (by key: its encoded bytes), each a study of its own: what `drafter` wrote."""
    key = ModelKey(kind=ModelKind.REPORT, digest=drafter.digest, folder="")
    names = list(pictures)
    with path.open("a", encoding="utf-8") as stream:
        for start in range(0, len(names), BATCH):
            studies = tuple(
                StudyInput(key=name, images=(ImageInput(key=name, encoded=pictures[name]),))
                for name in names[start : start + BATCH]
            )
            for draft in drafter.draft(DraftRequest(model=key, studies=studies)).drafts:
                line = {
                    "model": model,
                    "films": films,
                    "key": draft.study_key,
                    "declined": draft.declined,
                    "findings": {finding.name: finding.state.value for finding in draft.findings},
                    "sentences": [[s.section.value, s.finding, s.text] for s in draft.sentences],
                }
                stream.write(json.dumps(line) + "\n")


def simulated_pictures(*, count: int, processes: int) -> dict[str, bytes]:
    """The films that report-quality measures on, as grey PNG of 16 bits by seed."""
    with ProcessPoolExecutor(processes) as pool:
        bodies = pool.map(_simulated_png, range(SIMULATED_FIRST, SIMULATED_FIRST + count))
        return {str(SIMULATED_FIRST + index): body for index, body in enumerate(bodies)}


def _simulated_png(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(render(seed, size=512).pixels * 16).save(stream, format="PNG")
    return stream.getvalue()


def _chunks(model: nn.Module, images: NDArray[np.uint8], *, device: str, batch: int = 32) -> Iterator[Tensor]:
    model.eval()
    for start in range(0, len(images), batch):
        yield torch.from_numpy(images[start : start + batch]).to(device)[:, None].float() / 255


def auc_mean(truth: NDArray[np.float32], scores: NDArray[np.float32], *, least: int = 5) -> dict[str, float]:
    """ROC-AUC of each finding with at least `least` positives, and their mean under "mean"."""
    from sklearn.metrics import roc_auc_score

    found = {
        name: float(roc_auc_score(truth[:, i], scores[:, i]))
        for i, name in enumerate(FINDINGS)
        if least <= truth[:, i].sum() < len(truth)
    }
    return {**found, "mean": float(np.mean(list(found.values()))) if found else float("nan")}
