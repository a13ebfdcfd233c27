"""Gives every task the time limits of its lane; the lane is the middle word of its name."""

from typing import Any

from django.conf import settings


def lane_of(name: str, /) -> str | None:
    """The lane in a task's name `<app>.<lane>.<verb>`, or None for a task that is not ours."""
    parts = name.split(".")
    return parts[1] if len(parts) == 3 and parts[1] in settings.LANES else None


class LaneLimits:
    """Celery annotation: hard limit L of the lane, soft limit 0.9 L (architecture.md section 4)."""

    def annotate(self, task: Any) -> dict[str, float] | None:
        lane = lane_of(task.name)
        if lane is None:
            return None
        hard = settings.LANE_LIMIT_S[lane]
        return {"time_limit": hard, "soft_time_limit": 0.9 * hard}

    def annotate_any(self) -> None:
        return None
