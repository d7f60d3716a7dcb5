#!/usr/bin/env bash
# Split MNIST at the sizes of two CPU cores; bash runs/continual_mnist.sh [tune|table|ablate|sweep]
DATA=mnist exec bash "$(dirname "$0")/continual.sh" "${1:-sweep}"
