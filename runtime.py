"""Device, precision and memory layout: how a step is executed, never what it computes."""

import argparse
from dataclasses import dataclass

import torch
from torch import nn

from utils import UsageError


@dataclass(frozen=True)
class Runtime:
    """Where and in which precision the steps of a stage run."""

    device: torch.device
    amp: bool = False
    channels_last: bool = False

    def place(self, module: nn.Module) -> nn.Module:
        """Move `module` to the device, its convolution weights in the memory layout chosen."""
        return module.to(self.device, memory_format=torch.channels_last if self.channels_last else torch.preserve_format)

    def autocast(self) -> torch.autocast:
        """bf16 for the matrix products of the block; losses, penalties and optimisers belong outside it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp)

    def synchronize(self) -> None:
        """Wait for the device, so that a clock read next is honest."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def make_runtime(device: str, amp: bool | None, channels_last: bool | None) -> Runtime:
    """Resolve the flags --device auto|cpu|cuda[:N], --amp and --channels-last; None means on for CUDA, off for the CPU.

    Raises UsageError where CUDA is asked for and not there.
    """
    name = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise UsageError(f"--device {device}: no CUDA device is available to torch {torch.__version__}, expected cpu or auto")
        index = int(name.partition(":")[2] or torch.cuda.current_device())
        if index >= torch.cuda.device_count():
            raise UsageError(f"--device {device}: found {torch.cuda.device_count()} CUDA devices, numbered from 0")
        torch.cuda.set_device(index)
        name = f"cuda:{index}"
    on_cuda = name != "cpu"
    return Runtime(torch.device(name), on_cuda if amp is None else amp, on_cuda if channels_last is None else channels_last)


def device_name(text: str) -> str:
    """An argparse type: auto, cpu, cuda or cuda:N."""
    kind, _, index = text.partition(":")
    if text in ("auto", "cpu", "cuda") or (kind == "cuda" and index.isdigit()):
        return text
    raise argparse.ArgumentTypeError(f"found {text!r}, expected auto, cpu, cuda or cuda:N")
