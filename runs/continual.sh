#!/usr/bin/env bash
# Methods of continual learning against each other at the same stored bytes: what runs/continual_*.sh call.
#   DATA=mnist bash runs/continual.sh tune      two rates for each method, on held-out training images
#   DATA=mnist bash runs/continual.sh table     every method at BYTES, SEEDS
#   DATA=mnist bash runs/continual.sh ablate    the parts of dim
#   DATA=mnist bash runs/continual.sh sweep     BYTES (default 0.05 to 6 MB) x METHODS x SEEDS, JPEG scans of QUALITY (25); what does not fit is left out
# Each cell is a folder RESULTS/DATA_BYTES_NAME_SEED. FLAGS are added to each, such as --graphs. Stopped, the same command continues; finished cells are skipped.
# Then: python figs/draw_continual.py results/mnist_* --out figs/split_mnist. Two cores by default; COMMON and GENERATOR are other sizes.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
DATA=${DATA:-mnist}
DATA_DIR=${DATA_DIR:-datasets}
RESULTS=${RESULTS:-results}
SEEDS=${SEEDS:-0 1 2}
PLAIN="er der++ er-ace gdumb cls-er"
case ${1:-} in
sweep)
    Q=scan${QUALITY:-25}  # choose it on held-out images
    BYTES=${BYTES:-50000 150000 600000 1500000 6000000}
    METHODS=${METHODS:-er_${Q}_rd er-ace_${Q}_rd condensed-fill_${Q}_rd condensed-fill-ace_${Q}_rd condensed-dist-fill_${Q}_rd condensed-dist-fill-ace_${Q}_rd condensed-dist-fill-cls_${Q}_rd der++_${Q}_rd cls-er_${Q}_rd gdumb_$Q $PLAIN dim-task_rd} ;;
*)
    BYTES=${BYTES:-600000}
    METHODS=${METHODS:-finetune joint unlimited $PLAIN er_task er_webp er_jpeg er-ace_webp dgr dim oracle} ;;
