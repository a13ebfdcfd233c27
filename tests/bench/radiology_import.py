"""Speed of intake: files judged, decoded and stored a second, on self-made radiographs and on the shared corpus."""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "radiology-import.json"
_FILES = 200
_SIDE = 1024


def main() -> int:
    """Measure in a database and storage of its own, write the result file, print it as one line of JSON."""
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"ASSAY_HOME": home, "DJANGO_SETTINGS_MODULE": "config.settings.test", "DATABASE_URL": ""}
        import django

        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        rows = _measure(Path(home))
    from ml_core.evals.bench import meta

    about = meta("radiology-import", packages=("pydicom", "numpy", "Django")) | {
        "command": " ".join(["python -m tests.bench.run", *sys.argv])
    }
    result = {"meta": about, "rows": rows}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


def _measure(home: Path) -> list[dict]:
    import numpy as np
    from testkit import dicom_files
    from testkit.shared import SHARED

    folder = home / "made"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 4096, (_SIDE, _SIDE), dtype=np.uint16)
    for index in range(_FILES):
        dataset = dicom_files.make_dataset(identifier=f"P{index // 2}")
        dicom_files.set_pixels(dataset, np.roll(noise, index), bits=12)
        (folder / f"{index:03}.dcm").write_bytes(dicom_files.to_bytes(dataset))
    rows = [_rate(f"{_FILES} radiographs, {_SIDE} x {_SIDE} of 12 bits", folder)]
    corpus = SHARED / "data" / "radiology" / "dicom" / "valid"
    if corpus.is_dir():
        rows.append(_rate("shared corpus, valid: 15 transfer syntaxes", corpus))
    return rows


def _rate(case: str, folder: Path) -> dict:
    from apps.accounts.contracts import Actor
    from apps.core import clock
    from apps.radiology.services.importing import path_import

    by = Actor(user_id=None, name="bench", role="system")
    began = time.perf_counter()
    result = path_import(path=folder, draft="none", by=by, now=clock.now, progress=lambda _done, _known: None)
    rate = len(result.files) / (time.perf_counter() - began)
    return {
        "case": case, "system": "Assay", "metric": "intake", "unit": "files/s", "value": round(rate, 1), "low": None,
        "high": None, "n": len(result.files),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
