#!/usr/bin/env bash
# The paper's schedule on CIFAR-10, on one GPU. Stopped, the same command continues. Time and accuracy: not measured.
# FLAGS=--graphs replays each step as one CUDA graph. PYTHON="torchrun --nproc-per-node 4" shares it out to four GPUs.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
DATA_DIR=${DATA_DIR:-datasets}
FLAGS=${FLAGS:-}

GAN=$($PYTHON gen_condense.py --tag cifar10_gan --data-dir "$DATA_DIR" $FLAGS --eval-interval 0 | tee -i >(cat >&2) | tail -n 1)
MATCH=$($PYTHON pool_match.py --tag cifar10_match --data-dir "$DATA_DIR" $FLAGS --match logit --match-aug --weight "$GAN" --eval-interval 0 \
    | tee -i >(cat >&2) | tail -n 1)
for BUDGET in stream fixed; do
    $PYTHON validate.py --tag cifar10_test --data-dir "$DATA_DIR" $FLAGS --pretrain-weight "$MATCH" --budget $BUDGET --ipc 1 10 50 \
        --eval-model convnet resnet18_w32
    $PYTHON validate.py --tag cifar10_test_stage1 --data-dir "$DATA_DIR" $FLAGS --pretrain-weight "$GAN" --budget $BUDGET --ipc 1 10 50 \
        --eval-model convnet resnet18_w32 --source generator
done
