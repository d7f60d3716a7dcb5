"""How weights are stored: precision, bytes, and the file that is shipped."""

import json
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from models import STORAGES, GanCheckpoint
from utils import UsageError, write_tensors

BYTES = dict(zip(STORAGES, (4, 2), strict=True))  # of a value


def num_bytes(module: nn.Module, storage: str = "fp32") -> int:
    """Bytes of what `module` needs to be deployed: parameters and floating-point buffers (BatchNorm's statistics)."""
    tensors = [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]
    return BYTES[storage] * sum(tensor.numel() for tensor in tensors)


@torch.no_grad()
def store(module: nn.Module, storage: str) -> nn.Module:
    """Round the values of `module` in place to what is left of them after storage. Raises UsageError where one does not fit."""
    if storage == "fp16":
        for tensor in (*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())):
            tensor.copy_(_half(tensor))
    return module


def export_generator(path: Path, checkpoint: GanCheckpoint, storage: str) -> None:
    """Write the generator to deploy as safetensors: its values at `storage`, and what read_gan needs to know of it.

    Read back it gives the images of store(generator, storage). Raises UsageError where the checkpoint names no data set.
    """
    if checkpoint.info is None:
        raise UsageError(f"{checkpoint.path}: names no data set, expected a checkpoint written here to export")
    tensors = checkpoint.generator().state_dict()
    if storage == "fp16":
        tensors = {name: _half(tensor) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    about = {"config": checkpoint.config, "info": checkpoint.info.to_dict(), "val_size": checkpoint.val_size, "storage": storage}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_tensors(path, lambda temporary: temporary.write_bytes(save(tensors, {"generator": json.dumps(about)})))


def _half(tensor: torch.Tensor) -> torch.Tensor:
    half = tensor.half()
    if not torch.isfinite(half).all():
        raise UsageError(f"--storage fp16: a value of {tensor.abs().max():g} does not fit, expected at most 65504; use fp32")
    return half