esac
COMMON=${COMMON:---pool convnet_w32 --epochs 1 --batch-size 32}
GENERATOR=${GENERATOR:---gan resnet --gan-steps 600 --gan-batch-size 32 --class-tables all}
ENERGY_CONDENSE=${ENERGY_CONDENSE:---condense-match dist --condense-lr 1 --condense-images 64}  # many condensed images
DIM=${DIM:---gan-steps 750 --gan-batch-size 32}  # with tables of a task's own classes
CONDENSE=${CONDENSE:---condense-steps 300} REHEARSE=${REHEARSE:---rehearse-steps 300}
ENERGY=${ENERGY:---recipe-match energy --match-steps 300 --gan resnet --gan-steps 300 --gan-batch-size 32}
declare -A ROW=(  # of a row, with the rate that tune chose
    [finetune]="--method finetune" [joint]="--method joint" [unlimited]="--method unlimited"
    [er]="--method er" [der++]="--method der++" [er-ace]="--method er-ace" [gdumb]="--method gdumb" [cls-er]="--method cls-er --average-decay 0.99"
    [er_task]="--method er --offer task" [er_webp]="--method er --codec webp" [er_jpeg]="--method er --codec jpeg" [er-ace_webp]="--method er-ace --codec webp"
    [der++_4]="--method der++ --epochs 4"  # about as long as dim
    [dgr]="--method dgr --storage fp32 $GENERATOR"
    [dim]="--method dim --match-steps 0 $GENERATOR"
    [oracle]="--method dim --oracle --storage fp32 --match-steps 0 $GENERATOR"
    [condensed]="--method condensed $CONDENSE" [condensed_jpeg]="--method condensed --codec jpeg $CONDENSE"
    # _r: the networks rehearse on memory alone at the end of each task
    [er_r]="--method er $REHEARSE" [er_webp_r]="--method er --codec webp $REHEARSE" [er_jpeg_r]="--method er --codec jpeg $REHEARSE"
    [er-ace_webp_r]="--method er-ace --codec webp $REHEARSE" [der++_r]="--method der++ $REHEARSE"
    [condensed_r]="--method condensed $CONDENSE $REHEARSE" [condensed_jpeg_r]="--method condensed --codec jpeg $CONDENSE $REHEARSE"
    [er_jpeg50_r]="--method er --codec jpeg --quality 50 $REHEARSE" [er-ace_jpeg50_r]="--method er-ace --codec jpeg --quality 50 $REHEARSE"
    [er-ace_jpeg50_r1500]="--method er-ace --codec jpeg --quality 50 --rehearse-steps 1500"  # five times the rehearsal of er-ace_jpeg50_r
    [condensed_jpeg50_r]="--method condensed --codec jpeg --quality 50 $CONDENSE $REHEARSE"
    [condensed-ace_jpeg50_r]="--method condensed --replay-loss er-ace --codec jpeg --quality 50 $CONDENSE $REHEARSE"
    [condensed-dist_jpeg50_r]="--method condensed --codec jpeg --quality 50 $ENERGY_CONDENSE $CONDENSE $REHEARSE"
    [condensed-dist-ace_jpeg50_r]="--method condensed --replay-loss er-ace --codec jpeg --quality 50 $ENERGY_CONDENSE $CONDENSE $REHEARSE"
    # -fill: real images in the room that later tasks will need
    [condensed-fill_jpeg50_r]="--method condensed --fill-real --codec jpeg --quality 50 $CONDENSE $REHEARSE"
    [condensed-fill-ace_jpeg50_r]="--method condensed --fill-real --replay-loss er-ace --codec jpeg --quality 50 $CONDENSE $REHEARSE"
    [condensed-dist-fill_jpeg50_r]="--method condensed --fill-real --codec jpeg --quality 50 $ENERGY_CONDENSE $CONDENSE $REHEARSE"
    [condensed-dist-fill-ace_jpeg50_r]="--method condensed --fill-real --replay-loss er-ace --codec jpeg --quality 50 $ENERGY_CONDENSE $CONDENSE $REHEARSE"
    [condensed-dist-fill-cls_jpeg50_r]="--method condensed --fill-real --replay-loss cls-er --average-decay 0.99 --codec jpeg --quality 50 $ENERGY_CONDENSE $CONDENSE $REHEARSE"
    # the real images that condensing starts from, as many of each class and at the same time: a control
    [condensed-start_jpeg50_r]="--method condensed --codec jpeg --quality 50 --condense-steps 1 --condense-lr 1e-9 $REHEARSE"
    [condensed-start-ace_jpeg50_r]="--method condensed --replay-loss er-ace --codec jpeg --quality 50 --condense-steps 1 --condense-lr 1e-9 $REHEARSE"
    [condensed-start-fill-cls_jpeg50_r]="--method condensed --fill-real --replay-loss cls-er --average-decay 0.99 --codec jpeg --quality 50 --condense-steps 1 --condense-lr 1e-9 $REHEARSE"
    [der++_jpeg50_r]="--method der++ --codec jpeg --quality 50 $REHEARSE" [cls-er_jpeg50_r]="--method cls-er --average-decay 0.99 --codec jpeg --quality 50 $REHEARSE"
    [dim_r]="--method dim --match-steps 0 $GENERATOR $REHEARSE" [dim_energy_r]="--method dim $ENERGY $REHEARSE"
    # tables of a task's own classes, a longer GAN, and matched latents
    [dim-task_r]="--method dim $DIM $REHEARSE" [dim-latents_r]="--method dim $DIM --latents 50 $REHEARSE"
    # networks from scratch on memory alone
    [condensed_retrain]="--method condensed $CONDENSE --retrain" [gdumb_webp]="--method gdumb --codec webp"
    [condensed_jpeg50_retrain]="--method condensed --codec jpeg --quality 50 $CONDENSE --retrain" [gdumb_jpeg50]="--method gdumb --codec jpeg --quality 50"
    [condensed-dist_jpeg50_retrain]="--method condensed --codec jpeg --quality 50 $ENERGY_CONDENSE $CONDENSE --retrain"
    [condensed-fill_jpeg50_retrain]="--method condensed --fill-real --codec jpeg --quality 50 $CONDENSE --retrain"
    [condensed-dist-fill_jpeg50_retrain]="--method condensed --fill-real --codec jpeg --quality 50 $ENERGY_CONDENSE $CONDENSE --retrain"
    [condensed-start_jpeg50_retrain]="--method condensed --codec jpeg --quality 50 --condense-steps 1 --condense-lr 1e-9 --retrain"
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
row() {  # NAME: its flags. Of a row with _jpeg50 there is one with _scan and a quality for each quality, and _3_r is _r with three passes (any number); _rd is _r at a rate that falls to 0
    local known=$1 codec="--codec jpeg --quality 50" more=""
    [[ $known == *_rd ]] && known=${known%d} more=" --rehearse-decay linear"
    [[ $known =~ _([0-9]+)_r$ ]] && known=${known%_"${BASH_REMATCH[1]}"_r}_r more+=" --epochs ${BASH_REMATCH[1]}"
    [[ $known =~ _scan([1-9][0-9]?)(_|$) ]] && ((BASH_REMATCH[1] <= 95)) && known=${known/_scan${BASH_REMATCH[1]}/_jpeg50} codec="--codec jpeg-scan --quality ${BASH_REMATCH[1]}"
    [ -n "${ROW[$known]+known}" ] || {
        echo "METHODS or PARTS: found $1, expected some of $(printf '%s\n' "${!ROW[@]}" | sort | xargs), or with _scan and a quality from 1 to 95 for _jpeg50, _rd or _3_r for _r" >&2
        return 2
    }
    echo "${ROW[$known]/--codec jpeg --quality 50/$codec}$more"
}
for NAME in $METHODS ${PARTS:-}; do ROW[$NAME]=$(row "$NAME") || exit 2; done
rate() {  # NAME: the learning rate that tune chose
    case ${1%%_*} in *-ace | *-cls | der++ | cls-er | dgr) echo 0.1 ;; *) echo 0.03 ;; esac
}

