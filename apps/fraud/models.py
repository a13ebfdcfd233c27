"""Cards, terminals, transactions, states, alerts, dispositions, imports."""

from django.conf import settings
from django.db import models
from django.db.models import Q

from apps.core import clock


class Card(models.Model):
    """A payment card, known by a keyed token; `display` never holds more than the first six and last four digits."""

    token = models.CharField(max_length=64, unique=True)
    display = models.CharField(max_length=40)

    def __str__(self) -> str:
        return self.display


class Terminal(models.Model):
    """Where cards are used."""

    key = models.CharField(max_length=64, unique=True)
    name = models.CharField(max_length=40)
    category = models.CharField(max_length=30, blank=True)

    def __str__(self) -> str:
        return self.name


class ImportState(models.TextChoices):
    """Where the reading of a file stands."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Import(models.Model):
    """One file that was read; `replay` opens its alerts at the moment of their transactions."""

    file_name = models.CharField(max_length=200)
    schema = models.CharField(max_length=60)
    source = models.CharField(max_length=40)
    replay = models.BooleanField(default=False)
    state = models.CharField(max_length=8, choices=ImportState, default=ImportState.RUNNING)
    rows = models.PositiveIntegerField(default=0)
    stored = models.PositiveIntegerField(default=0)
    duplicates = models.PositiveIntegerField(default=0)
    refused = models.PositiveIntegerField(default=0)
    started_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True, blank=True)
    by_name = models.CharField(max_length=150)

    def __str__(self) -> str:
        return f"{self.file_name} ({self.state})"


class ImportBadRow(models.Model):
    """One row of a file that was not stored, and why."""

    imported = models.ForeignKey(Import, on_delete=models.CASCADE, related_name="bad_rows")
    line = models.PositiveIntegerField()
    reason = models.CharField(max_length=200)

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


class BatchState(models.TextChoices):
    """Where the scoring of a batch stands."""

    QUEUED = "queued"
    DONE = "done"
    FAILED = "failed"


class ScoreBatch(models.Model):
    """A run of an import's transactions, by id, that are scored together; batches of one import go in order."""

    imported = models.ForeignKey(Import, on_delete=models.CASCADE, related_name="batches")
    first_id = models.BigIntegerField()
    last_id = models.BigIntegerField()
    rows = models.PositiveIntegerField()
    state = models.CharField(max_length=8, choices=BatchState, default=BatchState.QUEUED)
    attempt = models.PositiveSmallIntegerField(default=1)
    alerts = models.PositiveIntegerField(default=0)
    error_code = models.CharField(max_length=40, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = [models.Index(fields=["imported", "state", "id"], name="fraud_batch_next")]

    def __str__(self) -> str:
        return f"batch {self.pk} ({self.state})"


class ScoreState(models.TextChoices):
    """Where the scoring of a transaction stands."""

    QUEUED = "queued"
    DONE = "done"
    FAILED = "failed"


class Transaction(models.Model):
    """One card transaction, its truth as far as it is known, and its score."""

    source = models.CharField(max_length=40)
    external_id = models.CharField(max_length=64)
    at = models.DateTimeField()
    utc_offset_s = models.IntegerField(default=0)
    card = models.ForeignKey(Card, on_delete=models.PROTECT, related_name="+", db_index=False)
    terminal = models.ForeignKey(Terminal, on_delete=models.PROTECT, related_name="+", db_index=False)
    amount_cents = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    label = models.BooleanField(null=True, blank=True)
    label_known_at = models.DateTimeField(null=True, blank=True)
    imported = models.ForeignKey(
        Import, on_delete=models.PROTECT, related_name="+", null=True, blank=True, db_index=False
    )
    received_at = models.DateTimeField(null=True, blank=True)
    state = models.CharField(max_length=6, choices=ScoreState, default=ScoreState.QUEUED)
    attempt = models.PositiveSmallIntegerField(default=1)
    probability = models.FloatField(null=True, blank=True)
    model_digest = models.CharField(max_length=64, blank=True)
    scored_at = models.DateTimeField(null=True, blank=True)
    error_code = models.CharField(max_length=40, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["source", "external_id"], name="fraud_transaction_once"),
            models.CheckConstraint(condition=Q(amount_cents__gte=0), name="fraud_transaction_amount"),
            models.CheckConstraint(
                condition=Q(probability__isnull=True) | Q(probability__gte=0, probability__lte=1),
                name="fraud_transaction_probability",
            ),
            models.CheckConstraint(
                condition=Q(label__isnull=True) | Q(label_known_at__isnull=False), name="fraud_label_has_day"
            ),
        ]
        indexes = [
            models.Index(fields=["card", "at"], name="fraud_transaction_card"),
            models.Index(fields=["terminal", "at"], name="fraud_transaction_terminal"),
            models.Index(fields=["id"], name="fraud_transaction_queued", condition=Q(state="queued")),
        ]

    def __str__(self) -> str:
        return f"{self.source}/{self.external_id}"

    @property
    def truth(self) -> bool | None:
        """The label as far as it is known by now."""
        known = self.label_known_at is not None and self.label_known_at <= clock.now()
        return self.label if known else None


