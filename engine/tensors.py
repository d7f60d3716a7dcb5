"""Copies between host and device, and context managers that change the mode of a module."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy `values` from the host to `device`; from pinned memory on CUDA, so that the host does not wait for
    the device's work."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def to_host(state: Any, chunk_bytes: int = 2**26) -> Any:
    """Nested dicts, lists and tuples with their CUDA tensors copied to the CPU; other values are left as they
    are.

    Tensors of one type are copied together, in chunks of at most `chunk_bytes` or one larger tensor, so that
    the host waits only a few times.
    """
    found = {id(tensor): tensor for tensor in _cuda_tensors(state)}
    copies: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(tensor.dtype for tensor in found.values()):
        chunk, size = [], 0
        for tensor in [*(tensor for tensor in found.values() if tensor.dtype == dtype), None]:
            if chunk and (tensor is None or size + tensor.nbytes > chunk_bytes):
                flat = torch.cat([part.detach().reshape(-1) for part in chunk]).cpu()
                for part, values in zip(chunk, flat.split([part.numel() for part in chunk]), strict=True):
                    copies[id(part)] = values.clone().view(part.shape)
                chunk, size = [], 0
            if tensor is not None:
                chunk, size = [*chunk, tensor], size + tensor.nbytes

    def copied(value: Any) -> Any:
        if isinstance(value, dict):
            fresh = copy.copy(value)  # keeps the version numbers in a state_dict's _metadata
            fresh.update((name, copied(inner)) for name, inner in value.items())
            return fresh
        if isinstance(value, list | tuple):
            return type(value)(copied(inner) for inner in value)
        return copies.get(id(value), value) if isinstance(value, Tensor) else value

    return copied(state) if found else state


def _cuda_tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        if state.is_cuda:
            yield state
    elif isinstance(state, dict | list | tuple):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _cuda_tensors(value)


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