CELLS=()  # of this call: BYTES|NAME|SEED|FLAGS
cells() {  # NAME SEED FLAGS...: a cell at each of BYTES, or one for a method that has no budget
    case $1 in finetune* | joint* | unlimited*) CELLS+=("|$1|$2|${*:3}"); return ;; esac
    for B in $BYTES; do CELLS+=("$B|$1|$2|--memory-bytes $B ${*:3}"); done
}
tag() {  # BYTES NAME SEED: the folder of a cell
    echo "${DATA}_${1:+$1_}$2_$3"
}
finished() {  # BYTES NAME SEED
    grep -q '"finished": true' "$RESULTS/$(tag "$@")/results.json" 2>/dev/null
}
left() {  # what is to be done after CELLS[$1]: how many cells, and the time of those of which a like one is finished
    local number=0 known=0 sum=0 took bytes name seed rest
    for CELL in "${CELLS[@]:$1}"; do
        IFS='|' read -r bytes name seed rest <<<"$CELL"
        finished "$bytes" "$name" "$seed" && continue
        number=$((number + 1))
        took=$(grep -l '"finished": true' "$RESULTS"/"$(tag "$bytes" "$name" "")"[0-9]*/results.json 2>/dev/null |
            xargs -r sed -n 's/^ "seconds": \([0-9]*\).*/\1/p' | sort -n | tail -n 1) || true
        [ -n "$took" ] && known=$((known + 1)) sum=$((sum + took))
    done
    echo "$number to go, $( ((known)) && echo "$known of them in about $(((sum + 59) / 60)) min" || echo "time not known yet")"
}

case ${1:-nothing} in
tune)
    for NAME in ${METHODS}; do
        for LR in 0.03 0.1; do cells "${NAME}_val_$LR" 0 ${ROW[$NAME]} --lr $LR --val-size 5000; done
    done ;;
table | sweep)
    for SEED in $SEEDS; do
        for NAME in $METHODS; do cells "$NAME" "$SEED" ${ROW[$NAME]} --lr "$(rate "$NAME")"; done
    done ;;
ablate)
    for SEED in $SEEDS; do
        for NAME in ${PARTS:-carried match match_none no_distill equal filter buffer buffer_webp retrain dim_fp32 dim_pair}; do
            cells "$NAME" "$SEED" ${ROW[$NAME]} --lr "$(rate dim)"
        done
    done ;;
*) echo "expected tune, table, sweep or ablate, found ${1:-nothing}" >&2; exit 2 ;;
esac
REFUSED=()
for NUMBER in "${!CELLS[@]}"; do
    IFS='|' read -r B NAME SEED REST <<<"${CELLS[$NUMBER]}"
    finished "$B" "$NAME" "$SEED" && continue
    TAG=$(tag "$B" "$NAME" "$SEED")
    echo "== $TAG; $(left "$NUMBER")"
    $PYTHON continual.py --tag "$TAG" --data "$DATA" --data-dir "$DATA_DIR" --results-dir "$RESULTS" --seed "$SEED" $COMMON ${FLAGS:-} $REST || {
        STATUS=$?
        [ "$1" = sweep ] && ((STATUS == 2)) || exit $STATUS
        REFUSED+=("$TAG")  # a method may not fit into the smallest budgets
    }
done
if ((${#REFUSED[@]})); then
    echo "refused, see above: ${REFUSED[*]}" >&2
    ((${#REFUSED[@]} < ${#CELLS[@]})) || exit 2
fi
