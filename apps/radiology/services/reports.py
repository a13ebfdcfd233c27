"""Reports: saving with optimistic concurrency, signing, and checking that what was signed is still what it was."""

import hashlib
from datetime import datetime
from typing import Any

from django.contrib.auth import get_user_model
from django.core.files.storage import default_storage
from django.db import transaction

from apps.accounts.api import Actor
from apps.audit.api import AuditEvent, record
from apps.core.errors import AppError, ConflictError, NotAllowedError
from apps.radiology.contracts import Verification
from apps.radiology.models import Instance, Report, ReportSignature, ReportState, Study
from apps.radiology.rules import signing

_SENTENCES = 200
_TEXT_LIMIT = 2_000


class PasswordError(AppError):
    """The password that was to confirm a signature is not the signer's."""

    code = "wrong_password"
    status = 403


def report_save(*, study: Study, version: int, sentences: list[dict[str, Any]], by: Actor, at: datetime) -> Report:
    """Write the sentences if nobody else did since `version` (0: there was no report); it becomes preliminary.

    Raises ConflictError with who changed it, NotAllowedError once it is signed.
    """
    with transaction.atomic():
        if version == 0:
            _report, begun = Report.objects.get_or_create(study=study, defaults={"created_at": at, "updated_at": at})
            version = 1 if begun else 0
        report = _locked(study)
        _check_version(report, version)
        clean = _clean(sentences, report.sentences)
        if clean == report.sentences and report.state == ReportState.PRELIMINARY:
            return report
        report.sentences, report.state = clean, ReportState.PRELIMINARY
        report.version, report.updated_at, report.updated_by_id = version + 1, at, by.user_id
        report.full_clean()
        report.save()
        if study.reader_id is None:
            Study.objects.filter(pk=study.pk, reader=None).update(reader_id=by.user_id)
        record(_event(by, "report.save", study, at, {"version": report.version}))
    return report


def report_sign(*, study: Study, version: int, password: str, by: Actor, at: datetime) -> ReportSignature:
    """Make the text final and hash it with the images and the model.

    Raises PasswordError, ConflictError, NotAllowedError.
    """
    if by.user_id is None:
        raise NotAllowedError("Only a person can sign.")
    signer = get_user_model().objects.get(pk=by.user_id)
    if not signer.check_password(password):
        record(_event(by, "report.sign", study, at, {"why": "wrong password"}, allowed=False))
        raise PasswordError("That is not your password. Nothing was signed.")
    with transaction.atomic():
        report = _locked(study)
        _check_version(report, version)
        text = signing.report_text(report.sentences)
        if not text:
            raise NotAllowedError("An empty report cannot be signed.")
        questions = signing.open_questions(report.sentences)
        if questions:
            raise NotAllowedError(
                f"{questions} sentence(s) unsure or without support: confirm, rewrite or cut them first."
            )
        name = signer.get_full_name() or signer.get_username()
        signature = _signature(report, text=text, name=name, signer_id=signer.pk, at=at)
        report.state, report.version, report.updated_at, report.updated_by_id = (
            ReportState.FINAL, version + 1, at, by.user_id,
        )  # fmt: skip
        report.save()
        signature.full_clean()
        signature.save()
        Study.objects.filter(pk=study.pk).update(reader_id=by.user_id)
        record(_event(by, "report.sign", study, at, {"digest": signature.digest}))
    return signature


def signature_verify(*, signature: ReportSignature) -> Verification:
    """Recompute the hash from the report's text and from the image files as they lie in storage now."""
    faults = []
    text = signing.report_text(signature.report.sentences)
    if text != signature.text:
        faults.append("The text of the report is not the signed text.")
    for image in signature.images:
        found = _file_sha256(image["sop_uid"])
        if found != image["sha256"]:
            faults.append(f"Image {image['sop_uid']} is {'gone' if not found else 'not the image that was signed'}.")
    digest = signing.report_digest(
        text=signature.text, images=signature.images, model_digest=signature.model_digest,
        signer=signature.signer_name, signed_at=signature.signed_at.isoformat(),
    )  # fmt: skip
    if digest != signature.digest:
        faults.append("The hash does not fit the signed text, images, model, signer and time.")
    return Verification(intact=not faults, faults=tuple(faults))


def _locked(study: Study) -> Report:
    report = Report.objects.select_for_update().filter(study=study).first()
    if report is None:
        raise NotAllowedError("This study has no report yet.")
    if report.state == ReportState.FINAL:
        raise NotAllowedError("This report is signed; its text cannot change.")
    return report


def _check_version(report: Report, version: int) -> None:
    if report.version != version:
        who = report.updated_by.get_username() if report.updated_by else "A new draft"
        raise ConflictError(
            f"{who} changed this report at {report.updated_at:%H:%M:%S} UTC."
            " Your text is still here: copy it, then reload."
        )


def _clean(sentences: list[dict[str, Any]], before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Take text, section, confirmation and place from the editor; confidence and region only from what is stored."""
    if len(sentences) > _SENTENCES:
        raise NotAllowedError(f"A report has at most {_SENTENCES} sentences.")
    rows = []
    for sent in sentences:
        source = sent.get("source")
        known = before[source] if isinstance(source, int) and 0 <= source < len(before) else None
        text = " ".join(str(sent.get("text", "")).split())[:_TEXT_LIMIT]
        section = sent.get("section")
        if section not in dict(signing.SECTIONS):
            raise NotAllowedError("A sentence belongs to Findings or Impression.")
        if not text:
            continue
        if known is None:
            rows.append(
                {
                    "section": section, "text": text, "confidence": None, "finding": "", "image_key": "", "box": None,
                    "supported": True, "confirmed": True, "origin": "person",
                }
            )  # fmt: skip
            continue
        changed = text != known["text"]
        row = {**known, "section": section, "text": text}
        if changed:
            row |= {"origin": "edited", "confirmed": True, "original": known.get("original", known["text"])}
        elif sent.get("confirmed") is True:
            row["confirmed"] = True
        rows.append(row)
    return rows


def _signature(report: Report, *, text: str, name: str, signer_id: int, at: datetime) -> ReportSignature:
    images = [
        {"sop_uid": sop_uid, "sha256": digest}
        for sop_uid, digest in Instance.objects.filter(series__study=report.study_id)
        .order_by("sop_uid")
        .values_list("sop_uid", "stored_sha256")
    ]
    model = report.draft.model_digest if report.draft else ""
    digest = signing.report_digest(text=text, images=images, model_digest=model, signer=name, signed_at=at.isoformat())
    return ReportSignature(
        report=report, signer_id=signer_id, signer_name=name, signed_at=at, text=text, images=images,
        model_digest=model, digest=digest,
    )  # fmt: skip


def _file_sha256(sop_uid: str) -> str:
    instance = Instance.objects.filter(sop_uid=sop_uid).first()
    if instance is None or not default_storage.exists(instance.file_key):
        return ""
    with default_storage.open(instance.file_key) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _event(
    by: Actor, verb: str, study: Study, at: datetime, detail: dict[str, object], *, allowed: bool = True
) -> AuditEvent:
    return AuditEvent(
        actor=by, verb=verb, object_type="study", object_id=study.uid, at=at, detail=detail, allowed=allowed
    )
