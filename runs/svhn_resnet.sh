#!/usr/bin/env bash
# SVHN at full size (width 224) on one GPU. Time and accuracy: not measured. See resnet.sh.
export DATA=svhn
export STAGE1=${STAGE1:-"--epochs 100 --batch-size 64 --lr 2e-4 --lr-d 2e-4 --lr-decay linear --ema 0.9995 --restat 50"}
export STAGE2=${STAGE2:-"--epochs 5 --batch-size 128 --lr 1e-5 --lr-decay linear --ema 0.9995 --restat 50"}
source "$(dirname "$0")/resnet.sh"
