#!/usr/bin/env bash
# A wider generator of CIFAR-10, matched by wider networks, on one GPU: the commands of benchmarks/results/*_wide_cifar10_h200.json.
#   bash runs/wide.sh train    stage 1, a few epochs
#   bash runs/wide.sh match    matching alone, four times as long as the recipe's, by networks of width 128 and of width 32
#   bash runs/wide.sh val      the generators in int8 before and after it, on held-out images
#   bash runs/wide.sh table    the same on the test set, beside real images, and as many as fit into the bytes
#   bash runs/wide.sh export   the generator that is released
# Stopped, the same command continues. GAN=resnet WIDTH=72 EPOCHS=4 LR=1e-3 for the residual pair, which is about as large.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
DATA_DIR=${DATA_DIR:-datasets}
RESULTS=${RESULTS:-results}
FLAGS=${FLAGS---graphs}  # FLAGS= on a CPU
GAN=${GAN:-dim} WIDTH=${WIDTH:-64} EPOCHS=${EPOCHS:-3} LR=${LR:-5e-4}
NAME="wide_${GAN}_w$WIDTH"
SHARED="--data-dir $DATA_DIR --results-dir $RESULTS $FLAGS"
WEIGHTS="$RESULTS/$NAME/last.pth $RESULTS/${NAME}_convnet_w32/last.pth $RESULTS/${NAME}_convnet/last.pth"

score() {  # TAG WEIGHTS... FLAGS...
    $PYTHON validate.py --tag "${NAME}_$1" --storage int8 --budget stream --ipc 50 --eval-model convnet --epochs-eval 300 $SHARED \
        --pretrain-weight "${@:2}"
}

case ${1:-nothing} in
train)
    $PYTHON gen_condense.py --tag "$NAME" --gan "$GAN" --data cifar10 --width "$WIDTH" --batch-size 64 --ema 0.999 --lr "$LR" --lr-d "$LR" \
        --lr-decay linear --epochs "$EPOCHS" --eval-interval 0 --val-size 5000 $SHARED ;;
match)
    for NETWORK in convnet_w32 convnet; do
        AGES=4; [ $NETWORK = convnet ] && AGES=8  # epochs of a teacher
        $PYTHON pool_match.py --tag "${NAME}_$NETWORK" --recipe-match energy --epochs 4 --pool $NETWORK --teachers $NETWORK \
            --teacher-epochs $AGES --weight "$RESULTS/$NAME/last.pth" --val-size 5000 $SHARED
    done ;;
val)
    score val $WEIGHTS --source generator --no-real --val-size 5000 --repeats 2 ;;
table)
    score table $WEIGHTS --source generator random-real --match-bytes ;;
export)  # EXPORT names the folder; the released one is of the residual pair
    score export "$RESULTS/${NAME}_convnet/last.pth" --source generator --no-real --repeats 1 --export "${EXPORT:-$RESULTS/${NAME}_released}" ;;
*)
    sed -n '2,8p' "$0"; exit 2 ;;
esac
