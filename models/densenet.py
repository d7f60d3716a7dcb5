"""DenseNet-121 with growth 12 for 28 and 32 pixels (Huang et al. 2017, arXiv:1608.06993)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import average_pool
from models.resnet import Staged


class Bottleneck(nn.Module):
    """Norm, ReLU, 1x1 conv to 4 x growth, norm, ReLU, 3x3 conv to growth, concatenated to the input."""

    def __init__(self, in_width: int, growth: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([self.conv2(F.relu(self.norm2(out))), x], dim=1)


class Transition(nn.Module):
    """Norm, ReLU, 1x1 conv to half the width, 2x2 average pool."""

    def __init__(self, in_width: int, width: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(in_width)
        self.conv = nn.Conv2d(in_width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return average_pool(self.conv(F.relu(self.norm(x))))


class DenseNet(Staged):
    """3x3 stem to 2 x growth, four dense blocks, global average pool, linear. `width` is the growth."""

    BLOCKS = (6, 12, 24, 16)  # layers

    def __init__(self, channels: int, image_size: int, num_classes: int, width: int = 12):
        super().__init__()
        planes = 2 * width
        self.stem = nn.Conv2d(channels, planes, 3, padding=1, bias=False)
        self.stages = nn.ModuleList()
        for i, layers in enumerate(self.BLOCKS):
            stage = nn.Sequential()
            if i > 0:
                stage.append(Transition(planes, planes // 2))
                planes //= 2
            for _ in range(layers):
                stage.append(Bottleneck(planes, width))
                planes += width
            self.stages.append(stage)
        self.norm = nn.BatchNorm2d(planes)
        self.classifier = nn.Linear(planes, num_classes)

    def head(self, features: Tensor) -> Tensor:
        """The last of `features` -> logits (B, K)."""
        return self.classifier(F.relu(self.norm(features)).mean((2, 3)))
