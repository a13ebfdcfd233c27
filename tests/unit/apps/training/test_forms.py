"""The form that starts a run."""

from datetime import UTC, datetime

import pytest

from apps.training.forms import RunForm

TODAY = datetime(2026, 6, 1, 12, tzinfo=UTC)
GOOD = {
    "recipe": "fraud_dfad_small",
    "since": "2026-03-01",
    "until": "2026-06-01",
    "teacher": "lightgbm",
    "student": "small",
    "epochs": "3",
    "seed": "7",
}


def make_form(**fields: str) -> RunForm:
    return RunForm(GOOD | fields, today=TODAY)


def test_what_the_form_proposes_is_a_valid_run():
    blank = RunForm(today=TODAY)
    proposed = {name: str(field.initial) for name, field in blank.fields.items() if field.initial is not None}
    first = {name: blank.fields[name].choices[0][0] for name in ("recipe", "teacher", "student")}
    assert RunForm(first | proposed, today=TODAY).is_valid()


def test_a_window_is_midnight_to_midnight_in_utc():
    form = make_form()
    assert form.is_valid()
    fields = form.run_fields()
    assert fields["since"] == datetime(2026, 3, 1, tzinfo=UTC)
    assert fields["params"] == {"epochs": 3, "teacher": "lightgbm", "student": "small"}
    assert fields["seed"] == 7


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"recipe": "nonsense"}, "recipe"),
        ({"since": ""}, "since"),
        ({"until": "2026-03-05"}, "until"),
        ({"until": "2026-02-01"}, "until"),
        ({"since": "no date"}, "since"),
        ({"epochs": "0"}, "epochs"),
        ({"epochs": "51"}, "epochs"),
        ({"seed": "-1"}, "seed"),
        ({"teacher": "nobody"}, "teacher"),
        ({"teacher": "self"}, "teacher"),
    ],
)
def test_each_mistake_is_told_at_its_field(fields, wrong):
    assert list(make_form(**fields).errors) == [wrong]


def test_a_recipe_without_a_window_needs_none_and_takes_none():
    form = make_form(recipe="report_dfad_small", teacher="self", since="", until="")
    assert form.is_valid(), form.errors
    assert "since" not in form.run_fields()
