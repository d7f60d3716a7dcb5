#!/usr/bin/env bash
# Split Fashion-MNIST at the sizes of two CPU cores; bash runs/continual_fashion.sh [tune|table|ablate|sweep]
DATA=fashion exec bash "$(dirname "$0")/continual.sh" "${1:-sweep}"
