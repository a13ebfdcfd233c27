#!/bin/bash
# `bench distill` on a machine with CUDA GPUs, as many small processes as its cores feed. From the root:
#   ROOT=... LIMIT=540 [GPUS="0 1"] bash tests/bench/distill_gpu.sh run
#   ROOT=... bash tests/bench/distill_gpu.sh pack FOLDER
#   bash tests/bench/distill_gpu.sh unpack tests/bench/results/distill-text
#   ROOT=... LIMIT=240 [GPUS=1 PROCS=10] bash tests/bench/distill_gpu.sh small FILE.json
# ROOT: data/TASK/*.parquet, all-mpnet-base-v2, all-MiniLM-L6-v2 (docs/howto/distill-bench.md); general/ is made there.
# run: the teachers; settings of every student on SNLI, which no table reports; the general starts; then the cells of
# STUDENTS in that order, of TASKS those before a "|" first. LIMIT: wall-clock seconds. What is finished counts, and the
# same command goes on behind it.
# PROCS: processes a GPU (7: one keeps up to 10 GiB of a teacher's features). EXTRA="--quick --seeds 1" DEVICE=cpu tries it.
# pack: leaves FOLDER/STUDENT.tgz each: unpacked, a --work folder from which `bench distill` computes rows without training.
# unpack: the other way, so that `run` goes on behind what those hold; teachers are trained again.
# small: digits, films (ROOT/nih, ROOT/efficientnet-lite0.safetensors) and fraud with every mend left out and every variant;
# settings are chosen on digits. The last minute is for the rows, in FILE.json: films and fraud can only be computed where they were trained.
# A multi-process service that runs already (CUDA_MPS_PIPE_DIRECTORY) is used as it is.
set -u
WORK=${WORK:-/dev/shm/distill} GPUS=${GPUS:-"0 1"} DEVICE=${DEVICE:-cuda} EXTRA=${EXTRA:-} PROCS=${PROCS:-7}
STUDENTS=${STUDENTS:-"bert6x384 layers4x768 factor4x256 factor4x768"}
TASKS=${TASKS:-"rte mrpc cola clinc150 banking77 ag_news sst2"}
export PYTHONPATH=$PWD OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
if [ "$1" = pack ]; then
  for student in $STUDENTS; do
    if [ -s "$WORK/$student/cells.jsonl" ]; then
      cp -r "$WORK/log" "$WORK/$student/"
      python3 -m tests.bench.ledger_pack "$WORK/$student" "$2/$student.tgz"
    fi
  done
  exit
fi
if [ "$1" = unpack ]; then
  mkdir -p "$WORK/teachers"
  for student in $STUDENTS; do
    [ -e "$2/$student.tgz" ] || continue
    mkdir -p "$WORK/$student"
    tar xzf "$2/$student.tgz" -C "$WORK/$student"
    cp -r "$WORK/$student/teachers/." "$WORK/teachers/" && rm -r "$WORK/$student/teachers"
  done
  exit
fi
END=$(( $(date +%s) + LIMIT ))
GRAPHS= ; GRAPHED=
if [ "$DEVICE" = cuda ]; then
  GRAPHS=${GRAPHS_OPTION---graphs} GRAPHED=graphs=1
  if [ -z "${CUDA_MPS_PIPE_DIRECTORY:-}" ]; then
    export CUDA_MPS_PIPE_DIRECTORY=/tmp/mps CUDA_MPS_LOG_DIRECTORY=/tmp/mps
    mkdir -p /tmp/mps; command -v nvidia-cuda-mps-control > /dev/null && nvidia-cuda-mps-control -d
  fi
