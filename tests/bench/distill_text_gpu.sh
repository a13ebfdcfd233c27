#!/bin/bash
# The text cases of `bench distill` on a machine with CUDA GPUs, as many small processes as its cores feed. From the root:
#   ROOT=... OUT=... LIMIT=540 [GPUS="0 1"] bash tests/bench/distill_text_gpu.sh first|more
# ROOT: data/TASK/*.parquet, all-mpnet-base-v2, all-MiniLM-L6-v2 (docs/howto/distill-bench.md); general/ is made there.
# first: teachers, settings on SNLI (which no table reports), general starts, then cells; more: cells alone.
# LIMIT: wall-clock seconds; whatever is finished is packed. PROCS: processes a GPU (6: one keeps up to 10 GiB of features).
# TASKS, SYSTEMS: what `more` runs. DEVICE=cpu EXTRA="--quick --seeds 1" tries it on a CPU.
# Leaves $OUT/text.tgz: unpacked, it is a --work folder from which `bench distill` computes the rows without any training.
set -u
WORK=${WORK:-/dev/shm/distill} GPUS=${GPUS:-"0 1"} DEVICE=${DEVICE:-cuda} EXTRA=${EXTRA:-} PROCS=${PROCS:-6}
END=$(( $(date +%s) + LIMIT - 15 ))
FIRST=bert6x384/rte,bert6x384/mrpc,bert6x384/cola,bert6x384/clinc150,bert6x384/banking77,bert6x384/ag_news,bert6x384/sst2
export PYTHONPATH=$PWD OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
GRAPHS= ; GRAPHED=
if [ "$DEVICE" = cuda ]; then
  GRAPHS=--graphs GRAPHED=graphs=1
  # kernels of several processes at once instead of in turns
  export CUDA_MPS_PIPE_DIRECTORY=/tmp/mps CUDA_MPS_LOG_DIRECTORY=/tmp/mps
  mkdir -p /tmp/mps; command -v nvidia-cuda-mps-control > /dev/null && nvidia-cuda-mps-control -d
fi
mkdir -p "$WORK/log" "$ROOT/general" "$OUT"
left() { echo $(( END - $(date +%s) )); }
gpu() { set -- "$1" $GPUS; shift $(( $1 % ($# - 1) + 1 )); echo "$1"; }
bench() {  # number, name, options
  local n=$1 name=$2; shift 2
  CUDA_VISIBLE_DEVICES=$(gpu "$n") timeout -k 5 "$(left)" python3 -m ml_core bench distill --device "$DEVICE" $GRAPHS --replicates 2 \
    --work "$WORK" --text-data "$ROOT/data" --teacher "$ROOT/all-mpnet-base-v2" --student "$ROOT/all-MiniLM-L6-v2" \
    --general "$ROOT/general" $EXTRA "$@" >> "$WORK/log/$name" 2>&1
}
general() {  # number, recipe
  CUDA_VISIBLE_DEVICES=$(gpu "$1") timeout -k 5 "$(left)" python3 -m ml_core distill --recipe "$2" --input "text_data=$ROOT/data" \
    --input "teacher=$ROOT/all-mpnet-base-v2" --out "$ROOT/general" "device=$DEVICE" $GRAPHED ${GENERAL:-} >> "$WORK/log/$2" 2>&1
}
cells() {  # name, tasks
  for i in $(seq $(( PROCS * $(echo $GPUS | wc -w) ))); do bench "$i" "$1-$i" --tasks "$2" --systems "${SYSTEMS:-six}" & done
}
if [ "$1" = first ]; then
  i=0
  for task in snli sst2 clinc150 banking77 cola mrpc rte ag_news; do
    bench $i "teacher-$task" --tasks "bert6x384/$task" --systems ce --seeds 1 & i=$((i + 1))
  done
  tuners=
  for i in $(seq "${TUNERS:-8}"); do
    bench "$i" "tune-$i" --tasks bert6x384/snli --systems ce --seeds 1 --tune bert6x384/snli & tuners="$tuners $!"
  done
  while [ ! -e "$WORK/tuned.json" ] && [ "$(left)" -gt 0 ] && kill -0 $tuners 2> /dev/null; do sleep 0.5; done
  echo "tuned with $(left) s left: $(tr -d '\n' < "$WORK/tuned.json")"
  general 0 text_general_5m & small=$!
  general 1 text_general_21m & large=$!
  cells first "${TASKS:-$FIRST}"
  wait $small $large
  echo "general starts with $(left) s left"
fi
cells rest "${TASKS:-bert6x384,layers4x768,factor4x256,factor4x768}"
wait
cat "$WORK"/log/* | grep -i 'error' | sort | uniq -c | sort -rn | head -8
python3 -m tests.bench.ledger_pack "$WORK" "$OUT/text.tgz"