class StateKind(models.TextChoices):
    """What a state belongs to."""

    CARD = "card"
    TERMINAL = "terminal"


class EntityState(models.Model):
    """The engine's memory of one card or terminal: bytes that only the engine reads; `version` counts its writes."""

    kind = models.CharField(max_length=8, choices=StateKind)
    key = models.CharField(max_length=64)
    data = models.BinaryField(default=b"")
    version = models.PositiveIntegerField(default=0)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["kind", "key"], name="fraud_state_once")]

    def __str__(self) -> str:
        return f"{self.kind} state, write {self.version}"


class AlertPolicy(models.Model):
    """From which probability alerts open and how long one may wait; the newest row is in force."""

    threshold = models.FloatField()
    age_cap_h = models.PositiveSmallIntegerField()
    at = models.DateTimeField()
    by_name = models.CharField(max_length=150)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(threshold__gt=0, threshold__lt=1), name="fraud_policy_threshold")
        ]

    def __str__(self) -> str:
        return f"from {self.threshold}, {self.age_cap_h} h"


class AlertState(models.TextChoices):
    """Where an alert stands."""

    NEW = "new"
    CLAIMED = "claimed"
    CLOSED = "closed"


class Alert(models.Model):
    """A transaction for a person to judge. What was known at scoring is frozen; state and claim move, and `version`."""

    transaction = models.OneToOneField(Transaction, on_delete=models.PROTECT, related_name="alert")
    card = models.ForeignKey(Card, on_delete=models.PROTECT, related_name="+")
    terminal = models.ForeignKey(Terminal, on_delete=models.PROTECT, related_name="+")
    amount_cents = models.BigIntegerField()
    currency = models.CharField(max_length=3)
    # frozen at scoring
    probability = models.FloatField()
    band = models.PositiveSmallIntegerField()
    threshold = models.FloatField()
    base_points = models.FloatField()
    reasons = models.JSONField(default=list, blank=True)
    counterfactuals = models.JSONField(default=list, blank=True)
    features = models.JSONField(default=dict, blank=True)
    rule_hits = models.JSONField(default=list, blank=True)
    main_reason = models.CharField(max_length=200, blank=True)
    model_digest = models.CharField(max_length=64)
    scored_at = models.DateTimeField()
    priority = models.BigIntegerField()
    opened_at = models.DateTimeField()
    # moves
    state = models.CharField(max_length=7, choices=AlertState, default=AlertState.NEW)
    escalated = models.BooleanField(default=False)
    reopened = models.BooleanField(default=False)
    claimed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+", null=True, blank=True, db_index=False
    )
    claim_expires_at = models.DateTimeField(null=True, blank=True)
    closed_at = models.DateTimeField(null=True, blank=True)
    verdict = models.CharField(max_length=8, blank=True)
    version = models.PositiveIntegerField(default=1)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(band__gte=1, band__lte=4), name="fraud_alert_band"),
            models.CheckConstraint(
                condition=~Q(state="claimed") | Q(claimed_by__isnull=False, claim_expires_at__isnull=False),
                name="fraud_alert_claim_has_owner",
            ),
            models.CheckConstraint(
                condition=~Q(state="closed") | Q(closed_at__isnull=False), name="fraud_alert_closed_has_time"
            ),
        ]
        indexes = [
            models.Index(fields=["-priority", "id"], name="fraud_alert_order", condition=~Q(state="closed")),
            models.Index(fields=["opened_at", "id"], name="fraud_alert_age", condition=~Q(state="closed")),
            models.Index(fields=["claimed_by", "state"], name="fraud_alert_mine"),
            models.Index(fields=["-closed_at"], name="fraud_alert_closed", condition=Q(state="closed")),
        ]

    def __str__(self) -> str:
        return f"alert {self.pk}"

    @property
    def claim_lapsed(self) -> bool:
        """Whether the claim is over although nobody gave the alert back."""
        return self.claim_expires_at is not None and self.claim_expires_at <= clock.now()