fi
left() { echo $(( END - $(date +%s) )); }
gpu() { set -- "$1" $GPUS; shift $(( $1 % ($# - 1) + 1 )); echo "$1"; }
if [ "$1" = small ]; then
  mkdir -p "$WORK/small/log"
  tuned='vit96x6>vit32x3/digits'
  small() {  # number, seconds that it leaves, options
    local n=$1 time=$(( $(left) - $2 )); shift 2
    [ "$time" -gt 5 ] || return 0
    CUDA_VISIBLE_DEVICES=$(gpu "$n") timeout -k 5 "$time" python3 -m ml_core bench distill --device "$DEVICE" $GRAPHS --work "$WORK/small" \
      --films "$ROOT/nih" --stem "$ROOT/efficientnet-lite0.safetensors" $EXTRA "$@" >> "$WORK/small/log/$n" 2>&1
  }
  some() {  # number: all cells, each process beginning with another family
    small "$1" 60 --worker --tasks "$tuned" --systems ce --seeds 1 --tune "$tuned"
    case $(( $1 % 3 )) in 0) order="digits films fraud" ;; 1) order="films fraud digits" ;; 2) order="fraud digits films" ;; esac
    for family in $order; do small "$1" 60 --worker --tasks "$family" --systems six,ablate,variants; done
  }
  for n in $(seq $(( PROCS * $(echo $GPUS | wc -w) ))); do some "$n" & done
  wait
  for family in digits films fraud; do small 0 0 --tasks "$family" --systems six,ablate,variants --merge --out "$2"; done
  grep -hi 'error' "$WORK"/small/log/* | sort | uniq -c | sort -rn | head -8
  exit
fi
mkdir -p "$WORK/log" "$WORK/teachers" "$ROOT/general"
for student in bert6x384 $STUDENTS; do mkdir -p "$WORK/$student"; ln -sfn ../teachers "$WORK/$student/teachers"; done
bench() {  # number, student, tasks, options
  local n=$1 student=$2 tasks=$3; shift 3
  [ "$(left)" -gt 5 ] || return 0
  CUDA_VISIBLE_DEVICES=$(gpu "$n") timeout -k 5 "$(left)" python3 -m ml_core bench distill --device "$DEVICE" $GRAPHS --worker \
    --work "$WORK/$student" --text-data "$ROOT/data" --teacher "$ROOT/all-mpnet-base-v2" --student "$ROOT/all-MiniLM-L6-v2" \
    --general "$ROOT/general" --tasks "$tasks" $EXTRA "$@" >> "$WORK/log/$n" 2>&1
}
teach() { bench "$1" bert6x384 "bert6x384/$2" --systems ce --seeds 1; }  # number, task
tune() { bench "$1" "$2" "$2/snli" --systems ce --seeds 1 --tune "$2/snli"; }  # number, student
general() {  # number, recipe, student
  [ -e "$ROOT/general/$3.json" ] || CUDA_VISIBLE_DEVICES=$(gpu "$1") timeout -k 5 "$(left)" python3 -m ml_core distill --recipe "$2" \
    --input "text_data=$ROOT/data" --input "teacher=$ROOT/all-mpnet-base-v2" --out "$ROOT/general" "device=$DEVICE" $GRAPHED \
    ${GENERAL:-} >> "$WORK/log/$3" 2>&1
}
work() {  # number; all cells of the students whose start is there, again and again until nothing is left to take
  local n=$1 waiting=1 student tasks task some group
  IFS='|' read -ra some <<< "$TASKS"
  while [ "$waiting" = 1 ] && [ "$(left)" -gt 5 ]; do
    waiting=0
    for group in "${some[@]}"; do
      for student in $STUDENTS; do
        case $student in factor*) if [ ! -e "$ROOT/general/$student.json" ]; then waiting=1; continue; fi ;; esac
        if [ ! -e "$WORK/$student/tuned.json" ]; then  # a third of the processes share the search, the others go on
          case $((n % 3))$student in 0factor4x256 | 1factor4x768) tune "$n" "$student" ;; *) waiting=1; continue ;; esac
        fi
        tasks=$(for task in $group; do printf '%s/%s,' "$student" "$task"; done)
        bench "$n" "$student" "$tasks" --systems "${SYSTEMS:-six}" || waiting=1
      done
    done
    [ "$waiting" = 0 ] || sleep 5
  done
}
total=$(( PROCS * $(echo $GPUS | wc -w) ))
n=0
untuned=$(for student in $STUDENTS; do [ -e "$WORK/$student/tuned.json" ] || echo "$student"; done)
if [ -n "$untuned" ]; then teach $n snli & n=$((n + 1)); fi
for pair in text_general_5m:factor4x256 text_general_21m:factor4x768; do
  case " $STUDENTS " in *" ${pair#*:} "*)
    { general $n "${pair%:*}" "${pair#*:}" && tune $n "${pair#*:}"; work $n; } & n=$((n + 1)) ;;
  esac
done
for student in $STUDENTS; do
  case $student in factor*) continue ;; esac
  [ -e "$WORK/$student/tuned.json" ] && continue
  for i in 1 2 3; do { tune $n "$student"; work $n; } & n=$((n + 1)); done
done
for task in sst2 clinc150 banking77 cola mrpc rte ag_news rte+pairs mrpc+pairs cola+corrupted; do
  case " $TASKS " in *" $task "*) { teach $n $task; work $n; } & n=$((n + 1)) ;; esac
done
while [ $n -lt $total ]; do work $n & n=$((n + 1)); done
wait
cat "$WORK"/log/* | grep -i 'error' | sort | uniq -c | sort -rn | head -8
