#!/usr/bin/env bash
# Fashion-MNIST with a generator of width 32 on two CPU cores: the commands of the README's table. For CIFAR-10:
# DATA=cifar10 EPOCHS=6 MATCH_EPOCHS=1 EPOCHS_EVAL=300.
# Stopped, the same command continues. Minutes are in benchmarks/results.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
DATA=${DATA:-fashion}
EPOCHS=${EPOCHS:-7}
MATCH_EPOCHS=${MATCH_EPOCHS:-2}
EPOCHS_EVAL=${EPOCHS_EVAL:-500}
DATA_DIR=${DATA_DIR:-datasets}
SHARED="--data-dir $DATA_DIR --batch-size 64 --ema 0.999 --eval-interval 0"
POOL="--lr 2.5e-5 --epochs $MATCH_EPOCHS --pool convnet_w32"

GAN=$($PYTHON gen_condense.py --tag "${DATA}_gan" --data "$DATA" --width 32 --lr 5e-4 --epochs "$EPOCHS" $SHARED | tee -i >(cat >&2) | tail -n 1)
MATCH=$($PYTHON pool_match.py --tag "${DATA}_match" --match logit --match-aug --weight "$GAN" --pool-steps 4 $POOL $SHARED | tee -i >(cat >&2) | tail -n 1)
# The control: as many more steps as a GAN, without matching.
NONE=$($PYTHON pool_match.py --tag "${DATA}_none" --match none --weight "$GAN" --pool-steps 0 $POOL $SHARED | tee -i >(cat >&2) | tail -n 1)

TEST="--data-dir $DATA_DIR --eval-model convnet_w32 --ipc 10 --epochs-eval $EPOCHS_EVAL --repeats 3"
for BUDGET in stream fixed; do
    $PYTHON validate.py --tag "${DATA}_gan_test" --budget $BUDGET --pretrain-weight "$GAN" --source generator --no-real $TEST
    $PYTHON validate.py --tag "${DATA}_match_test" --budget $BUDGET --pretrain-weight "$MATCH" $TEST
    $PYTHON validate.py --tag "${DATA}_none_test" --budget $BUDGET --pretrain-weight "$NONE" --source generator --no-real $TEST
done
