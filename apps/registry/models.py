"""Model versions and who served when."""

from django.db import models
from django.db.models import F, Q

from ml_core.contracts import ModelKind


class ModelState(models.TextChoices):
    """Life of a model version."""

    CANDIDATE = "candidate"
    CHAMPION = "champion"
    RETIRED = "retired"


KIND_CHOICES = [(kind.value, kind.value) for kind in ModelKind]


class ModelVersion(models.Model):
    """One artifact, known by the digest of its manifest; `folder` is the registry's own copy, never changed."""

    kind = models.CharField(max_length=20, choices=KIND_CHOICES)
    digest = models.CharField(max_length=64, unique=True)
    folder = models.CharField(max_length=500)
    name = models.CharField(max_length=200)
    recipe = models.CharField(max_length=100, blank=True)
    state = models.CharField(max_length=10, choices=ModelState.choices, default=ModelState.CANDIDATE)
    metrics = models.JSONField(default=dict, blank=True)
    parameters = models.BigIntegerField(default=0)
    size_bytes = models.BigIntegerField(default=0)
    teacher_digest = models.CharField(max_length=64, blank=True)
    data_digest = models.CharField(max_length=64, blank=True)
    git_revision = models.CharField(max_length=64, blank=True)
    licence = models.TextField(blank=True)
    card = models.TextField(blank=True)
    built = models.CharField(max_length=40, blank=True)  # when the artifact was written, as its manifest says
    created_at = models.DateTimeField()
    created_by = models.CharField(max_length=150)

    class Meta:
        ordering = ["-created_at", "-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["kind"], condition=Q(state=ModelState.CHAMPION), name="registry_one_champion_per_kind"
            ),
            models.CheckConstraint(condition=Q(state__in=ModelState.values), name="registry_model_state_known"),
            models.CheckConstraint(
                condition=Q(kind__in=[kind.value for kind in ModelKind]), name="registry_kind_known"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} {self.digest[:8]}"

    @property
    def is_champion(self) -> bool:
        return self.state == ModelState.CHAMPION


class Promotion(models.Model):
    """A span of time during which one version served its kind; `served_to` null: it serves now."""

    kind = models.CharField(max_length=20, choices=KIND_CHOICES)
    model = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="promotions")
    served_from = models.DateTimeField()
    served_to = models.DateTimeField(null=True, blank=True)
    user_id = models.BigIntegerField(null=True, blank=True)
    by = models.CharField(max_length=150)
    note = models.CharField(max_length=500, blank=True)

    class Meta:
        ordering = ["-served_from", "-id"]
        indexes = [models.Index(fields=["kind", "served_from"], name="registry_promotion_kind_from")]
        constraints = [
            models.UniqueConstraint(
                fields=["kind"], condition=Q(served_to__isnull=True), name="registry_one_open_promotion_per_kind"
            ),
            models.CheckConstraint(
                condition=Q(served_to__isnull=True) | Q(served_to__gte=F("served_from")),
                name="registry_promotion_ends_after_start",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind}: {self.model_id} from {self.served_from:%Y-%m-%d %H:%M:%S}"
