"""Who may see and who may write what of radiology."""

from django.http import Http404

from apps.accounts.api import Actor, Role
from apps.radiology import selectors
from apps.radiology.models import Instance, Study

READERS = (Role.RADIOLOGIST, Role.ADMIN, Role.AUDITOR)
WRITERS = (Role.RADIOLOGIST,)


def study_for(actor: Actor, *, uid: str) -> Study:
    """The study if this person may see it; else 404, so that a stranger does not learn that it exists."""
    study = selectors.study_get(uid=uid) if actor.role in READERS else None
    if study is None:
        raise Http404
    return study


def instance_for(actor: Actor, *, study_uid: str, series_uid: str, sop_uid: str) -> Instance:
    """The image if this person may see its study and it lies where the URL says; else 404."""
    found = None
    if actor.role in READERS:
        found = selectors.instance_get(study_uid=study_uid, series_uid=series_uid, sop_uid=sop_uid)
    if found is None:
        raise Http404
    return found
