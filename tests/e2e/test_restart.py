"""The demo stops everything that it started and nothing else, keeps its data, and says who died."""

import os
import re
import signal
import urllib.request

import psutil
import pytest
from testkit.demo_stack import DemoStack

SECOND_START_LIMIT_S = 20


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE}


def test_a_signal_stops_every_process_and_a_second_start_is_fast_and_keeps_the_data(demo: DemoStack, sign_in):
    before = sign_in("analyst-1").locator(".rail .count").first.inner_text()
    below = set(demo.descendants())
    assert len(below) >= 8  # broker, three workers with a child each, beat, web
    assert demo.stop() == 0
    assert alive(below) == set()

    seconds = demo.start(limit_s=120)
    assert seconds < SECOND_START_LIMIT_S
    assert sign_in("analyst-1").locator(".rail .count").first.inner_text() == before


def test_when_one_process_dies_the_demo_says_which_and_stops_the_rest(demo: DemoStack):
    below = demo.descendants()
    beat = next(pid for pid, words in below.items() if " beat " in words)
    demo.output.clear()
    os.kill(beat, signal.SIGKILL)
    assert demo.wait() == 1
    assert re.search(r"beat ended with status -9", "".join(demo.output))
    assert alive(set(below)) == set()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(demo.url + "/health/live", timeout=2)
