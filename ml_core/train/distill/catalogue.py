"""Which cases there are, by family and name, and the trainer that the benchmark is handed: measure and tune."""

import logging
from collections.abc import Sequence

import torch

from ml_core.distill.tasks.request import Request, Tuned
from ml_core.distill.tasks.results import CaseResult
from ml_core.distill.tasks.task import Case
from ml_core.errors import InputError
from ml_core.train.distill import protocol

_LOG = logging.getLogger(__name__)


def measure(request: Request, *, tuned: Tuned) -> list[CaseResult]:
    """All cells of the request; those that its folder has already are not run again. `recorded`: those alone."""
    run = protocol.recorded if request.recorded else protocol.measure
    return run(_plan(request, tuned=tuned), say=_LOG.info)


def tune(request: Request, *, case: str) -> Tuned:
    """Settings chosen on the dev split of one case. Raises InputError where the word names none or several."""
    found = cases_named([case], request=request)
    if len(found) != 1:
        raise InputError(f"tune: {case!r} names {len(found)} cases: {', '.join(c.name for c in found)}")
    return protocol.tune(found[0], _plan(request, tuned=Tuned()), say=_LOG.info)


def cases_all(request: Request) -> list[Case]:
    """Every case that the request's files allow; nothing is read yet but what folders hold.

    A family whose packages are not installed has none, and the log says so: a text run needs no LightGBM.
    """
    found: list[Case] = []
    for family in (_digits, _fraud, _text, _films):
        try:
            found += family(request)
        except ModuleNotFoundError as error:
            _LOG.warning("no cases of %s: the package %s is not installed", family.__name__[1:], error.name)
    return found


def cases_named(words: Sequence[str], *, request: Request) -> list[Case]:
    """Cases by family, whole name (or that of student/task), else part of it. InputError for a word that means none."""
    found = cases_all(request)
    chosen: list[Case] = []
    for word in words:
        some = (
            [case for case in found if word == case.family]
            or [case for case in found if word in (case.name, case.name.partition(">")[2])]
            or [case for case in found if word in case.name]
        )
        if not some:
            raise InputError(
                f"tasks: {word!r} names no case{_hint(word)}; there are {', '.join(c.name for c in found)}"
            )
        chosen += [case for case in some if case not in chosen]
    return chosen


def _plan(request: Request, *, tuned: Tuned) -> protocol.Plan:
    return protocol.Plan(
        cases=cases_named(request.tasks, request=request),
        systems=request.systems,
        seeds=request.seeds,
        tuned=tuned,
        work=request.work,
        device=device_named(request.device),
        cached=request.cached,
        graphs=request.graphs,
        waits=request.waits,
    )


def device_named(name: str) -> torch.device:
    """ "auto" takes CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _digits(request: Request) -> list[Case]:
    from ml_core.distill.tasks import digits

    return digits.cases(quick=request.quick)


def _fraud(request: Request) -> list[Case]:
    from ml_core.train.distill import fraud

    return fraud.cases(quick=request.quick)


def _text(request: Request) -> list[Case]:
    from ml_core.distill.tasks import text

    if request.text_data is None or request.teacher is None:
        return []
    return text.cases(
        request.text_data, teacher=request.teacher, student=request.student, general=request.general,
        quick=request.quick,
    )  # fmt: skip


def _films(request: Request) -> list[Case]:
    from ml_core.distill.tasks import films

    return [] if request.films is None else films.cases(request.films, stem=request.stem, quick=request.quick)


def _hint(word: str) -> str:
    needs = {"text": "--text-data and --teacher", "films": "--films"}
    return f" (it needs {needs[word]})" if word in needs else ""
