"""Seconds for 16 drafts of 16 studies in one call on the CPU, decoding of the files included."""

import json
import time
from pathlib import Path
from typing import Any

from ml_core.contracts import DraftRequest, ImageInput, ModelKey, ModelKind, StudyInput
from ml_core.data.phantom_dicom import make_studies
from ml_core.evals.bench import meta
from ml_core.evals.bench import row as bench_row
from ml_core.evals.report import SHIPPED
from ml_core.serving.report import BATCH, ReportDrafter

RESULT = Path(__file__).parent / "results" / "report-cpu.json"
_RUNS = 7


def main() -> int:
    """Time, write the result file, print it as one line of JSON."""
    started = time.perf_counter()
    drafter = ReportDrafter(SHIPPED)
    loaded = (time.perf_counter() - started) * 1000
    rows: list[dict[str, Any]] = []
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
        rows.append(bench_row(f"{count} studies", system="assay int8", metric="seconds", unit="s", values=seconds))
    rows.append(bench_row("load", system="assay int8", metric="load", unit="ms", values=[loaded]))
    about = meta("report-cpu", packages=("torch", "timm", "pydicom")) | {"model_digest": drafter.digest}
    result = {"meta": about, "rows": rows}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0
