"""A residual class-conditional generator and its projection discriminator (Miyato & Koyama 2018,
arXiv:1802.05637).

The CIFAR networks of SNGAN (Miyato et al. 2018, arXiv:1802.05957), with the same number of channels in each
block.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from models.gan import ConditionalGenerator, check_sizes
from models.layers import average_pool


class ConditionalBatchNorm2d(nn.Module):
    """BatchNorm2d whose gain and bias depend on the image's class (de Vries et al. 2017,
    arXiv:1707.00683)."""

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(width, affine=False)
        self.gain = nn.Parameter(torch.ones(num_classes, width))
        self.bias = nn.Parameter(torch.zeros(num_classes, width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        gain, bias = (table[y][:, :, None, None].to(x.dtype) for table in (self.gain, self.bias))
        return self.bn(x) * gain + bias


def upsample_conv(x: Tensor, conv: nn.Conv2d, side: int) -> Tensor:
    """Nearest upsampling to `side`, then the 3x3 conv.

    If the side doubles, both are one transposed conv, with 4/9 of the operations.
    """
    if side != 2 * x.shape[-1]:
        return conv(F.interpolate(x, size=side))
    weight = spread_kernel(conv.weight).flip(2, 3).transpose(0, 1)
    return F.conv_transpose2d(x, weight, conv.bias, stride=2, padding=1)


def conv_pool(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """The 3x3 conv, then 2x2 average pooling, computed as one conv of stride 2 with 4/9 of the operations."""
    return F.conv2d(x, spread_kernel(conv.weight) / 4, conv.bias, stride=2, padding=1)


def spread_kernel(weight: Tensor) -> Tensor:
    """(..., 3, 3) -> (..., 4, 4): the sum of four copies of the kernel, one in each corner."""
    corners = ((0, 1, 0, 1), (1, 0, 0, 1), (0, 1, 1, 0), (1, 0, 1, 0))
    return sum(F.pad(weight, corner) for corner in corners)


class UpBlock(nn.Module):
    """A residual block (B, width, h, w) -> (B, width, side, side).

    Two 3x3 convs, each after conditional BatchNorm and ReLU, with nearest upsampling before the first one,
    and a shortcut.
    """

    def __init__(self, width: int, side: int, num_classes: int):
        super().__init__()
        self.side = side
        self.bn1 = ConditionalBatchNorm2d(width, num_classes)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = ConditionalBatchNorm2d(width, num_classes)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out = upsample_conv(F.relu(self.bn1(x, y)), self.conv1, self.side)
        out = self.conv2(F.relu(self.bn2(out, y)))
        # a 1x1 conv before the upsampling gives the same as after it
        return out + F.interpolate(self.shortcut(x), size=self.side)


class ResNetGenerator(ConditionalGenerator):
    """A generator whose class enters in two places: in z, so that classes differ from the first step on, and
    in the BatchNorms of the three blocks."""

    def __init__(
        self, num_classes: int, channels: int = 3, image_size: int = 32, width: int = 224, z_dim: int = 100
    ):
        super().__init__(num_classes, channels, image_size, width, z_dim)
        self.blocks = nn.ModuleList(
            UpBlock(width, side, num_classes)
            for side in (math.ceil(image_size / 4), image_size // 2, image_size)
        )
        self.bn = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, channels, 3, padding=1)
        initialise(self)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        x = self.project(z, y).view(-1, self.width, 4, 4)
        for block in self.blocks:  # 4 -> 8 -> 16 -> 32, or 4 -> 7 -> 14 -> 28
            x = block(x, y)
        return torch.tanh(self.conv(F.relu(self.bn(x))).float())


class DownBlock(nn.Module):
    """A residual block of two 3x3 convs, each after ReLU, and a shortcut; with `halve`, 2x2 average pooling
    at the end.

    The first block takes images, so that it has no ReLU before its first conv.
    """

    def __init__(self, in_width: int, width: int, halve: bool, first: bool = False):
        super().__init__()
        self.halve, self.first = halve, first
        self.conv1 = nn.Conv2d(in_width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(in_width, width, 1) if halve or in_width != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.conv1(x if self.first else F.relu(x)))
        if not self.halve:
            return self.conv2(out) + self.shortcut(x)
        return conv_pool(out, self.conv2) + self.shortcut(average_pool(x))


class ResNetDiscriminator(nn.Module):
    """Images x (B, C, H, W) in [-1, 1] and labels y (B,) -> (scores (B,) in float32, None): no class logits.

    score = w . h + e_y . h on the summed features h (B, width), the projection of Miyato & Koyama, Eq. 3.
    Every conv is spectrally normalised, with one power iteration at each pass in train mode; w and e_y,
    unlike theirs, are not, so that the scores of a narrow network may reach the hinge's margin (docs/LOG.md).
    """

    def __init__(self, num_classes: int, channels: int = 3, image_size: int = 32, width: int = 224):
        super().__init__()
        check_sizes(image_size, width)
        self.blocks = nn.Sequential(
            DownBlock(channels, width, halve=True, first=True),
            DownBlock(width, width, halve=True),
            DownBlock(width, width, halve=False),
            DownBlock(width, width, halve=False),
        )
        self.fc1 = nn.Linear(width, 1)
        self.embed = nn.Embedding(num_classes, width)
        initialise(self)
        self.normalised = [m for m in self.modules() if isinstance(m, nn.Conv2d)]
        for module in self.normalised:
            spectral_norm(module)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, None]:
        with parametrize.cached():  # within, each weight is normalised once, at its first use
            with torch.autocast(x.device.type, enabled=False):  # in float32
                for module in self.normalised:
                    _ = module.weight
            h = F.relu(self.blocks(x)).float().sum((2, 3))  # (B, width)
            with torch.autocast(x.device.type, enabled=False):
                return self.fc1(h).squeeze(1) + (self.embed(y) * h).sum(1), None


def initialise(module: nn.Module) -> None:
    """Initialise weights as Glorot & Bengio 2010 (uniform), with gain sqrt(2) in the 3x3 convs, and biases
    with zero.

    The gains and biases of conditional BatchNorm get noise of standard deviation 0.1, so that the classes
    differ a little.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d | nn.Linear | nn.Embedding):
            gain = math.sqrt(2) if isinstance(child, nn.Conv2d) and child.kernel_size == (3, 3) else 1.0
            nn.init.xavier_uniform_(child.weight, gain)
            if getattr(child, "bias", None) is not None:
                nn.init.zeros_(child.bias)
        if isinstance(child, ConditionalBatchNorm2d):
            nn.init.normal_(child.gain, 1.0, 0.1)
            nn.init.normal_(child.bias, 0.0, 0.1)
