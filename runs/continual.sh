#!/usr/bin/env bash
# Methods of continual learning against each other at the same stored bytes: what runs/continual_*.sh call.
#   DATA=mnist bash runs/continual.sh tune      two rates for each method, on held-out training images
#   DATA=mnist bash runs/continual.sh table     every method at BYTES, SEEDS
#   DATA=mnist bash runs/continual.sh ablate    the parts of dim
#   DATA=mnist bash runs/continual.sh sweep     BYTES (default 0.15 to 16 MB) x METHODS x SEEDS
# Each cell is a folder results/DATA_BYTES_NAME_SEED. Stopped, the same command continues; finished cells are skipped.
# Then: python figs/draw_continual.py results/mnist_* --out figs/split_mnist. Two cores by default; COMMON and GENERATOR are other sizes.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
DATA=${DATA:-mnist}
DATA_DIR=${DATA_DIR:-datasets}
SEEDS=${SEEDS:-0 1 2}
case ${1:-} in
sweep) BYTES=${BYTES:-150000 600000 1500000 6000000 16000000} ;;
*) BYTES=${BYTES:-600000} ;;
esac
METHODS=${METHODS:-finetune joint unlimited er der++ er-ace gdumb cls-er er_task er_webp er_jpeg er-ace_webp dgr dim oracle}
COMMON=${COMMON:---pool convnet_w32 --epochs 1 --batch-size 32}
GENERATOR=${GENERATOR:---gan resnet --gan-steps 600 --gan-batch-size 32}
declare -A FLAGS=(  # of a row, with the rate that tune chose
    [finetune]="--method finetune" [joint]="--method joint" [unlimited]="--method unlimited"
    [er]="--method er" [der++]="--method der++" [er-ace]="--method er-ace" [gdumb]="--method gdumb" [cls-er]="--method cls-er --average-decay 0.99"
    [er_task]="--method er --offer task" [er_webp]="--method er --codec webp" [er_jpeg]="--method er --codec jpeg" [er-ace_webp]="--method er-ace --codec webp"
    [der++_4]="--method der++ --epochs 4"  # about as long as dim
    [dgr]="--method dgr --storage fp32 $GENERATOR"
    [dim]="--method dim --match-steps 0 $GENERATOR"
    [oracle]="--method dim --oracle --storage fp32 --match-steps 0 $GENERATOR"
    # the parts of dim, changed one at a time
    [carried]="--method dim --layout carried --storage fp32 --match-steps 0 $GENERATOR"
    [match]="--method dim --match-steps 100 $GENERATOR"
    [match_none]="--method dim --match-steps 100 --match none $GENERATOR"
    [no_distill]="--method dim --match-steps 0 --distill-weight 0 $GENERATOR"
    [dim_er]="--method dim --match-steps 0 --replay-loss er $GENERATOR"
    [dim_er-ace]="--method dim --match-steps 0 --replay-loss er-ace $GENERATOR"
    [dim_cls-er]="--method dim --match-steps 0 --replay-loss cls-er --average-decay 0.99 $GENERATOR"
    [equal]="--method dim --match-steps 0 --replay-balance equal $GENERATOR"
    [filter]="--method dim --match-steps 0 --filter 0.5 $GENERATOR"
    [buffer]="--method dim --match-steps 0 --buffer-share 0.5 $GENERATOR"
    [buffer_webp]="--method dim --match-steps 0 --buffer-share 0.5 --codec webp $GENERATOR"
    [retrain]="--method dim --match-steps 0 --retrain $GENERATOR"
    [dim_1000]="--method dim --match-steps 0 $GENERATOR --gan-steps 1000"
    [dim_fp32]="--method dim --match-steps 0 --storage fp32 $GENERATOR"
    [dim_pair]="--method dim --match-steps 0 $GENERATOR --gan dim"
)
declare -A RATE=([der++]=0.1 [er-ace]=0.1 [cls-er]=0.1 [dgr]=0.1)  # others: 0.03

cell() {  # BYTES NAME SEED FLAGS...: one run, unless it is finished
    local tag=${DATA}_$1_$2_$3 budget=(--memory-bytes "$1")
    case $2 in finetune* | joint* | unlimited*) tag=${DATA}_$2_$3 budget=() ;; esac
    grep -q '"finished": true' "results/$tag/results.json" 2>/dev/null && return
    echo "== $tag"
    $PYTHON continual.py --tag "$tag" --data "$DATA" --data-dir "$DATA_DIR" --seed "$3" $COMMON "${budget[@]}" "${@:4}"
}

case ${1:-nothing} in
tune)
    for NAME in ${METHODS}; do
        for LR in 0.03 0.1; do cell "$BYTES" "${NAME}_val_$LR" 0 ${FLAGS[$NAME]} --lr $LR --val-size 5000; done
    done ;;
table | sweep)
    for SEED in $SEEDS; do
        for B in $BYTES; do
            for NAME in $METHODS; do cell "$B" "$NAME" "$SEED" ${FLAGS[$NAME]} --lr "${RATE[${NAME%%_*}]:-0.03}"; done
        done
    done ;;
ablate)
    for SEED in $SEEDS; do
        for NAME in ${PARTS:-carried match match_none no_distill equal filter buffer buffer_webp retrain dim_fp32 dim_pair}; do
            cell "$BYTES" "$NAME" "$SEED" ${FLAGS[$NAME]} --lr "${RATE[dim]:-0.03}"
        done
    done ;;
*) echo "expected tune, table, sweep or ablate, found ${1:-nothing}" >&2; exit 2 ;;
esac
