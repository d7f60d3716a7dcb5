#!/usr/bin/env bash
# DiM's pair and the residual one on two CPU cores, generators of width 32: the commands of benchmarks/results/*_gan_cpu.json.
#   bash runs/gan_cpu.sh tune          rates, the same trials for both, on 5,000 held-out training images
#   bash runs/gan_cpu.sh ingredients   what each ingredient earns, likewise
#   bash runs/gan_cpu.sh long          both pairs with a rate decay, at about equal seconds, on the test set
#   bash runs/gan_cpu.sh filter        what a teacher's filter earns, on the held-out images
#   bash runs/gan_cpu.sh match         what stage 2 earns from one checkpoint, likewise
#   bash runs/gan_cpu.sh curves        both pairs against time, on the test set, at the rates chosen
# Stopped, the same command continues. DATA=cifar10 for CIFAR-10.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
DATA=${DATA:-fashion}
DATA_DIR=${DATA_DIR:-datasets}
EPOCHS=${EPOCHS:-1 2 3 4}  # of curves; DATA=cifar10 EPOCHS="1 2 3"
declare -A RECIPE=([dim]="--lr 1e-3 --lr-d 5e-4" [resnet]="--lr 1e-3 --lr-d 1e-3")  # as tune chose them

train() {  # TAG FLAGS...
    $PYTHON gen_condense.py --tag "${DATA}_$1" --data "$DATA" --data-dir "$DATA_DIR" --val-size 5000 --width 32 --batch-size 64 --ema 0.999 \
        --eval-interval 0 --amp --epochs 1 "${@:2}"
}
score() {  # TAG FLAGS...
    $PYTHON validate.py --tag "${DATA}_$1" --data-dir "$DATA_DIR" --source generator --eval-model convnet_w32 --ipc 50 --epochs-eval 60 \
        --repeats 3 --amp "${@:2}"
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
    for EPOCH in $EPOCHS; do
        for GAN in resnet dim; do
            [ $GAN$EPOCH = dim${EPOCHS: -1} ] && continue  # one epoch fewer of dim takes as long
            train "${GAN}_curve" --gan $GAN ${RECIPE[$GAN]} --epochs $EPOCH
            score "${GAN}_curve_test" --pretrain-weight "results/${DATA}_${GAN}_curve/last.pth"
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
    # two generators at the bytes of one
    train resnet_half_1 --gan resnet ${RECIPE[resnet]} --width 20
    train resnet_half_2 --gan resnet ${RECIPE[resnet]} --width 20 --seed 1
    score resnet_halves_val --val-size 5000 --pretrain-weight "results/${DATA}_resnet_half_1/last.pth" "results/${DATA}_resnet_half_2/last.pth" ;;
long)  # with linear decay; EPOCHS of the residual pair and EPOCHS_DIM of DiM's take about as long. Seconds are in metrics.jsonl
    train resnet_long --gan resnet --lr 5e-4 --lr-d 1e-3 --batch-size 32 --lr-decay linear --epochs "${EPOCHS_RESNET:-3}"
    score resnet_long_test --pretrain-weight "results/${DATA}_resnet_long/last.pth"
    train dim_long --gan dim ${RECIPE[dim]} --lr-decay linear --epochs "${EPOCHS_DIM:-3}"
    score dim_long_test --pretrain-weight "results/${DATA}_dim_long/last.pth" ;;
filter)  # the images that a teacher is sure of; its bytes count
    $PYTHON validate.py --tag "${DATA}_teacher" --data "$DATA" --data-dir "$DATA_DIR" --source real --eval-model convnet_w32 --ipc 500 \
        --epochs-eval 10 --repeats 1 --amp --val-size 5000 --save-classifiers
    TEACHER=$(ls "results/${DATA}_teacher/classifiers/"*.pth)
    score resnet_long_val --val-size 5000 --pretrain-weight "results/${DATA}_resnet_long/last.pth"
    score resnet_filter_val --val-size 5000 --pretrain-weight "results/${DATA}_resnet_long/last.pth" --filter 0.5 --teacher "$TEACHER" ;;
match)
    WEIGHT=results/${DATA}_resnet_long/last.pth
    for MATCH in none logit feat grad dist; do
        $PYTHON pool_match.py --tag "${DATA}_match_$MATCH" --data-dir "$DATA_DIR" --val-size 5000 --weight "$WEIGHT" --match $MATCH --match-aug \
            --batch-size 128 --lr 5e-5 --epochs 1 --ema 0.999 --pool convnet_w32 --pool-size 3 --pool-steps 2 --eval-interval 0 --amp
        score "match_${MATCH}_val" --val-size 5000 --pretrain-weight "results/${DATA}_match_$MATCH/last.pth"
    done ;;
*) echo "expected tune, ingredients, curves, long, filter or match, found ${1:-nothing}" >&2; exit 2 ;;
esac
