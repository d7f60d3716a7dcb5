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


def to_host(state: Any, chunk_bytes: int = 2**26) -> Any:
    """Nested dicts, lists and tuples with their CUDA tensors copied to the CPU.

    A copy to the host waits for it, so that tensors of one type are copied together, in chunks of at most
    `chunk_bytes` or one larger tensor. A tensor that occurs twice is copied once.
    """
    by_type: dict[torch.dtype, dict[int, Tensor]] = {}
    for tensor in _cuda_tensors(state):
        by_type.setdefault(tensor.dtype, {})[id(tensor)] = tensor
    copies: dict[int, Tensor] = {}

    def copy_chunk(chunk: list[Tensor]) -> None:
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in chunk]).cpu()
        for tensor, values in zip(chunk, flat.split([tensor.numel() for tensor in chunk]), strict=True):
            copies[id(tensor)] = values.clone().view(tensor.shape)

    for tensors in by_type.values():
        chunk: list[Tensor] = []
        for tensor in tensors.values():
            if chunk and sum(part.nbytes for part in chunk) + tensor.nbytes > chunk_bytes:
                copy_chunk(chunk)
                chunk = []
            chunk.append(tensor)
        copy_chunk(chunk)

    def copied(value: Any) -> Any:
        if isinstance(value, dict):
            fresh = copy.copy(value)  # keeps the version numbers in a state_dict's _metadata
            fresh.update((name, copied(inner)) for name, inner in value.items())
            return fresh
        if isinstance(value, list | tuple):
            return type(value)(copied(inner) for inner in value)
        return copies.get(id(value), value) if isinstance(value, Tensor) else value

    return copied(state) if copies else state


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
