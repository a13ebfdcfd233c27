"""The measured table: what it chooses, what it says, where it lies, and that damage is never passed over."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ml_core.errors import InputError
from ml_core.serving.engines import table as tables
from ml_core.serving.engines.machine import this_machine
from ml_core.serving.engines.table import FORMAT, Shape, Table, TableError, Timing, Tried

ROOT = Path(__file__).resolve().parents[5]
DIGEST = "ab" * 32


def timing(ms):
    return Timing(ms=ms, low=ms, high=ms, n=9)


def made(shapes, *, together=False, refused=None):
    names = list(next(iter(shapes.values())))
    systems = [Tried(name=name, version="1", precision="int8") for name in names]
    systems += [Tried(name=name, version="1", precision="int8", refused=why) for name, why in (refused or {}).items()]
    return Table(
        format=FORMAT, digest=DIGEST, machine=this_machine(threads=1), made="2026-11-26T00:00:00Z",
        reference="torch int8", together=together, systems=tuple(systems),
        shapes=tuple(
            Shape(sizes={"b": b}, timings={name: timing(ms) for name, ms in times.items()})
            for b, times in shapes.items()
        ),
    )  # fmt: skip


def chosen(table):
    return [choice.system for choice in tables.choose(table)]


def test_each_shape_gets_its_fastest_and_the_reason_is_said():
    table = made(
        {1: {"torch int8": 5.2, "openvino int8": 3.1}, 64: {"torch int8": 40.0, "openvino int8": 50.0}},
        refused={"onnxruntime int8": "its products saturate"},
    )
    assert chosen(table) == ["openvino int8", "torch int8"]
    said = "\n".join(tables.lines(table))
    assert "b1: openvino int8, 3.1 ms, torch int8 5.2 ms (1.7x)" in said
    assert "b64: torch int8, 40 ms; the best of the others is openvino int8, 50 ms" in said
    assert "refused: onnxruntime int8: its products saturate" in said


def test_one_system_serves_all_shapes_where_answers_may_not_depend_on_the_batch():
    table = made(
        {
            1: {"torch int8": 5.0, "openvino int8": 1.0, "onnxruntime int8": 2.0},
            64: {"torch int8": 40.0, "openvino int8": 50.0, "onnxruntime int8": 20.0},
        },
        together=True,
    )
    assert chosen(table) == ["onnxruntime int8", "onnxruntime int8"]


def test_a_gain_within_the_margin_is_none():
    assert chosen(made({1: {"torch int8": 1.0, "openvino int8": 0.97}})) == ["torch int8"]


def test_the_nearest_measured_shape_decides():
    table = made({1: {"torch int8": 2.0, "openvino int8": 1.0}, 64: {"torch int8": 1.0, "openvino int8": 2.0}})
    assert tables.chosen_for(table, {"b": 3}).system == "openvino int8"
    assert tables.chosen_for(table, {"b": 40}).system == "torch int8"


def test_a_table_comes_back_and_only_for_its_artifact_and_machine(tmp_path):
    table = made({1: {"torch int8": 2.0}})
    tables.write(tmp_path, table, graphs={})
    assert tables.read(tmp_path, digest=DIGEST, machine=table.machine) == table
    assert tables.read(tmp_path, digest="cd" * 32, machine=table.machine) is None
    for other in (
        replace(table.machine, threads=2),
        replace(table.machine, cpu="another"),
        replace(table.machine, flags=("amx_int8",)),
        replace(table.machine, versions=table.machine.versions | {"openvino": "absent"}),
    ):
        assert tables.read(tmp_path, digest=DIGEST, machine=other) is None


def test_a_damaged_table_is_an_error(tmp_path):
    table = made({1: {"torch int8": 2.0}})
    path = tables.write(tmp_path, table, graphs={})
    path.write_text(path.read_text().replace("made", "mad"))
    with pytest.raises(TableError, match="measure again"):
        tables.read(tmp_path, digest=DIGEST, machine=table.machine)
    path.write_text(json.dumps(json.loads(tables.write(tmp_path, table, graphs={}).read_text()) | {"format": 99}))
    with pytest.raises(TableError, match="another version"):
        tables.read(tmp_path, digest=DIGEST, machine=table.machine)


def test_a_graph_that_changed_or_went_is_an_error(tmp_path):
    entry = Tried(name="openvino int8", version="1", precision="int8", file="a.onnx", sha256="0" * 64)
    with pytest.raises(TableError, match=r"a\.onnx"):
        tables.graph(tmp_path, entry)
    (tmp_path / "a.onnx").write_bytes(b"other")
    with pytest.raises(TableError, match="not the graph"):
        tables.graph(tmp_path, entry)


def test_describe_and_the_table_import_neither_torch_nor_an_engine(tmp_path):
    from testkit.artifacts import artifact_make

    artifact_make(tmp_path / "a")
    code = (
        "import sys\nfrom ml_core.__main__ import main\n"
        "import ml_core.serving.engines.table, ml_core.serving.engines.artifact, ml_core.serving.engines.build\n"
        f"main(['describe', {str(tmp_path / 'a')!r}, '--tables', {str(tmp_path)!r}])\n"
        "heavy = {'torch', 'numpy', 'openvino', 'onnxruntime', 'onnx', 'onnxscript'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (
        f"not measured on this machine: torch CPU. To measure: python -m ml_core measure {tmp_path / 'a'}"
        in done.stdout
    )


def test_no_engine_is_imported_before_it_is_chosen():
    code = (
        "import sys\n"
        "import ml_core.serving.fraud, ml_core.serving.report, ml_core.serving.engines.measure\n"
        "import ml_core.serving.engines.onnxruntime, ml_core.serving.engines.openvino\n"
        "heavy = {'openvino', 'onnxruntime', 'onnx', 'onnxscript'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_openvino_tells_nobody_that_it_was_imported():
    code = (
        "import sys\n"
        "from ml_core.serving.engines.packages import installed\n"
        "installed('openvino')\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "assert telemetry_utils.tm.__name__.endswith('telemetry_stub'), telemetry_utils.tm\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_form_that_does_not_fit_is_refused(tiny):
    from ml_core.serving.engines.forms import spelt

    with pytest.raises(InputError, match="does not fit"):
        spelt(tiny.module, form="float")


def test_integer_layers_that_no_form_spells_are_refused():
    import torch
    from torch import nn

    from ml_core.quant import Quantizer
    from ml_core.serving.engines.forms import spelt

    torch.manual_seed(0)
    model, _ = Quantizer(nn.Sequential(nn.Linear(8, 8)), bits=4).convert()
    with pytest.raises(InputError, match="no engine but torch runs GeneralQuantLinear"):
        spelt(model, form="u8u8")
