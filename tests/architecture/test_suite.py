"""The suite's closing line: what several runs of pytest say, as one of them would say it."""

from testkit.suite import joined


def test_closing_lines_are_added_up():
    lines = ["2 failed, 100 passed, 3 skipped, 1 warning in 60.10s (0:01:00)", "50 passed, 40 skipped in 9.00s"]
    assert joined(lines, seconds=61.0) == "2 failed, 150 passed, 43 skipped, 1 warning in 61.00s"


def test_errors_and_what_was_deselected_count_too():
    lines = ["1 passed, 7 deselected, 2 errors in 1.00s", "1 error in 2.00s"]
    assert joined(lines, seconds=2.5) == "1 passed, 7 deselected, 3 errors in 2.50s"


def test_where_nothing_ran_it_says_so():
    assert joined(["no tests ran in 0.01s", ""], seconds=0.1) == "no tests ran in 0.10s"
