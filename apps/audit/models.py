"""The audit trail's two tables: the events and the one row that holds the chain's end."""

import json

from django.db import models

from apps.audit import rules


class Event(models.Model):
    """One link of the chain. Rows are only ever inserted: triggers refuse anything else (migration 0002)."""

    sequence = models.BigIntegerField(primary_key=True)
    at = models.DateTimeField()
    user_id = models.BigIntegerField(null=True)  # not a foreign key: the trail outlives the account
    name = models.CharField(max_length=150)
    role = models.CharField(max_length=20)
    origin = models.CharField(max_length=100, blank=True)
    verb = models.CharField(max_length=60)
    object_type = models.CharField(max_length=40)
    object_id = models.CharField(max_length=128, blank=True)
    allowed = models.BooleanField()
    detail_json = models.TextField()  # canonical text, not jsonb, which would rewrite numbers and so break the hash
    previous_hash = models.CharField(max_length=64)
    hash = models.CharField(max_length=64)

    class Meta:
        ordering = ["sequence"]
        indexes = [
            models.Index(fields=["at"], name="audit_event_at"),
            models.Index(fields=["name", "sequence"], name="audit_event_name"),
            models.Index(fields=["verb", "sequence"], name="audit_event_verb"),
            models.Index(fields=["object_type", "object_id", "sequence"], name="audit_event_object"),
        ]

    def __str__(self) -> str:
        return f"{self.sequence}: {self.sentence}"

    @property
    def detail(self) -> dict[str, object]:
        """The event's small facts."""
        return json.loads(self.detail_json)

    @property
    def sentence(self) -> str:
        """The event as a sentence for people."""
        try:
            detail = self.detail
        except json.JSONDecodeError:  # a tampered row must still be shown; the verifier names it
            detail = {}
        return rules.sentence(
            name=self.name,
            verb=self.verb,
            object_type=self.object_type,
            object_id=self.object_id,
            allowed=self.allowed,
            detail=detail,
        )

    @property
    def body(self) -> dict[str, object]:
        """What the hash covers, besides the previous hash."""
        return {
            "sequence": self.sequence,
            "at": rules.moment(self.at),
            "user_id": self.user_id,
            "name": self.name,
            "role": self.role,
            "origin": self.origin,
            "verb": self.verb,
            "object_type": self.object_type,
            "object_id": self.object_id,
            "allowed": self.allowed,
            "detail": self.detail_json,
        }


class ChainHead(models.Model):
    """The end of the chain: the one row that appenders lock, so that the chain never forks."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    sequence = models.BigIntegerField(default=0)
    hash = models.CharField(max_length=64, default=rules.GENESIS)

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(id=1), name="audit_chain_head_single")]

    def __str__(self) -> str:
        return f"{self.sequence} {self.hash[:12]}"
