"""events.jsonl: whole lines, numbers that JSON knows, a heartbeat while a run is silent."""

import json
import threading

from ml_core.events import EventLog, read


def test_every_kind_of_event_is_one_line_of_json(tmp_path):
    log = EventLog(tmp_path)
    log.stage("teacher", index=1, of=3)
    log.step(1, steps=9, epoch=1, epochs=3, loss=0.5, alpha=0.7, lr=1e-3, align={"token": 0.1})
    log.eval("guard", metrics={"ap": 0.7})
    log.log("tab\tand\nline")
    log.heartbeat()
    assert log.finished is False
    log.done(digest="d", artifact=tmp_path, candidate={"ap": 0.7}, champion=None)
    log.close()
    events, offset = read(log.path)
    assert [event["kind"] for event in events] == ["stage", "step", "eval", "log", "heartbeat", "done"]
    assert all(isinstance(event["at"], float) for event in events)
    assert events[5]["metrics"] == {"candidate": {"ap": 0.7}, "champion": None}
    assert offset == log.path.stat().st_size
    assert log.finished is True


def test_a_loss_that_is_no_number_is_null_since_json_has_no_nan(tmp_path):
    log = EventLog(tmp_path)
    log.step(1, steps=1, epoch=1, epochs=1, loss=float("nan"), align={"token": float("inf")})
    (event,), _ = read(log.path)
    assert event["loss"] is None
    assert event["align"] == {"token": None}
    assert "NaN" not in log.path.read_text()


def test_reading_goes_on_where_it_stopped_and_leaves_half_a_line(tmp_path):
    log = EventLog(tmp_path)
    log.log("one")
    events, offset = read(log.path)
    with log.path.open("a") as stream:
        stream.write('{"kind": "lo')
    assert (len(events), read(log.path, offset)) == (1, ([], offset))
    with log.path.open("a") as stream:
        stream.write('g", "at": 1.0, "text": "two"}\n')
    assert [event["text"] for event in read(log.path, offset)[0]] == ["two"]


def test_it_beats_while_the_run_is_silent_and_stops_when_closed(tmp_path):
    beaten = threading.Event()

    class Counting(EventLog):
        def heartbeat(self):
            super().heartbeat()
            if len(self.path.read_text().splitlines()) >= 3:
                beaten.set()

    with Counting(tmp_path, heartbeat_s=0.005) as log:
        assert beaten.wait(10)
    before = log.path.read_text()
    assert {json.loads(line)["kind"] for line in before.splitlines()} == {"heartbeat"}
    assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat"]


def test_lines_of_several_threads_do_not_mix(tmp_path):
    log = EventLog(tmp_path)
    threads = [threading.Thread(target=lambda i=i: [log.log(f"{i} " * 200) for _ in range(50)]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read(log.path)[0]) == 200
