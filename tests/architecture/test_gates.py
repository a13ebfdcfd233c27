"""Files stay small and say what they are for."""

from testkit import gates


def test_every_tracked_file_passes_the_gates():
    assert gates.faults_find() == []
