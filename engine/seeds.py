"""Seeds and random-number streams."""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from a tuple, the same on every machine: derive_seed(seed, "order", epoch)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextlib.contextmanager
def seeded(device: torch.device, *parts: int | str) -> Iterator[None]:
    """Seed the random numbers of the block by derive_seed(*parts), and restore the state afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(derive_seed(*parts))
        if devices:  # torch.manual_seed would seed every CUDA device, forked or not
            torch.cuda.default_generators[device.index or 0].manual_seed(derive_seed(*parts))
        yield


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The states of the random-number streams that a step on `device` draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restore what rng_state returned; if it was saved on the CPU, the CUDA stream keeps its state."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


class RandomStreams(NamedTuple):
    """Generators of one classifier's training: for choices on the host, and for tensors on the device."""

    host: torch.Generator
    device: torch.Generator

    @classmethod
    def seeded(cls, seed: int, device: torch.device) -> "RandomStreams":
        """Generators seeded from `seed`; on the CPU both are the same one."""
        seed = derive_seed(seed, "train")
        host = torch.Generator().manual_seed(seed)
        return cls(host, host if device.type == "cpu" else torch.Generator(device).manual_seed(seed))
