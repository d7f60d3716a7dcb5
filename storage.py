"""How weights are stored: bytes."""

from torch import nn


def num_bytes(module: nn.Module) -> int:
    """Bytes of what `module` needs to be deployed: parameters and floating-point buffers (BatchNorm's statistics)."""
    tensors = [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
