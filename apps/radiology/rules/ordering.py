"""The order of the reading list: as it was ordered by people, with an age cap; AI only moves a study up."""

from datetime import timedelta

CAPS = {0: timedelta(minutes=30), 1: timedelta(hours=4), 2: timedelta(hours=24)}  # by Priority
STAT_RANK, LIFTED_RANK = 0, 1  # what waited past its cap comes right after STAT
RANKS = {0: STAT_RANK, 1: 2, 2: 3}
