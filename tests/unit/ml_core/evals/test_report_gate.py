"""What the gate's summary counts: pictures of a known kind that could be read."""

import numpy as np
import pytest
from testkit.shared import needs_shared

from tests.bench.report_gate import Answers, Folder, folders, summary


def make_answers(declined: list[bool], *, chest: bool | None, unreadable: int = 0) -> Answers:
    groups = tuple(f"p{index}" for index in range(len(declined)))
    folder = Folder(name=f"chest {chest}", paths=(), groups=groups, chest=chest)
    return Answers(folder=folder, declined=np.asarray(declined), groups=np.asarray(groups), unreadable=unreadable)


def test_precision_and_recall_of_declining_are_counted_over_pictures_of_a_known_kind() -> None:
    films = make_answers([True, False, False, False], chest=True, unreadable=7)
    slices = make_answers([True, True, True, False, False], chest=False)
    laterals = make_answers([True] * 9, chest=None)
    precision, recall = summary("gate: all pictures", [films, slices, laterals])
    assert (precision["metric"], precision["value"], precision["n"]) == ("precision of declining", 3 / 4, 4)
    assert (recall["metric"], recall["value"], recall["n"]) == ("recall of declining", 3 / 5, 5)
    assert precision["low"] < 3 / 4 < precision["high"]


def test_the_interval_resamples_patients_and_not_pictures() -> None:
    """Four pictures of one patient are one answer: with a second patient the mean is 0, ½ or 1, never between."""
    films = make_answers([], chest=True)
    slices = Answers(
        folder=Folder(name="medpix", paths=(), groups=(), chest=False),
        declined=np.asarray([True] * 4 + [False] * 4),
        groups=np.asarray(["a"] * 4 + ["b"] * 4),
        unreadable=0,
    )
    _, recall = summary("gate", [films, slices])
    assert (recall["low"], recall["value"], recall["high"]) == (0, pytest.approx(0.5), 1)


@needs_shared
@pytest.mark.shared
def test_every_shared_folder_with_pictures_is_asked_once() -> None:
    found = folders()
    paths = [path for folder in found for path in folder.paths]
    assert len(paths) == len(set(paths))
    assert all(path.is_file() for path in paths)
    assert {path.parts[path.parts.index("radiology") + 1] for path in paths} == {
        "nih_cxr", "serial_cxr", "vqa_rad", "cxr_notes", "medpix", "dicom",
    }  # fmt: skip
    assert sum(len(folder.paths) for folder in found if folder.name.startswith("medpix")) == 1850
