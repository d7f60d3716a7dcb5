"""Residual networks for 28 and 32 pixels: He et al. 2016 (arXiv:1512.03385) with a 3x3 stem and no max-pool.

The narrow form (width 32, InstanceNorm) and its average-pooling variant are those of IDC (Kim et al. 2022,
arXiv:2205.14959); width 64 with BatchNorm is the network of the continual-learning literature.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import AveragePool


def make_norm(norm: str, width: int) -> nn.Module:
    """The normalisation "instance" (as GroupNorm(C, C)) or "batch"."""
    return nn.GroupNorm(width, width) if norm == "instance" else nn.BatchNorm2d(width)


class BasicBlock(nn.Module):
    """Two 3x3 convs and a shortcut; stride 2 halves the size by strides or, with `pool`, average pooling."""

    def __init__(self, in_width: int, width: int, stride: int, norm: str, pool: bool):
        super().__init__()
        conv_stride = 1 if pool else stride
        self.halve = AveragePool() if pool and stride == 2 else nn.Identity()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride=conv_stride, padding=1, bias=False)
        self.norm1 = make_norm(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = make_norm(norm, width)
        self.shortcut = nn.Identity()
        if stride != 1 or in_width != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_width, width, 1, stride=conv_stride, bias=False),
                self.halve,
                make_norm(norm, width),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.halve(self.conv1(x))))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class Staged(nn.Module):
    """A network of a `stem` and a list of `stages`."""

    stem: nn.Module
    stages: nn.ModuleList

    def features(self, x: Tensor) -> list[Tensor]:
        """The output (B, C, h, w) of each stage."""
        x = self.stem(x)
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs


class ResNet(Staged):
    """Four stages of `blocks` basic blocks at width, 2, 4 and 8 times width; global average pool; linear."""

    def __init__(
        self,
        channels: int,
        image_size: int,
        num_classes: int,
        width: int,
        blocks: int,
        norm: str = "instance",
        pool: bool = False,
    ):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), make_norm(norm, width), nn.ReLU()
        )
        self.stages = nn.ModuleList()
        in_width = width
        for i in range(4):
            out_width = width * 2**i
            stage = nn.Sequential()
            for stride in [1 if i == 0 else 2] + [1] * (blocks - 1):
                stage.append(BasicBlock(in_width, out_width, stride, norm, pool))
                in_width = out_width
            self.stages.append(stage)
        self.classifier = nn.Linear(in_width, num_classes)

    def head(self, features: Tensor) -> Tensor:
        """The last of `features` -> logits (B, K)."""
        return self.classifier(features.mean((2, 3)))
