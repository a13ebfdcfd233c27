"""Batches of files, patients, studies, series, images, drafts, reports and their signatures."""

import uuid

from django.conf import settings
from django.db import models


class Priority(models.IntegerChoices):
    """As ordered by the sender; AI may raise a flag beside it and never changes it."""

    STAT = 0, "STAT"
    URGENT = 1, "urgent"
    ROUTINE = 2, "routine"


class FileState(models.TextChoices):
    """Where a file is on its way."""

    QUEUED = "queued", "waiting"
    RUNNING = "running", "being read"
    DONE = "done", "done"


class FileStatus(models.TextChoices):
    """What became of a file."""

    STORED = "stored", "stored"
    DUPLICATE = "duplicate", "duplicate"
    QUARANTINED = "quarantined", "quarantined"
    NOT_DISPLAYABLE = "not_displayable", "not displayable"
    REFUSED = "refused", "refused"


class DraftState(models.TextChoices):
    """State of the work on a draft."""

    QUEUED = "QUEUED", "waiting"
    RUNNING = "RUNNING", "drafting"
    DONE = "DONE", "done"
    FAILED = "FAILED", "failed"
    LOST = "LOST", "lost"


class ReportState(models.TextChoices):
    """State of a report; final text never changes (migration 0002)."""

    DRAFT = "draft", "draft"
    PRELIMINARY = "preliminary", "preliminary"
    FINAL = "final", "final"


class Batch(models.Model):
    """Files that arrived together."""

    uid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    name = models.CharField(max_length=200, blank=True)
    source = models.CharField(max_length=20, default="upload")
    priority = models.PositiveSmallIntegerField(choices=Priority.choices, default=Priority.ROUTINE)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    created_at = models.DateTimeField()

    class Meta:
        ordering = ["-created_at", "-pk"]
        verbose_name_plural = "batches"

    def __str__(self) -> str:
        return self.name or f"batch {self.pk}"


class Patient(models.Model):
    """A person as the files name them (private) and the pseudonym that pages show."""

    key = models.CharField(max_length=64, unique=True)  # keyed hash of the identifier and name
    pseudonym = models.CharField(max_length=16, unique=True)
    name = models.CharField(max_length=200, blank=True)
    identifier = models.CharField(max_length=200, blank=True)
    sex = models.CharField(max_length=1, blank=True)
    birth_date = models.DateField(null=True, blank=True)

    def __str__(self) -> str:
        return self.pseudonym


class Study(models.Model):
    """One examination."""

    uid = models.CharField(max_length=64, unique=True)
    patient = models.ForeignKey(Patient, on_delete=models.PROTECT, related_name="studies")
    batch = models.ForeignKey(Batch, null=True, blank=True, on_delete=models.PROTECT, related_name="studies")
    modality = models.CharField(max_length=16)
    body_part = models.CharField(max_length=64, blank=True)
    description = models.CharField(max_length=200, blank=True)
    age = models.CharField(max_length=8, blank=True)
    study_date = models.DateField(null=True, blank=True)
    priority = models.PositiveSmallIntegerField(choices=Priority.choices, default=Priority.ROUTINE)
    ai_flag = models.CharField(max_length=200, blank=True)
    reader = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    arrived_at = models.DateTimeField()

    class Meta:
        verbose_name_plural = "studies"
        indexes = [models.Index(fields=["priority", "arrived_at"], name="radiology_study_order")]

    def __str__(self) -> str:
        return f"{self.patient.pseudonym} {self.modality}"


class Series(models.Model):
    """Images taken in one go."""

    uid = models.CharField(max_length=64)
    study = models.ForeignKey(Study, on_delete=models.CASCADE, related_name="series")
    modality = models.CharField(max_length=16)
    description = models.CharField(max_length=200, blank=True)
    number = models.IntegerField(default=0)

    class Meta:
        ordering = ["number", "pk"]
        verbose_name_plural = "series"
        constraints = [models.UniqueConstraint(fields=["study", "uid"], name="radiology_series_once")]

    def __str__(self) -> str:
        return self.description or f"{self.modality} {self.number}"


