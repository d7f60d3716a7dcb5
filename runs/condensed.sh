#!/usr/bin/env bash
# Condensed images against the real ones they start from and a generator of the same bytes; as a memory of
# continual learning: python runs/run.py continual.
#   bash runs/condensed.sh dm        check against DM (arXiv:2110.04181): CIFAR-10, IPC 10, ConvNet-3 of width 128, its recipe (best on a GPU)
#   bash runs/condensed.sh table     IPC 10 on a narrow network, and as many images as fit into a released generator, on one core
#   bash runs/condensed.sh match     the three distances beside each other, on held-out images
# Stopped, the same command continues. DATA=fashion for Fashion-MNIST; FLAGS are added, such as --graphs. The times are estimates, steps timed on one core without bf16 instructions.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
DATA=${DATA:-cifar10}
DATA_DIR=${DATA_DIR:-datasets}
RESULTS=${RESULTS:-results}
REPEATS=${REPEATS:-3}

score() {  # TAG FLAGS...
    $PYTHON validate.py --tag "${DATA}_$1" --data "$DATA" --data-dir "$DATA_DIR" --results-dir "$RESULTS" ${FLAGS:-} "${@:2}"
}
small() {  # TAG FLAGS...: classifiers of two minutes or less
    score "$1" --eval-model convnet_w32 --epochs-eval 200 --repeats "$REPEATS" --ipc 10 --no-real "${@:2}"
}

case ${1:-nothing} in
dm)  # DM: 20,000 steps of 256 real images a class, 13.4 s each on one core: 75 hours; BATCH=64 STEPS=960: an hour. On an H200 with FLAGS=--graphs 24 ms, shared. Then ten classifiers, an hour
    score dm --source condensed random-real --no-real --budget fixed --recipe dc --ipc 10 --eval-model convnet --repeats 5 \
        --condense-network convnet --condense-batch "${BATCH:-256}" --condense-steps "${STEPS:-20000}" ;;
table)  # 1,000 steps of 0.6 to 1.1 s for each of three sets, and 200 epochs of 24 classifiers of 20 s or so: about 50 minutes
    small condensed --source condensed random-real --budget fixed --condense-steps "${STEPS:-1000}"
    for CODEC in raw jpeg; do
        small condensed --source generator condensed --budget stream --match-bytes --condense-steps "${STEPS:-1000}" \
            --pretrain-weight "weights/${DATA}_w32.safetensors" --codec $CODEC
    done ;;
match)  # 300 steps of 0.6 s (mean), 0.7 s (dist) and 1.0 s (grad): about 15 minutes
    for MATCH in mean-last dist grad; do
        small "condensed_val" --source condensed --budget fixed --val-size 5000 --condense-match $MATCH --condense-steps "${STEPS:-300}"
    done ;;
*)
    sed -n '2,7p' "$0"; exit 2 ;;
esac
