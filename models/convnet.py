"""ConvNet-D of the dataset-distillation literature.

Gidaris & Komodakis 2018; Zhao et al. 2021 (arXiv:2006.05929).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import average_pool


class ConvNet(nn.Module):
    """`depth` blocks of 3x3 conv, InstanceNorm, ReLU and 2x2 average pool, then a linear layer.

    InstanceNorm is GroupNorm(C, C). 28-pixel input is padded to 32 by the first conv.
    """

    def __init__(self, channels: int, image_size: int, num_classes: int, width: int = 128, depth: int = 3):
        super().__init__()
        side = 32 if image_size == 28 else image_size
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        for i in range(depth):
            padding = 3 if i == 0 and image_size == 28 else 1
            self.convs.append(nn.Conv2d(channels if i == 0 else width, width, 3, padding=padding))
            self.norms.append(nn.GroupNorm(width, width))
            side //= 2
        self.classifier = nn.Linear(width * side * side, num_classes)

    def features(self, x: Tensor) -> list[Tensor]:
        """The output (B, width, h, w) of each block."""
        outputs = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = average_pool(F.relu(norm(conv(x))))
            outputs.append(x)
        return outputs

    def head(self, features: Tensor) -> Tensor:
        """The last of `features` -> logits (B, K)."""
        return self.classifier(features.flatten(1))