class AlertSnapshot(models.Model):
    """What an alert was scored from, enough to score it again, and how that ended the last time.

    `states` are the states before the batch (compressed JSON) of the alert's terminal, its card, and the cards that
    used the terminal earlier in the batch; `preceding` lists those cards' earlier transactions of the batch, `labels`
    the truths that were given with them (id → [label, known at]).
    """

    alert = models.OneToOneField(Alert, on_delete=models.CASCADE, related_name="snapshot", primary_key=True)
    states = models.BinaryField()
    preceding = models.JSONField(default=list, blank=True)
    labels = models.JSONField(default=dict, blank=True)
    engine = models.CharField(max_length=100, blank=True)  # that computed the score; empty: torch, not kept
    asked_at = models.DateTimeField(null=True, blank=True)
    outcome = models.CharField(max_length=40, blank=True)
    outcome_at = models.DateTimeField(null=True, blank=True)
    difference = models.FloatField(null=True, blank=True)

    def __str__(self) -> str:
        return f"snapshot of alert {self.alert_id}"


class Verdict(models.TextChoices):
    """What a person may decide."""

    FRAUD = "fraud"
    GENUINE = "genuine"
    UNSURE = "unsure"
    ESCALATE = "escalate"


class Disposition(models.Model):
    """What a person decided about an alert; an undone one stays in the history."""

    alert = models.ForeignKey(Alert, on_delete=models.PROTECT, related_name="dispositions")
    verdict = models.CharField(max_length=8, choices=Verdict)
    reason_code = models.CharField(max_length=20)
    note = models.TextField(blank=True, max_length=2000)
    by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    at = models.DateTimeField()
    undone_at = models.DateTimeField(null=True, blank=True)
    learned_at = models.DateTimeField(null=True, blank=True)
    # what undo puts back
    prior_label = models.BooleanField(null=True, blank=True)
    prior_label_known_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = [
            models.Index(
                fields=["at"],
                name="fraud_disposition_unlearned",
                condition=Q(learned_at__isnull=True, undone_at__isnull=True),
            )
        ]

    def __str__(self) -> str:
        return f"{self.verdict} on alert {self.alert_id}"


class AlertNote(models.Model):
    """A remark on an alert that decides nothing."""

    alert = models.ForeignKey(Alert, on_delete=models.PROTECT, related_name="notes")
    text = models.TextField(max_length=2000)
    by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    at = models.DateTimeField()

    def __str__(self) -> str:
        return f"note on alert {self.alert_id}"


class SavedView(models.Model):
    """A person's named set of queue filters."""

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    name = models.CharField(max_length=40)
    query = models.CharField(max_length=500)

    class Meta:
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["owner", "name"], name="fraud_view_once")]

    def __str__(self) -> str:
        return self.name


class ApiRequest(models.Model):
    """A scoring request with an Idempotency-Key: the same key means the same body and the same transaction."""

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    key = models.CharField(max_length=128)
    body_sha256 = models.CharField(max_length=64)
    transaction = models.ForeignKey(Transaction, on_delete=models.PROTECT, related_name="+")
    at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["owner", "key"], name="fraud_idempotency_once")]

    def __str__(self) -> str:
        return f"request {self.pk}"
