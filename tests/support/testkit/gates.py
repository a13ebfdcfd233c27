"""Gates that no other tool holds: sizes of files, and a first line that says what a file is for."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
LINES_MAX = 400
LINES_MAX_MODEL = 600  # one model architecture in one file
BYTES_MAX = 12 * 2**20
_CODE = {".py", ".mjs", ".css", ".html"}


def faults_find() -> list[str]:
    """Every tracked file that breaks a gate, with the reason."""
    faults = []
    for name in _tracked():
        path = ROOT / name
        if not path.is_file():
            continue
        if (size := path.stat().st_size) > BYTES_MAX:
            faults.append(f"{name}: {size / 2**20:.1f} MiB; at most {BYTES_MAX / 2**20:.0f}")
        if path.suffix in _CODE:
            faults += _code_faults(name, path)
    return faults


def _code_faults(name: str, path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    limit = LINES_MAX_MODEL if name.startswith("ml_core/models/") else LINES_MAX
    faults = [f"{name}: {lines} lines; at most {limit}"] if lines > limit else []
    is_generated = "/migrations/" in name
    if path.suffix == ".py" and text.strip() and not is_generated and ast.get_docstring(ast.parse(text)) is None:
        faults.append(f"{name}: its first line must say what it is for")
    return faults


def _tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [name for name in listed.split("\0") if name]


if __name__ == "__main__":
    found = faults_find()
    print("\n".join(found) or "sizes and first lines: ok")
    sys.exit(bool(found))
