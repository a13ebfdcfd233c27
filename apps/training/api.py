"""What the platform may ask of training."""

from apps.training import selectors


def queue_counts() -> dict[str, int]:
    """Counts for the rail: runs that wait or work, and all of them."""
    return selectors.state_counts()
