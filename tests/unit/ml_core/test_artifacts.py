"""Artifacts: whole or not at all, verified at every reading, tied tensors stored once."""

import json
import subprocess
import sys

import pytest
import torch

from ml_core import artifacts
from ml_core.contracts import ModelKind
from ml_core.errors import ArtifactError


def write(folder, **given):
    settings = {
        "kind": ModelKind.FRAUD,
        "name": "student",
        "recipe": "test",
        "config": {"d": 64},
        "tensors": {"a": torch.arange(6.0).reshape(2, 3)},
        "metrics": {"ap": 0.5},
        "data_digest": "d",
        "teacher_digest": "t",
        "parameters": 6,
        "licence": "Apache-2.0",
        "card": "# Student — Karte",
    }
    return artifacts.write(folder, **{**settings, **given})


def test_what_is_written_can_be_read(tmp_path):
    described = write(tmp_path / "a", extra_files={"tokenizer.json": b"{}"})
    manifest = artifacts.read(tmp_path / "a")
    assert manifest.digest == described.digest
    assert manifest.config == {"d": 64}
    assert set(manifest.files) == {"model.safetensors", "card.md", "tokenizer.json"}
    assert described.card == "# Student — Karte"
    assert described.size_bytes == sum((tmp_path / "a" / name).stat().st_size for name in manifest.files)
    assert torch.equal(artifacts.load_tensors(tmp_path / "a")["a"], torch.arange(6.0).reshape(2, 3))


def test_the_digest_names_the_content_and_not_the_place(tmp_path):
    from datetime import UTC, datetime

    at = datetime(2026, 1, 2, tzinfo=UTC)
    same = {write(tmp_path / name, created=at).digest for name in "ab"}
    other = write(tmp_path / "c", created=at, tensors={"a": torch.zeros(2, 3)}).digest
    assert len(same) == 1
    assert other not in same


@pytest.mark.parametrize("name", ["model.safetensors", "card.md", "manifest.json"])
def test_one_changed_byte_is_found(tmp_path, name):
    write(tmp_path / "a")
    path = tmp_path / "a" / name
    body = bytearray(path.read_bytes())
    body[-3] ^= 1
    path.write_bytes(bytes(body))
    with pytest.raises(ArtifactError):
        artifacts.read(tmp_path / "a")


def test_a_changed_metric_is_found(tmp_path):
    write(tmp_path / "a")
    path = tmp_path / "a" / "manifest.json"
    body = json.loads(path.read_text())
    body["metrics"]["ap"] = 0.99
    path.write_text(json.dumps(body))
    with pytest.raises(ArtifactError, match="digest"):
        artifacts.read(tmp_path / "a")


def test_a_missing_file_or_folder_is_named(tmp_path):
    write(tmp_path / "a")
    (tmp_path / "a" / "card.md").unlink()
    with pytest.raises(ArtifactError, match="card.md is missing"):
        artifacts.read(tmp_path / "a")
    with pytest.raises(ArtifactError, match="holds no manifest.json"):
        artifacts.read(tmp_path / "nothing")


def test_tied_tensors_are_stored_once_and_come_back_tied(tmp_path):
    weight = torch.randn(100, 10)
    size = write(tmp_path / "one", tensors={"a": weight}).size_bytes
    tied = write(tmp_path / "two", tensors={"a": weight, "b": weight, "c": weight.t()[:2]})
    loaded = artifacts.load_tensors(tmp_path / "two")
    assert loaded["a"] is loaded["b"]
    assert torch.equal(loaded["c"], weight.t()[:2])
    assert tied.size_bytes < size + 2 * 100 * 4 + 500


def test_an_artifact_is_replaced_and_nothing_else_is(tmp_path):
    first = write(tmp_path / "a")
    assert write(tmp_path / "a", name="second").digest != first.digest
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("dear")
    with pytest.raises(ArtifactError, match="not an artifact"):
        write(tmp_path / "home")
    assert (tmp_path / "home" / "thesis.txt").exists()


@pytest.mark.parametrize("name", ["../x", "manifest.json", ".hidden", "a/b"])
def test_extra_files_have_plain_names(tmp_path, name):
    with pytest.raises(ArtifactError, match="extra_files"):
        write(tmp_path / "a", extra_files={name: b""})


def test_reading_needs_no_torch(tmp_path):
    write(tmp_path / "a")
    code = (
        "import sys; from ml_core import artifacts; artifacts.describe(sys.argv[1]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=True)
