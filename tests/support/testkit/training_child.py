"""A real child process for tests of training: writes true events into a folder, then ends as spec.json's params say.

`end`: done (with an artifact), fail, die (no last word), hang (alive and silent), beat (alive and beating).
"""

import json
import math
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from ml_core.contracts import ModelKind  # noqa: E402
from ml_core.events import EventLog  # noqa: E402
from testkit.artifacts import artifact_make  # noqa: E402 - the lines above make it importable


def main(folder: Path) -> int:
    """Run as `python training_child.py FOLDER`."""
    spec = json.loads((folder / "spec.json").read_text())
    params = spec["params"]
    end, steps = params.get("end", "done"), int(params.get("steps", 40))
    log = EventLog(folder)
    log.stage("teacher", index=1, of=3)
    log.log(f"seed {spec['seed']}")
    log.stage("distilling", index=2, of=3)
    for step in range(1, steps + 1):
        done = step / steps
        align = {
            "token": 0.6 * math.exp(-2 * done),
            "layer": 0.4 * math.exp(-3 * done),
            "global": 0.2 * math.exp(-3 * done),
        }
        loss, rate = math.exp(-2 * done), 3e-5 * 0.5 * (1 + math.cos(math.pi * done))
        log.step(step, steps=steps, epoch=1 + int(2.999 * done), epochs=3, loss=loss, alpha=0.7, lr=rate, align=align)
        if step % 8 == 0:
            log.eval("guard", metrics={"ap": 0.5 + 0.25 * done, "auc": 0.9})
            log.log(f"epoch {1 + int(2.999 * done)}  loss {loss:.3f}")
        time.sleep(float(params.get("pause", 0)))
    return _end(end, spec=spec, folder=folder, log=log)


def _end(end: str, *, spec: dict[str, object], folder: Path, log: EventLog) -> int:
    if end == "fail":
        log.failed("the teacher could not be fitted: no fraud in the window")
        return 1
    if end == "die":
        print("Traceback: out of memory", file=sys.stderr)
        return 1
    while end in {"hang", "beat"}:
        if end == "beat":
            log.heartbeat()
        time.sleep(0.2)
    log.stage("comparing with the champion", index=3, of=3)
    metrics = {"ap": 0.748, "auc": 0.951, "cp100": 0.311}
    digest = artifact_make(
        folder / "artifact",
        kind=ModelKind(str(spec["kind"])),
        name="retrained student",
        weights=json.dumps([spec["seed"], time.time_ns()]).encode(),
        metrics=metrics,
    )
    champion = {"ap": 0.741, "auc": 0.952, "cp100": 0.302} if spec["parent"] else None
    log.done(digest=digest, artifact=folder / "artifact", candidate=metrics, champion=champion)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
