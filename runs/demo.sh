#!/usr/bin/env bash
# The three stages on the embedded digits, without a download: minutes on two cores. `make demo` calls this.
# Stopped, the same command continues. Finished, it prints its table again.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
OUT=${OUT:-results/demo}

echo "== 1/3 train the GAN on 1,500 digits"
GAN=$($PYTHON gen_condense.py --data digits --results-dir "$OUT" --tag gan --width 32 --batch-size 32 --lr 1e-3 --ema 0.995 \
    --epochs 16 --eval-interval 0 | tee -i >(cat >&2) | tail -n 1)
echo "== 2/3 match it alone: features of networks trained on its images, and a teacher"
MATCH=$($PYTHON pool_match.py --results-dir "$OUT" --tag match --recipe-match energy --weight "$GAN" --epochs 12 --teacher-epochs 30 | tee -i >(cat >&2) | tail -n 1)
echo "== 3/3 train classifiers on generated digits alone, test them on real ones"
$PYTHON validate.py --results-dir "$OUT" --tag test --pretrain-weight "$MATCH" --eval-model convnet_w32 --ipc 10 --epochs-eval 200 --repeats 3
echo "generated digits, a column for each class: $(dirname "$MATCH")/outputs/$(ls "$(dirname "$MATCH")/outputs" | tail -n 1)"
echo "after the first epoch of stage 1:          $OUT/gan/outputs/img_0001.png"
