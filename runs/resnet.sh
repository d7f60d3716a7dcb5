#!/usr/bin/env bash
# The residual pair at full size on one GPU: stage 1, stage 2 with its control, tables at both budgets, and the generator to ship.
# cifar10_resnet.sh, svhn_resnet.sh, fashion_resnet.sh and mnist_resnet.sh call this with their sizes. Stopped, the same command continues.
# FLAGS=--graphs replays each step as one CUDA graph. Time and accuracy on a GPU: not measured.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
DATA_DIR=${DATA_DIR:-datasets}
FLAGS=${FLAGS:-}
REPEATS=${REPEATS:-5}
SHARED="--data-dir $DATA_DIR --eval-interval 0 $FLAGS"

last() { tee -i >(cat >&2) | tail -n 1; }  # show all lines, pass on the last

GAN=$($PYTHON gen_condense.py --tag "${DATA}_resnet" --data "$DATA" --gan resnet $SHARED $STAGE1 | last)
for MATCH in dist none; do
    $PYTHON pool_match.py --tag "${DATA}_resnet_$MATCH" --match $MATCH --match-aug --pool-size 3 --weight "$GAN" $SHARED $STAGE2
done
for BUDGET in stream fixed; do
    TEST="--data-dir $DATA_DIR --budget $BUDGET --ipc ${IPC:-50} --eval-model ${NETWORKS:-convnet resnet18_w32} --repeats $REPEATS $FLAGS"
    $PYTHON validate.py --tag "${DATA}_resnet_test" --pretrain-weight "$GAN" $TEST
    for MATCH in dist none; do
        $PYTHON validate.py --tag "${DATA}_resnet_${MATCH}_test" --pretrain-weight "results/${DATA}_resnet_$MATCH/last.pth" --source generator --no-real $TEST
    done
done
# What is shipped, in half precision, scored as it is shipped: results/…_shipped/generator.safetensors
$PYTHON validate.py --tag "${DATA}_resnet_shipped" --data-dir "$DATA_DIR" --pretrain-weight "$GAN" --source generator --no-real --storage fp16 \
    --export "results/${DATA}_resnet_shipped" --ipc ${IPC:-50} --eval-model convnet --repeats $REPEATS $FLAGS
