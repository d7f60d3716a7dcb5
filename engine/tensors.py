"""Copies between host and device, and context managers that change the mode of a module."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy `values` from the host to `device`; on CUDA the host does not wait for the device's work."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def to_host(state: Any) -> Any:
    """Nested dicts, lists and tuples with their CUDA tensors copied to the CPU.

    The host waits once, for all copies. A tensor that occurs twice is copied once.
    """
    copies: dict[int, Tensor] = {}

    def copied(value: Any) -> Any:
        if isinstance(value, dict):
            fresh = copy.copy(value)  # keeps the version numbers in a state_dict's _metadata
            fresh.update((name, copied(inner)) for name, inner in value.items())
            return fresh
        if isinstance(value, list | tuple):
            return type(value)(copied(inner) for inner in value)
        if not isinstance(value, Tensor) or not value.is_cuda:
            return value
        if id(value) not in copies:
            layout = torch.contiguous_format
            copies[id(value)] = value.detach().to("cpu", non_blocking=True, memory_format=layout)
        return copies[id(value)]

    state = copied(state)
    if copies:
        torch.cuda.current_stream().synchronize()
    return state


@contextlib.contextmanager
def eval_mode(module: nn.Module) -> Iterator[nn.Module]:
    """Put `module` and its children in eval mode for the block, then restore each one's own mode."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield module
    finally:
        for child, training in modes:
            child.training = training


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Compute no gradients for the parameters of `module` in the block; gradients still pass through it."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield module
    finally:
        for p in parameters:
            p.requires_grad_(True)
