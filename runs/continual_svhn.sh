#!/usr/bin/env bash
# Split SVHN at the literature's size, on a GPU: ResNet-18 of width 64, 50 epochs a task; not run so far.
#   bash runs/continual_svhn.sh [tune|table|ablate|sweep]; FLAGS=--graphs for CUDA graphs
export DATA=svhn SEEDS=${SEEDS:-0}
export COMMON="--pool resnet18_w64 --epochs 50 --batch-size 32 --dsa-strategy crop"
export DIM="--gan-steps 20000 --gan-batch-size 128 --gan-lr 2e-4"
export GENERATOR="--gan resnet $DIM"
exec bash "$(dirname "$0")/continual.sh" "${1:-sweep}"
