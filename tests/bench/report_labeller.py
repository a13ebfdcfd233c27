"""The rule labeller against the hand labels of the IU reports: val and `none` (train is where rules were written).

"No finding" is not comparable: IU's normal also leaves out scars, granulomas and degenerative change, which are no
CheXpert findings; it gets its row, and stays out of the micro figure.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from testkit.shared import SHARED

from ml_core.contracts import FindingState
from ml_core.data.labeller import label_report
from ml_core.evals.bench import meta
from ml_core.evals.report import f1_interval

REPORTS = SHARED / "data" / "radiology" / "iu_reports"
RESULT = Path(__file__).parent / "results" / "report-labeller.json"
_OURS: dict[str, tuple[str, ...]] = {
    "cardiomegaly": ("Cardiomegaly",),
    "atelectasis": ("Atelectasis",),
    "opacity": ("Lung Opacity",),
    "consolidation or pneumonia": ("Consolidation", "Pneumonia"),
    "oedema or congestion": ("Edema",),
    "pleural effusion": ("Pleural Effusion",),
    "pneumothorax": ("Pneumothorax",),
    "nodule or mass": ("Lung Lesion",),
    "fracture": ("Fracture",),
    "device": ("Support Devices",),
    "no finding": ("No Finding",),
}


def main() -> int:
    """Label, compare, write the result file, print it as one line of JSON."""
    if not REPORTS.is_dir():
        raise SystemExit(f"the shared data is not at {REPORTS}")
    rows = [*_rows("train", {"train"}), *_rows("val + none", {"val", "none"})]
    result = {"meta": meta("report-labeller", packages=("numpy",)), "rows": rows}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


def _rows(case: str, splits: set[str]) -> list[dict[str, Any]]:
    heads_of = json.loads((REPORTS / "label_map.json").read_text())
    truth, stated = [], []
    for line in (REPORTS / "reports.jsonl").read_text().splitlines():
        report = json.loads(line)
        text = f"{report['findings']}. {report['impression']}".strip(". ")
        heads = {term.split("/")[0].lower() for term in report["mesh_major"]}
        if report["split"] not in splits or not text or "no indexing" in heads:
            continue
        states = label_report(text)
        truth.append([float(any(head in heads for head in heads_of[name])) for name in _OURS])
        stated.append([float(any(states[own] is FindingState.POSITIVE for own in ours)) for ours in _OURS.values()])
    t, s = np.asarray(truth, dtype=np.float32), np.asarray(stated, dtype=np.float32)
    groups = {"micro": list(range(len(_OURS) - 1))} | {name: [index] for index, name in enumerate(_OURS)}
    rows = []
    for name, columns in groups.items():
        figure = f1_interval(t, s, columns=columns, patients=np.arange(len(t)))
        for metric in ("f1", "precision", "recall"):
            low, high = (figure["low"], figure["high"]) if metric == "f1" else (figure[metric], figure[metric])
            rows.append({
                "case": f"IU {case}", "system": "assay rules", "metric": f"{metric} {name}", "value": figure[metric],
                "unit": "share", "low": low, "high": high, "n": int(t[:, columns].sum()),
            })  # fmt: skip
    return rows
