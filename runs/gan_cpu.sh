#!/usr/bin/env bash
# DiM's pair and the residual one on two CPU cores, generators of width 32: the commands of benchmarks/results/*_gan_cpu.json.
#   bash runs/gan_cpu.sh tune          rates, the same trials for both, on 5,000 held-out training images
#   bash runs/gan_cpu.sh ingredients   what each ingredient earns, likewise
#   bash runs/gan_cpu.sh long          both pairs with a rate decay, at about equal seconds, on the test set
#   bash runs/gan_cpu.sh longer        likewise, at the rates of the curves and three times as long; DATA=cifar10
#   bash runs/gan_cpu.sh filter        what a teacher's filter earns, on the held-out images
#   bash runs/gan_cpu.sh match         what stage 2 earns from one checkpoint, likewise
#   bash runs/gan_cpu.sh curves        both pairs against time, on the test set, at the rates chosen
# Stopped, the same command continues. DATA=cifar10 for CIFAR-10; SEEDS="0 1 2" repeats the curves with other trainings.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
DATA=${DATA:-fashion}
DATA_DIR=${DATA_DIR:-datasets}
EPOCHS=${EPOCHS:-1 2 3 4}  # of curves
SEEDS=${SEEDS:-0}          # of curves
declare -A RECIPE=([dim]="--lr 1e-3 --lr-d 5e-4" [resnet]="--lr 1e-3 --lr-d 1e-3")  # as tune chose them

train() {  # TAG FLAGS...
    $PYTHON gen_condense.py --tag "${DATA}_$1" --data "$DATA" --data-dir "$DATA_DIR" --val-size 5000 --width 32 --batch-size 64 --ema 0.999 \
        --eval-interval 0 --epochs 1 "${@:2}"
}
score() {  # TAG FLAGS...
    $PYTHON validate.py --tag "${DATA}_$1" --data-dir "$DATA_DIR" --source generator --no-real --eval-model convnet_w32 --ipc 50 --epochs-eval 60 \
        --repeats 3 "${@:2}"
}
try() {  # TAG FLAGS...
    train "$@"
    score "$1_val" --val-size 5000 --pretrain-weight "results/${DATA}_$1/last.pth"
}

case ${1:-nothing} in
tune)
    for GAN in resnet dim; do
        try "${GAN}_tune_1" --gan $GAN --lr 5e-4 --lr-d 5e-4
        try "${GAN}_tune_2" --gan $GAN --lr 5e-4 --lr-d 1e-3
        try "${GAN}_tune_3" --gan $GAN --lr 1e-3 --lr-d 1e-3
        try "${GAN}_tune_4" --gan $GAN --lr 1e-3 --lr-d 5e-4
        try "${GAN}_tune_5" --gan $GAN --lr 1e-3 --lr-d 2e-3
    done ;;
curves)
    for SEED in $SEEDS; do
        for EPOCH in $EPOCHS; do
            for GAN in resnet dim; do
                [ $GAN$EPOCH = dim${EPOCHS: -1} ] && continue  # one epoch fewer of dim takes as long
                train "${GAN}_curve_$SEED" --gan $GAN ${RECIPE[$GAN]} --epochs $EPOCH --seed $SEED
                score "${GAN}_curve_${SEED}_test" --pretrain-weight "results/${DATA}_${GAN}_curve_$SEED/last.pth"
            done
        done
    done
    score real_test --data "$DATA" --source real random-real ;;
ingredients)
    try resnet_base --gan resnet ${RECIPE[resnet]}
    try resnet_decay --gan resnet ${RECIPE[resnet]} --lr-decay linear
    try resnet_b32 --gan resnet --lr 5e-4 --lr-d 1e-3 --batch-size 32
    try resnet_b16 --gan resnet --lr 5e-4 --lr-d 1e-3 --batch-size 16
    try resnet_diffaug --gan resnet ${RECIPE[resnet]} --diffaug color_crop_cutout
    try resnet_d2 --gan resnet ${RECIPE[resnet]} --d-steps 2 --epochs 2
    try resnet_no_ema --gan resnet ${RECIPE[resnet]} --ema 0
    try resnet_restat --gan resnet ${RECIPE[resnet]} --restat 20
    try dim_decay --gan dim ${RECIPE[dim]} --lr-decay linear
    try dim_no_ema --gan dim ${RECIPE[dim]} --ema 0
    ;;
long)  # with linear decay; EPOCHS of the residual pair and EPOCHS_DIM of DiM's take about as long. Seconds are in metrics.jsonl
    train resnet_long --gan resnet --lr 5e-4 --lr-d 1e-3 --batch-size 32 --lr-decay linear --epochs "${EPOCHS_RESNET:-3}"
    score resnet_long_test --pretrain-weight "results/${DATA}_resnet_long/last.pth"
    train dim_long --gan dim ${RECIPE[dim]} --lr-decay linear --epochs "${EPOCHS_DIM:-3}"
    score dim_long_test --pretrain-weight "results/${DATA}_dim_long/last.pth" ;;
longer)
    longer() {  # NAME EPOCHS FLAGS...
        train "$1_longer" --lr-decay linear --epochs "$2" "${@:3}"
        score "$1_longer_test" --pretrain-weight "results/${DATA}_$1_longer/last.pth"
    }
    longer resnet "${EPOCHS_RESNET:-12}" --gan resnet ${RECIPE[resnet]}
    longer dim "${EPOCHS_DIM:-10}" --gan dim ${RECIPE[dim]}
    longer dim_slow "${EPOCHS_DIM_SLOW:-9}" --gan dim --lr 5e-4 --lr-d 5e-4 ;;
filter)  # the images that a teacher is sure of; its bytes count
    $PYTHON validate.py --tag "${DATA}_teacher" --data "$DATA" --data-dir "$DATA_DIR" --source real --eval-model convnet_w32 --ipc 500 \
        --epochs-eval 10 --repeats 1 --val-size 5000 --save-classifiers
    TEACHER=$(ls "results/${DATA}_teacher/classifiers/"*.pth)
    score resnet_long_val --val-size 5000 --pretrain-weight "results/${DATA}_resnet_long/last.pth"
    score resnet_filter_val --val-size 5000 --pretrain-weight "results/${DATA}_resnet_long/last.pth" --filter 0.5 --teacher "$TEACHER" ;;
match)
    WEIGHT=results/${DATA}_resnet_long/last.pth
    for MATCH in none logit feat grad dist; do
        $PYTHON pool_match.py --tag "${DATA}_match_$MATCH" --data-dir "$DATA_DIR" --val-size 5000 --weight "$WEIGHT" --match $MATCH --match-aug \
            --batch-size 128 --lr 5e-5 --epochs 1 --ema 0.999 --pool convnet_w32 --pool-size 3 --pool-steps 2 --eval-interval 0
        score "match_${MATCH}_val" --val-size 5000 --pretrain-weight "results/${DATA}_match_$MATCH/last.pth"
    done ;;
*) echo "expected tune, ingredients, long, longer, filter, match or curves, found ${1:-nothing}" >&2; exit 2 ;;
esac