class Instance(models.Model):
    """One stored object: its file, and where it can be shown its display frames (see rules.display)."""

    sop_uid = models.CharField(max_length=64, unique=True)
    series = models.ForeignKey(Series, on_delete=models.CASCADE, related_name="instances")
    sop_class = models.CharField(max_length=64)
    transfer_syntax = models.CharField(max_length=64, blank=True)
    transfer_syntax_name = models.CharField(max_length=120, blank=True)
    sha256 = models.CharField(max_length=64)  # of the bytes that were sent
    stored_sha256 = models.CharField(max_length=64)  # of the bytes that are kept (preamble zeroed)
    size_bytes = models.BigIntegerField()
    file_key = models.CharField(max_length=200)
    modality = models.CharField(max_length=16)
    body_part = models.CharField(max_length=64, blank=True)
    view = models.CharField(max_length=16, blank=True)
    laterality = models.CharField(max_length=16, blank=True)
    number = models.IntegerField(default=0)
    position = models.FloatField(null=True, blank=True)
    displayable = models.BooleanField()
    reason = models.CharField(max_length=300, blank=True)
    frames_key = models.CharField(max_length=200, blank=True)
    thumb_key = models.CharField(max_length=200, blank=True)
    rows = models.PositiveIntegerField(default=0)
    columns = models.PositiveIntegerField(default=0)
    frames = models.PositiveIntegerField(default=0)
    bits = models.PositiveSmallIntegerField(default=0)
    signed = models.BooleanField(default=False)
    samples = models.PositiveSmallIntegerField(default=0)
    photometric = models.CharField(max_length=32, blank=True)
    slope = models.FloatField(default=1.0)
    intercept = models.FloatField(default=0.0)
    low = models.FloatField(default=0.0)
    high = models.FloatField(default=0.0)
    windows = models.JSONField(default=list, blank=True)
    created_at = models.DateTimeField()

    class Meta:
        ordering = ["position", "number", "pk"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(displayable=False) | ~models.Q(frames_key=""),
                name="radiology_displayable_has_frames",
            )
        ]

    def __str__(self) -> str:
        return self.sop_uid

    @property
    def inverted(self) -> bool:
        """Whether low values are white."""
        return self.photometric == "MONOCHROME1"

    @property
    def frame_bytes(self) -> int:
        """Bytes of one display frame."""
        return self.rows * self.columns * self.samples * self.bits // 8


class UploadedFile(models.Model):
    """One file of a batch and what became of it. Refused and quarantined bytes stay under `key` until dismissed."""

    batch = models.ForeignKey(Batch, on_delete=models.CASCADE, related_name="files")
    name = models.CharField(max_length=255)
    size_bytes = models.BigIntegerField(default=0)
    sha256 = models.CharField(max_length=64, blank=True)
    state = models.CharField(max_length=10, choices=FileState.choices, default=FileState.QUEUED)
    status = models.CharField(max_length=20, choices=FileStatus.choices, blank=True)
    reason = models.CharField(max_length=300, blank=True)
    key = models.CharField(max_length=200, blank=True)
    instance = models.ForeignKey(Instance, null=True, blank=True, on_delete=models.SET_NULL, related_name="+")
    attempt = models.PositiveSmallIntegerField(default=0)
    created_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    dismissed_at = models.DateTimeField(null=True, blank=True)
    dismissed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )

    class Meta:
        ordering = ["pk"]
        indexes = [models.Index(fields=["state", "batch"], name="radiology_file_waiting")]

    def __str__(self) -> str:
        return self.name


class Draft(models.Model):
    """One attempt at a draft of one study. `findings` and `sentences` are the contract's dataclasses as JSON."""

    study = models.ForeignKey(Study, on_delete=models.CASCADE, related_name="drafts")
    number = models.PositiveSmallIntegerField(default=1)
    state = models.CharField(max_length=10, choices=DraftState.choices, default=DraftState.QUEUED)
    attempt = models.PositiveSmallIntegerField(default=0)
    model_digest = models.CharField(max_length=64, blank=True)
    declined = models.BooleanField(default=False)
    declined_reason = models.CharField(max_length=300, blank=True)
    findings = models.JSONField(default=list, blank=True)
    sentences = models.JSONField(default=list, blank=True)
    error_code = models.CharField(max_length=60, blank=True)
    error = models.CharField(max_length=300, blank=True)
    seconds = models.FloatField(null=True, blank=True)
    images = models.PositiveSmallIntegerField(default=0)
    queued_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-number"]
        constraints = [models.UniqueConstraint(fields=["study", "number"], name="radiology_draft_once")]
        indexes = [models.Index(fields=["state", "queued_at"], name="radiology_draft_waiting")]

    def __str__(self) -> str:
        return f"draft {self.number} of study {self.study_id}"


class Report(models.Model):
    """The report of a study. `sentences` is a list of {section, text, confidence, finding, image_key, box, origin,
    confirmed}; `version` grows with every save, and a save must name the version that it began from."""

    study = models.OneToOneField(Study, on_delete=models.PROTECT, related_name="report")
    draft = models.ForeignKey(Draft, null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    state = models.CharField(max_length=12, choices=ReportState.choices, default=ReportState.DRAFT)
    sentences = models.JSONField(default=list, blank=True)
    version = models.PositiveIntegerField(default=1)
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()
    updated_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )

    def __str__(self) -> str:
        return f"report of study {self.study_id}"


class ReportSignature(models.Model):
    """Who signed which text over which images. Never changed, never deleted (migration 0002)."""

    report = models.OneToOneField(Report, on_delete=models.PROTECT, related_name="signature")
    signer = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    signer_name = models.CharField(max_length=200)
    signed_at = models.DateTimeField()
    text = models.TextField()
    images = models.JSONField()  # list of {sop_uid, sha256}, in the order that was hashed
    model_digest = models.CharField(max_length=64, blank=True)
    digest = models.CharField(max_length=64)

    def __str__(self) -> str:
        return f"{self.signer_name}, {self.signed_at:%Y-%m-%d %H:%M}"
