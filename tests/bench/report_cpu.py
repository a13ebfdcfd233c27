"""Seconds for 16 drafts of 16 studies in one call on the CPU, decoding of the files included.

`assay` encodes by the engine measured fastest here (measured first), `assay by torch` by torch itself.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from ml_core.contracts import DraftRequest, ImageInput, ModelKey, ModelKind, StudyInput
from ml_core.data.phantom_dicom import make_studies
from ml_core.evals.bench import meta
from ml_core.evals.bench import row as bench_row
from ml_core.evals.report import SHIPPED
from ml_core.serving.engines.artifact import measure_artifact
from ml_core.serving.engines.table import lines
from ml_core.serving.report import BATCH, ReportDrafter

RESULT = Path(__file__).parent / "results" / "report-cpu.json"
_RUNS = 7


def main() -> int:
    """Time, write the result file, print it as one line of JSON."""
    with tempfile.TemporaryDirectory() as tables:
        chosen, _ = measure_artifact(SHIPPED, into=Path(tables))
        drafters = {"assay": ReportDrafter(SHIPPED, tables=Path(tables)), "assay by torch": ReportDrafter(SHIPPED)}
    rows: list[dict[str, Any]] = []
    for system, drafter in drafters.items():
        rows += _rows(drafter, system=system)
    about = meta("report-cpu", packages=("torch", "timm", "pydicom", "onnxruntime", "openvino"))
    about |= {"model_digest": drafters["assay"].digest, "engines": lines(chosen)}
    result = {"meta": about, "rows": rows}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


def _rows(drafter: ReportDrafter, *, system: str) -> list[dict[str, Any]]:
    rows = []
    files = [study.files[0][1] for study in make_studies(31, patients=BATCH, priors=0.0)]
    for count in (1, BATCH):
        request = DraftRequest(
            model=ModelKey(kind=ModelKind.REPORT, digest=drafter.digest, folder=""),
            studies=tuple(
                StudyInput(key=str(index), images=(ImageInput(key="1", encoded=body),))
                for index, body in enumerate(files[:count])
            ),
        )
        drafter.draft(request)
        seconds = [drafter.draft(request).seconds for _ in range(_RUNS)]
        rows.append(bench_row(f"report-cpu/{count}", system=system, metric="s", unit="s", values=seconds))
    return rows
