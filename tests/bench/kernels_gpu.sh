#!/bin/bash
# Every kernel's tests and benchmarks on a machine with a CUDA GPU. From the root, in this order, each with its own limit:
#   [DATA=...] bash tests/bench/kernels_gpu.sh FOLDER [sanitize tests superops graphs dpe ncu segments decode report long]
# Leaves FOLDER/NAME.json and FOLDER/NAME.log (of the tests alone the log). A part that fails does not stop the others.
# long: with DATA, a folder of movie_reviews/ and cuad/ (the shared data's text). Needs torch, triton, transformers, timm, safetensors, jaxtyping, beartype, pydicom, pytest.
set -u
OUT=$1; shift
PARTS=${*:-"tests superops graphs dpe segments decode report"}
mkdir -p "$OUT"
export PYTHONPATH=$PWD:$PWD/tests/support HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
bench() {  # name, seconds, more arguments
  local name=$1 limit=$2; shift 2
  timeout "$limit" python3 -m ml_core bench "$name" --json "$@" > "$OUT/$name.json" 2> "$OUT/$name.log"
  echo "$name: exit $? after $SECONDS s"
}
for part in $PARTS; do
  SECONDS=0
  case $part in
    tests)  # all that are marked for a GPU, in four groups beside each other
      group() {  # name, seconds, files
        local name=$1 limit=$2; shift 2
        timeout "$limit" python3 -m pytest -c /dev/null --rootdir=. --import-mode=importlib -p no:cacheprovider -W ignore -q -m gpu \
          --confcutdir=tests/unit/ml_core --continue-on-collection-errors "$@" > "$OUT/tests_$name.log" 2>&1
        echo "tests of $name: exit $? after $SECONDS s; $(tail -1 "$OUT/tests_$name.log")"
      }
      U=tests/unit/ml_core
      group attention 500 $U/kernels/test_dpe_*.py &
      group kernels 300 $U/kernels/test_[!d]*.py $U/quant &
      group serving 300 $U/serving/test_{graphs,decode,report_decode}.py $U/layers/test_fuse.py &
      group training 300 $U/train/test_graphs.py $U/distill/test_compiled.py $U/distill/tasks/test_systems.py $U/distill/teachers/test_text.py &
      wait ;;
    superops) bench superops 500 --measure "$OUT/measured.json" ;;
    graphs) bench graphs 120 ;;
    dpe) bench dpe 500 ;;
    segments) bench segments 1100 ;;
    decode) bench decode 300 --compiled ;;
    report) bench report 240 --compiled ;;
    sanitize)  # odd sizes: pairs that start at odd entries, last tiles, masks
      timeout 300 compute-sanitizer --tool memcheck --log-file "$OUT/sanitize.log" python3 -m tests.bench.run dpe-profile \
        --tokens 64 200 257 --heads 2 --ordered > "$OUT/sanitize.out" 2>&1
      echo "sanitize: exit $? after $SECONDS s; $(tail -1 "$OUT/sanitize.log")" ;;
    ncu)
      # beside them flash attention's own kernels, without any bias: what the same work takes there
      timeout 300 ncu --clock-control none --print-details all -c 12 \
        -k 'regex:forward_kernel|keys_kernel|queries_kernel|diagonals_kernel|flash_fwd|flash_bwd_dq_dk_dv' \
        --section SpeedOfLight --section ComputeWorkloadAnalysis --section MemoryWorkloadAnalysis --section Occupancy \
        --section SchedulerStats --section WarpStateStats --section LaunchStats \
        python3 -m tests.bench.run dpe-profile --ordered --flash > "$OUT/ncu.txt" 2>&1
      echo "ncu: exit $? after $SECONDS s" ;;
    long)
      timeout 1100 python3 -m tests.bench.run long-documents --data "$DATA" --out "$OUT/long.json" > "$OUT/long.log" 2>&1
      echo "long: exit $? after $SECONDS s" ;;
    *) echo "$part: no such part"; exit 2 ;;
  esac
done
