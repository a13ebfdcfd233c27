"""One named distillation: its folder, its parameters, what it refuses."""

import json

import pytest
from safetensors.torch import load_file

from ml_core.__main__ import main
from ml_core.errors import InputError
from ml_core.recipes import DISTILLATIONS, distillation
from ml_core.train.distill.named import named_run


def test_every_recipe_names_itself_and_is_run_by_distill(tmp_path, capsys):
    assert all(make().name == name for name, make in DISTILLATIONS.items())
    folder = tmp_path / "run"
    arguments = ["distill", "--recipe", "digits_vit_dfad", "--out", str(folder), "quick=1", "dfad_alpha=0.3", "--json"]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == json.loads((folder / "result.json").read_text())
    assert printed["tuned"]["dfad_alpha"] == 0.3
    assert printed["cell"]["student_start"] == "random"
    weights = load_file(folder / "student.safetensors")
    assert sum(value.numel() for value in weights.values()) == printed["cell"]["params"]
    assert (folder / printed["cell"]["outputs"]).exists()
    assert (folder / "events.jsonl").exists()


def test_unknown_inputs_parameters_and_systems_are_errors(tmp_path):
    recipe = distillation("digits_cnn_dfad")
    for inputs, params, word in (
        ({"nix": "x"}, {}, "nix"),
        ({}, {"nix": 1}, "nix"),
        ({}, {"system": "six"}, "several"),
    ):
        with pytest.raises(InputError, match=word):
            named_run(recipe, folder=tmp_path, seed=0, inputs=inputs, params=params)


def test_a_recipe_whose_files_are_not_named_says_which_option_it_needs(tmp_path):
    with pytest.raises(InputError, match="names no case"):
        named_run(distillation("sst2_22m_dfad"), folder=tmp_path, seed=0, inputs={}, params={})
