#!/usr/bin/env bash
# One table with every source on two CPU cores: the commands of benchmarks/results/*_referee_{fashion,cifar10}{,_more}.json.
#   bash runs/referee.sh train         three generators of width 32 that differ in their seed
#   bash runs/referee.sh table         every source at IPC 1 and 10 on both budgets; 50 for three of them
#   bash runs/referee.sh storage       the same generator in float32 and int8
#   bash runs/referee.sh export        a fixed set that is exported, and read back from its three files
#   bash runs/referee.sh trainings     all three generators
#   bash runs/referee.sh curve         accuracy against images seen
#   bash runs/referee.sh soft          labels of a teacher
#   bash runs/referee.sh strong        the recipe strong
#   bash runs/referee.sh architectures two networks more
# Stopped, the same command continues. DATA=cifar10 for CIFAR-10.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
DATA=${DATA:-fashion}
DATA_DIR=${DATA_DIR:-datasets}
declare -A RECIPE=([fashion]="--lr 1e-3 --lr-d 5e-4 --epochs 3" [cifar10]="--lr 5e-4 --lr-d 5e-4 --lr-decay linear --epochs 4")
GAN="results/${DATA}_0/last.pth"
GANS="$GAN results/${DATA}_1/last.pth results/${DATA}_2/last.pth"
OUT="results/${DATA}_export"
TEACHER="results/${DATA}_teacher/classifiers"

score() {  # TAG FLAGS...
    $PYTHON validate.py --tag "${DATA}_$1" --data "$DATA" --data-dir "$DATA_DIR" --eval-model convnet_w32 --epochs-eval 200 --repeats 3 \
        "${@:2}"
}

case ${1:-nothing} in
train)
    for SEED in 0 1 2; do
        $PYTHON gen_condense.py --tag "${DATA}_$SEED" --data "$DATA" --data-dir "$DATA_DIR" --gan dim --width 32 --batch-size 64 --ema 0.999 \
            --val-size 5000 --eval-interval 0 --seed $SEED ${RECIPE[$DATA]}
    done ;;
table)
    BOTH="--pretrain-weight $GAN --storage fp16 --budget stream fixed"
    score referee $BOTH --source generator random-real herding real --match-bytes --ipc 1 10
    score referee $BOTH --source generator random-real real --ipc 50 ;;
storage)
    for STORAGE in fp32 fp16 int8; do
        score referee --pretrain-weight $GAN --source generator --no-real --storage $STORAGE --budget stream fixed --ipc 10
    done ;;
export)
    score export --pretrain-weight $GAN --source generator --no-real --storage int8 --budget fixed --ipc 1 10 --export "$OUT"
    score export --source file --no-real --file "$OUT"/ipc1.pt "$OUT"/ipc10.pt "$OUT"/ipc1 "$OUT"/ipc10 --budget fixed ;;
trainings)
    score trainings --pretrain-weight $GANS --source generator random-real --storage fp16 --ipc 10 ;;
curve)
    score curve --pretrain-weight $GAN --source generator random-real herding real --storage fp16 --match-bytes --ipc 10 --curve 6 ;;
soft)
    score teacher --source real --ipc 500 --epochs-eval 40 --repeats 1 --seed 1 --save-classifiers
    score soft --pretrain-weight $GAN --source generator random-real real --storage fp16 --ipc 10 --labels hard soft --temperature 4 \
        --teacher "$TEACHER"/convnet_w32_real_*.pth ;;
strong)
    score strong --pretrain-weight $GAN --source generator random-real real --storage fp16 --ipc 10 --recipe strong ;;
architectures)
    score architectures --pretrain-weight $GAN --source generator random-real real --storage fp16 --ipc 10 \
        --eval-model convnet_w32 resnet10 mlp_w400 ;;
*)
    sed -n '2,12p' "$0"; exit 2 ;;
esac
