#!/bin/bash
# `fraud_weeks train` on a machine with one CUDA GPU that nothing else reaches: every fold, both protocols, all students.
# Here first, from the repository's root (git ignores both folders):
#   mkdir -p .carry/fraud .whl && cp ../shared/data/fraud/handbook_raw_2018-04-01_2018-09-04.parquet .carry/fraud/
#   .venv/bin/python -m pip download -c constraints.txt lightgbm jaxtyping wadler_lindig --no-deps -d .whl
# There, with .carry/fraud and .whl carried along:
#   OUT=... CUDA_VISIBLE_DEVICES=0 [LIMIT=420] [PROCS=16] [QUICK=1] bash tests/bench/fraud_weeks_gpu.sh
# LIMIT: wall-clock seconds in all, packing included; what does not fit is left out and named (order: a week's folds, the
# folds with all of the past, each cell's further students). QUICK: tiny, runs on a CPU in five minutes.
# Leaves $OUT/fraud/log.txt and $OUT/fraud/fraud.tar (< 14 MB), which unpacked is a folder for `fraud_weeks evaluate --scores FOLDER/scores`.
set -u
began=$(date +%s)
limit=${LIMIT:-420}
data=${DATA:-$PWD/.carry/fraud}/handbook_raw_2018-04-01_2018-09-04.parquet
code=${CODE:-$PWD}
work=${WORK:-/dev/shm/fraud}
to=$OUT/fraud
rm -rf "$work"; mkdir -p "$to" "$work/out"
exec > >(tee "$to/log.txt") 2>&1
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 NUMBA_CACHE_DIR=$work/numba
python3 -c 'import lightgbm' 2>/dev/null ||
  python3 -m pip install -q --no-index --find-links .whl --no-deps --break-system-packages lightgbm
python3 -c 'import jaxtyping' 2>/dev/null ||
  python3 -m pip install -q --no-index --find-links .whl --no-deps --break-system-packages jaxtyping wadler_lindig
echo "$(nproc --all) cores, GPU ${CUDA_VISIBLE_DEVICES:-all}"
python3 -c 'from importlib.metadata import version; print({n: version(n) for n in ("torch", "lightgbm", "numpy", "numba", "scikit-learn", "pyarrow", "jaxtyping")})'
mps=
if [ -z "${QUICK:-}${CUDA_MPS_PIPE_DIRECTORY:-}" ] && command -v nvidia-cuda-mps-control >/dev/null; then
  # many small processes share the GPU at once; a daemon of our own shows its one GPU as device 0 (one that runs is used)
  export CUDA_MPS_PIPE_DIRECTORY=$work/mps CUDA_MPS_LOG_DIRECTORY=$work/mps
  mkdir -p "$work/mps"; nvidia-cuda-mps-control -d && mps=1; sleep 1
  before=${CUDA_VISIBLE_DEVICES:-}; export CUDA_VISIBLE_DEVICES=0
  if ! timeout 40 python3 -c 'import torch; print(torch.cuda.get_device_name(), float(torch.ones(8, device="cuda").sum()))'; then
    echo "MPS does not serve; without it"
    echo quit | timeout 5 nvidia-cuda-mps-control; mps=
    unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY; export CUDA_VISIBLE_DEVICES=$before
  fi
fi
cd "$code" || exit 1
left=$((limit - 12 - ($(date +%s) - began)))
timeout -k 5 $((left + 8)) python3 -m tests.bench.fraud_weeks train --transactions "$data" \
  --out "$work/out" --work "$work/inputs" --seconds $left --procs "${PROCS:-$(nproc --all)}" ${QUICK:+--quick}
echo "training ended with $? after $(($(date +%s) - began)) s"
[ -n "$mps" ] && echo quit | timeout 5 nvidia-cuda-mps-control
python3 - "$work" "$to/fraud.tar" <<'PY'
"""cells.jsonl, the test weeks' scores, then the validation weeks' as far as they go in."""
import sys, tarfile
from pathlib import Path

work, to = Path(sys.argv[1]), Path(sys.argv[2])
TEST = ("2018-07-25", "2018-08-01", "2018-08-08", "2018-08-15")
scores = sorted((work / "out" / "scores").glob("*.npz"), key=lambda p: (not any(d in p.name for d in TEST), p.name))
size = 0
with tarfile.open(to, "w") as out:
    for path in [work / "out" / "cells.jsonl", *scores]:
        size += path.stat().st_size + 1_024 if path.exists() else 0
        if path.exists() and size < 13_800_000:
            out.add(path, str(path.relative_to(work / "out")))
        else:
            print("left out:", path.name)
print(f"{len(scores)} files of scores, {to.stat().st_size / 1e6:.1f} MB")
PY
rm -rf "$work"
echo "packed after $(($(date +%s) - began)) s"; ls -l "$to"
