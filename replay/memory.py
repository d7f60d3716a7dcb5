"""The memory of a continual learner between tasks, and its size in bytes: a buffer of real images,
generators, or both."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from data import DataInfo
from engine.seeds import derive_seed
from engine.tensors import to_host
from replay.buffer import Buffer
from replay.condensed_buffer import CondensedBuffer
from replay.learner import Learner
from replay.methods import Method
from replay.stored_generators import GeneratorMemory, make_generators
from scoring.storage import num_bytes
from utils import UsageError


class Memory:
    """All that is kept between tasks: a buffer, generators and averaged networks.

    max_bytes: budget of all parts; None = no limit. copies: size in bytes of the averaged networks.
    """

    def __init__(
        self,
        max_bytes: int | None,
        buffer: Buffer | CondensedBuffer | None,
        generators: GeneratorMemory | None,
        copies: int = 0,
    ):
        self.max_bytes, self.buffer, self.generators, self.copies = max_bytes, buffer, generators, copies

    def describe(self) -> str:
        """One line for the reader: what is kept, and the budget."""
        parts = [f"{self.copies:,} bytes of averaged networks"] if self.copies else []
        if self.generators is not None:
            width, storage, layout = (
                self.generators.config["width"],
                self.generators.storage,
                self.generators.layout,
            )
            latents = (
                f" and {self.generators.num_latents:,} latents of each class"
                if self.generators.num_latents
                else ""
            )
            parts.append(f"{layout} generators of width {width} in {storage}{latents}")
        if self.buffer is not None:
            limit = "" if self.buffer.max_images is None else f"at most {self.buffer.max_images:,} "
            kind = "condensed" if self.buffer.planned else "real"
            kind += " and real" if self.buffer.planned and self.buffer.filler is not None else ""
            parts.append(f"a buffer of {limit}{kind} images")
        budget = f"; at most {self.max_bytes:,} bytes" if self.max_bytes else ""
        return f"memory: {', '.join(parts) or 'none'}{budget}"

    def num_bytes(self) -> dict[str, int]:
        """Return the bytes kept, by kind; the last key is "total"."""
        parts = {"copies": self.copies} if self.copies else {}
        for part in (self.buffer, self.generators):
            parts |= part.num_bytes() if part is not None else {}
        return parts | {"total": sum(parts.values())}

    def check(self) -> None:
        """Raise UsageError if more is kept than the budget allows."""
        total = self.num_bytes()["total"]
        if self.max_bytes is not None and total > self.max_bytes:
            raise UsageError(
                f"the memory holds {total} bytes, expected at most the {self.max_bytes} of --memory-bytes"
            )

    def state_dict(self) -> dict:
        """Return what is kept, under the key "memory", with a digest."""
        parts = {
            name: part.state_dict()
            for name, part in (("buffer", self.buffer), ("generators", self.generators))
            if part is not None
        }
        parts = to_host(parts)
        return {"memory": parts | {"sha256": digest(parts)}}

    def load_state_dict(self, state: dict) -> None:
        """Restore what state_dict() returned. Raises UsageError if it was altered or exceeds the budget."""
        parts = {name: part for name, part in state["memory"].items() if name != "sha256"}
        if digest(parts) != state["memory"]["sha256"]:
            raise UsageError("the memory was altered: its digest is not the one stored with it")
        for name, part in (("buffer", self.buffer), ("generators", self.generators)):
            if part is not None:
                part.load_state_dict(parts[name])
        self.check()


def digest(state) -> str:
    """SHA-256 of nested plain values and tensors."""
    found = hashlib.sha256()

    def add(value) -> None:
        if isinstance(value, Tensor):
            found.update(
                f"{value.dtype}{tuple(value.shape)}".encode()
                + value.detach().cpu().contiguous().numpy().tobytes()
            )
        elif isinstance(value, dict):
            for name, inner in value.items():
                found.update(repr(name).encode())
                add(inner)
        elif isinstance(value, list | tuple):
            found.update(f"[{len(value)}]".encode())
            for inner in value:
                add(inner)
        else:
            found.update(repr(value).encode())

    add(state)
    return found.hexdigest()


def make_memory(
    name: str,
    method: Method,
    info: DataInfo,
    learners: Sequence[Learner],
    device: torch.device,
    *,
    max_bytes: int | None,
    buffer_size: int | None,
    buffer_share: float,
    fill_real: bool,
    codec: str,
    quality: int,
    classes: Sequence[Sequence[int]],
    seed: int,
    **of_generators,
) -> Memory:
    """Make the memory of the method called `name`, with its parts sized to max_bytes. Raises UsageError if
    one does not fit.

    buffer_share: share of the bytes for real images beside a generator. fill_real: see CondensedBuffer.
    classes: those of each task. of_generators: the settings of make_generators, for a method that has
    generators.
    """
    copies = sum(num_bytes(average) for learner in learners for average in learner.averages)
    left = None if max_bytes is None else max_bytes - copies
    if left is not None and left <= 0:
        raise UsageError(
            f"--memory-bytes {max_bytes}: the averaged copies of {name} take {copies}, expected more than "
            "that"
        )
    listed = [label for labels in classes for label in labels]
    if method.balanced and buffer_size is not None and buffer_size < len(listed):
        raise UsageError(
            f"--buffer-size {buffer_size}: expected room for one image of each of the {len(listed)} classes"
        )
    buffer = generators = None
    try:
        if method.memory == "generator":
            generators = make_generators(
                info, classes, None if left is None else int(left * (1 - buffer_share)), **of_generators
            )
        if method.memory == "buffer" or buffer_share or buffer_size:
            sized = {
                "max_bytes": left and (int(left * buffer_share) if generators else left),
                "max_images": buffer_size,
            }
            sized |= {"codec": codec, "quality": quality}
            networks = len(learners) if method.keeps_logits else 0
            planned = {
                "balanced": method.balanced,
                "classes": listed,
                "planned": method.condenses,
                "networks": networks,
            }
            buffer = Buffer(info, device, **sized, **planned, seed=derive_seed(seed, "buffer"))
            if method.condenses:
                filler = (
                    Buffer(info, device, **sized, seed=derive_seed(seed, "filler")) if fill_real else None
                )
                buffer = CondensedBuffer(buffer, filler)
    except UsageError as error:
        raise UsageError(f"--memory-bytes {max_bytes}: {error}" if max_bytes else str(error)) from None
    return Memory(max_bytes, buffer, generators, copies)
