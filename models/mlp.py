"""The multilayer perceptron that the continual-learning literature uses on Split MNIST.

Lopez-Paz & Ranzato 2017 (arXiv:1706.08840).
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """`depth` hidden layers of `width` units with ReLU, then a linear layer."""

    def __init__(self, channels: int, image_size: int, num_classes: int, width: int = 100, depth: int = 2):
        super().__init__()
        sizes = [channels * image_size * image_size, *[width] * depth]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.classifier = nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> list[Tensor]:
        """The output (B, width, 1, 1) of each hidden layer."""
        x = x.flatten(1)
        outputs = []
        for layer in self.hidden:
            x = F.relu(layer(x))
            outputs.append(x[:, :, None, None])
        return outputs

    def head(self, features: Tensor) -> Tensor:
        """The last of `features` -> logits (B, K)."""
        return self.classifier(features.flatten(1))
