#!/usr/bin/env bash
# Split CIFAR-10 at the literature's size, on a GPU: ResNet-18 of width 64, 50 epochs a task; not run so far.
#   bash runs/continual_cifar10.sh [tune|table|ablate|sweep]; FLAGS=--graphs for CUDA graphs
export DATA=cifar10 SEEDS=${SEEDS:-0}
export COMMON="--pool resnet18_w64 --epochs 50 --batch-size 32 --dsa-strategy crop_flip"
export DIM="--gan-steps 20000 --gan-batch-size 128 --gan-lr 2e-4"
export GENERATOR="--gan resnet $DIM"
exec bash "$(dirname "$0")/continual.sh" "${1:-sweep}"
