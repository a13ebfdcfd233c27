"""What other apps may ask of radiology."""

from apps.radiology import selectors


def queue_counts() -> dict[str, int]:
    """Counts for the rail: `open` studies, files in `quarantine`."""
    return selectors.queue_counts()
