"""Random-number generators that say cuda:0. Their numbers are a CPU generator's."""

import contextlib
import ctypes
from collections.abc import Iterator

import torch

from .report import REPORT

DEVICE = torch.device("cuda", 0)
CpuGenerator = torch.Generator
set_cpu_state = torch.set_rng_state
_made: dict[int, "CudaGenerator"] = {}  # by their C++ object; kept, so that no address is used twice


def _address(generator: torch.Generator) -> int:
    return ctypes.c_void_p.from_address(
        id(generator) + object.__basicsize__
    ).value  # C++ may hand back another Python object for it


class CudaGenerator(CpuGenerator):
    """A generator of the device. registered: the graphs that may draw from it while they are recorded."""

    capturing = staticmethod(lambda: False)  # set by graphs.py

    def __new__(cls, device="cuda"):
        return super().__new__(cls, "cpu")

    def __init__(self, device="cuda"):
        self.registered: set = set()
        _made[_address(self)] = self

    @property
    def device(self) -> torch.device:
        return DEVICE

    def manual_seed(self, seed: int) -> "CudaGenerator":
        if self.capturing():
            REPORT.fault("manual_seed of a CUDA generator while a graph is recorded")
        super().manual_seed(seed)
        return self


def cuda_generator(generator: torch.Generator | None) -> CudaGenerator | None:
    """The CUDA generator that `generator` is, or None."""
    return None if generator is None else _made.get(_address(generator))


class _AnyDevice(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, CpuGenerator)


class Generator(metaclass=_AnyDevice):
    """torch.Generator(device) of either device."""

    def __new__(cls, device="cpu"):
        return CudaGenerator() if torch.device(device).type == "cuda" else CpuGenerator(device)


DEFAULT = CudaGenerator()


@contextlib.contextmanager
def drawing_from_default() -> Iterator[None]:
    """Let the CPU's default generator be the device's for the block."""
    kept = torch.get_rng_state()
    set_cpu_state(DEFAULT.get_state())
    try:
        yield
    finally:
        DEFAULT.set_state(torch.get_rng_state())
        set_cpu_state(kept)
