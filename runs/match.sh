#!/usr/bin/env bash
# Matching alone from a released generator, on two CPU cores: the commands of benchmarks/results/*_match_{cifar10,fashion}.json.
#   bash runs/match.sh match    stage 2 without a GAN, minutes
#   bash runs/match.sh table    the generator after it and before
#   bash runs/match.sh draw     fixed sets of it whose latents are matched too
# Stopped, the same command continues. DATA=fashion for Fashion-MNIST, SEED=1 for another training, BEFORE for another generator.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
DATA=${DATA:-cifar10}
DATA_DIR=${DATA_DIR:-datasets}
RESULTS=${RESULTS:-results}
REPEATS=${REPEATS:-5}
SEED=${SEED:-0}
BEFORE=${BEFORE:-weights/${DATA}_w32.safetensors}

case ${1:-nothing} in
match)
    $PYTHON pool_match.py --recipe-match energy --weight "$BEFORE" --val-size 5000 --data-dir "$DATA_DIR" --results-dir "$RESULTS" \
        --tag "${DATA}_match_$SEED" --seed "$SEED" ;;
table)
    $PYTHON validate.py --tag "${DATA}_matched_$SEED" --pretrain-weight "$RESULTS/${DATA}_match_$SEED/last.pth" "$BEFORE" --storage fp16 \
        --budget stream fixed --source generator --no-real --ipc 10 --eval-model convnet_w32 --epochs-eval 200 --repeats "$REPEATS" \
        --data-dir "$DATA_DIR" --results-dir "$RESULTS" ;;
draw)
    $PYTHON validate.py --tag "${DATA}_drawn_$SEED" --pretrain-weight "$RESULTS/${DATA}_match_$SEED/last.pth" --storage fp16 \
        --draw matched --budget fixed --source generator --no-real --ipc 10 --eval-model convnet_w32 --epochs-eval 200 --repeats "$REPEATS" \
        --data-dir "$DATA_DIR" --results-dir "$RESULTS" ;;
*)
    sed -n '2,6p' "$0"; exit 2 ;;
esac
