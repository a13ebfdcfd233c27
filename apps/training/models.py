"""Training runs and what they told: one row a step, one row a note (stage, evaluation, log line)."""

from django.db import models
from django.db.models import Q

from apps.training import rules
from ml_core.contracts import ModelKind


class RunState(models.TextChoices):
    """Life of a run."""

    QUEUED = "QUEUED", "queued"
    RUNNING = "RUNNING", "running"
    DONE = "DONE", "done"
    FAILED = "FAILED", "failed"
    LOST = "LOST", "lost"
    CANCELLED = "CANCELLED", "cancelled"


OPEN_STATES = (RunState.QUEUED, RunState.RUNNING)


class Run(models.Model):
    """One retraining. `attempt` fences: what an earlier attempt's task or child still does no longer counts."""

    kind = models.CharField(max_length=20, choices=[(kind.value, kind.value) for kind in ModelKind])
    recipe = models.CharField(max_length=100)
    params = models.JSONField(default=dict, blank=True)
    seed = models.PositiveIntegerField(default=0)
    since = models.DateTimeField(null=True, blank=True)
    until = models.DateTimeField(null=True, blank=True)
    rows = models.PositiveIntegerField(null=True, blank=True)

    state = models.CharField(max_length=10, choices=RunState.choices, default=RunState.QUEUED)
    attempt = models.PositiveIntegerField(default=1)
    created_at = models.DateTimeField()
    created_by = models.CharField(max_length=150)
    queued_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    heartbeat_at = models.DateTimeField(null=True, blank=True)

    folder = models.CharField(max_length=500, blank=True)
    host = models.CharField(max_length=255, blank=True)
    pid = models.PositiveIntegerField(null=True, blank=True)
    pid_started = models.FloatField(null=True, blank=True)  # tells the child from a later process with its number
    event_offset = models.BigIntegerField(default=0)

    stage = models.CharField(max_length=100, blank=True)
    stage_index = models.PositiveIntegerField(default=0)
    stage_of = models.PositiveIntegerField(default=0)
    step = models.PositiveIntegerField(default=0)
    steps = models.PositiveIntegerField(default=0)
    epoch = models.PositiveIntegerField(default=0)
    epochs = models.PositiveIntegerField(default=0)
    first_step_at = models.DateTimeField(null=True, blank=True)

    champion_digest = models.CharField(max_length=64, blank=True)
    digest = models.CharField(max_length=64, blank=True)
    metrics = models.JSONField(default=dict, blank=True)  # {candidate: {...}, champion: {...} or null}
    error_code = models.CharField(max_length=40, blank=True)
    error = models.TextField(blank=True)

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["state"], name="training_run_state")]
        constraints = [
            models.CheckConstraint(condition=Q(state__in=RunState.values), name="training_run_state_known"),
            models.CheckConstraint(condition=~Q(state=RunState.DONE) | ~Q(digest=""), name="training_done_has_digest"),
        ]

    def __str__(self) -> str:
        return f"run {self.pk}"

    @property
    def title(self) -> str:
        recipe = rules.RECIPES.get(self.recipe)
        return recipe.title if recipe else self.recipe

    @property
    def is_open(self) -> bool:
        return self.state in OPEN_STATES

    @property
    def progress(self) -> float:
        if self.state == RunState.DONE:
            return 1.0
        return rules.progress(step=self.step, steps=self.steps, stage=self.stage_index, stages=self.stage_of)


class Point(models.Model):
    """What one optimiser step reported."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="points")
    attempt = models.PositiveIntegerField()
    step = models.PositiveIntegerField()
    loss = models.FloatField(null=True)
    alpha = models.FloatField(null=True)
    lr = models.FloatField(null=True)
    align_token = models.FloatField(null=True)
    align_layer = models.FloatField(null=True)
    align_global = models.FloatField(null=True)

    class Meta:
        indexes = [models.Index(fields=["run", "attempt", "step"], name="training_point_run_step")]

    def __str__(self) -> str:
        return f"run {self.run_id} step {self.step}"


class Note(models.Model):
    """A stage entered, an evaluation, or a line of the log."""

    class Kind(models.TextChoices):
        """What a note says."""

        STAGE = "stage"
        EVAL = "eval"
        LOG = "log"

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="notes")
    attempt = models.PositiveIntegerField()
    at = models.DateTimeField()
    kind = models.CharField(max_length=10, choices=Kind.choices)
    step = models.PositiveIntegerField(default=0)
    text = models.TextField(blank=True)
    metrics = models.JSONField(default=dict, blank=True)

    class Meta:
        indexes = [models.Index(fields=["run", "attempt", "id"], name="training_note_run")]

    def __str__(self) -> str:
        return f"run {self.run_id}: {self.text}"
