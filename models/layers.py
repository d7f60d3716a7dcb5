"""Layers that the networks share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _HalveOnCPU(torch.autograd.Function):
    """2x2 average pooling as two sums of strided views, forward and backward."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        rows = x[..., ::2, :] + x[..., 1::2, :]
        return (rows[..., ::2] + rows[..., 1::2]) * 0.25

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        quarter = grad * 0.25
        rows = torch.stack((quarter, quarter), -1).flatten(-2)
        return torch.stack((rows, rows), -2).flatten(-3, -2)


def average_pool(x: Tensor) -> Tensor:
    """2x2 average pooling of stride 2, (B, C, H, W) -> (B, C, H // 2, W // 2).

    On a CPU, torch's pooling takes a quarter of a ConvNet's step. Contiguous float32 images of even size are
    pooled there by sums of strided views, in a third of the time; the result is equal up to rounding and can
    be differentiated twice. All others use torch's pooling.
    """
    suitable = x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous()
    even = x.shape[-1] % 2 == x.shape[-2] % 2 == 0
    halve = suitable and even and not torch.compiler.is_compiling()
    return _HalveOnCPU.apply(x) if halve else F.avg_pool2d(x, 2)


class AveragePool(nn.AvgPool2d):
    """average_pool as a module."""

    def __init__(self):
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        return average_pool(x)
