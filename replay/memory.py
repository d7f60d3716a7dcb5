"""What a continual learner keeps between tasks, and its size in bytes: a buffer of images, or generators."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from engine.seeds import derive_seed
from engine.tensors import to_host
from replay.buffer import Buffer
from replay.condensed_buffer import CondensedBuffer
from replay.learner import Learner
from replay.plan import Plan
from replay.stored_generators import GeneratorMemory, make_generators
from scoring.storage import num_bytes
from utils import UsageError


class Memory:
    """All that is kept between tasks: a buffer or generators, and averaged networks.

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
        parts = {"buffer": buffer, "generators": generators}
        self.parts = {name: part for name, part in parts.items() if part is not None}

    def describe(self) -> str:
        """One line for the reader: what is kept, and the budget."""
        parts = [f"{self.copies:,} bytes of averaged networks"] if self.copies else []
        if (generators := self.generators) is not None:
            width = generators.config["width"]
            parts.append(f"{generators.layout} generators of width {width} in {generators.storage}")
        if (buffer := self.buffer) is not None:
            limit = "" if buffer.max_images is None else f"at most {buffer.max_images:,} "
            kind = "condensed" if buffer.planned else "real"
            kind += " and real" if buffer.planned and buffer.filler is not None else ""
            parts.append(f"a buffer of {limit}{kind} images")
        budget = f"; at most {self.max_bytes:,} bytes" if self.max_bytes else ""
        return f"memory: {', '.join(parts) or 'none'}{budget}"

    def num_bytes(self) -> dict[str, int]:
        """Return the bytes kept, by kind; the last key is "total"."""
        parts = {"copies": self.copies} if self.copies else {}
        for part in self.parts.values():
            parts |= part.num_bytes()
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
        parts = to_host({name: part.state_dict() for name, part in self.parts.items()})
        return {"memory": parts | {"sha256": digest(parts)}}

    def load_state_dict(self, state: dict) -> None:
        """Restore what state_dict() returned. Raises UsageError if it was altered or exceeds the budget."""
        parts = {name: part for name, part in state["memory"].items() if name != "sha256"}
        if digest(parts) != state["memory"]["sha256"]:
            raise UsageError("the memory was altered: its digest is not the one stored with it")
        for name, part in self.parts.items():
            part.load_state_dict(parts[name])
        self.check()


def digest(state) -> str:
    """SHA-256 of nested plain values and tensors."""
    sha256 = hashlib.sha256()

    def add(value) -> None:
        if isinstance(value, Tensor):
            sha256.update(
                f"{value.dtype}{tuple(value.shape)}".encode()
                + value.detach().cpu().contiguous().numpy().tobytes()
            )
        elif isinstance(value, dict):
            for name, inner in value.items():
                sha256.update(repr(name).encode())
                add(inner)
        elif isinstance(value, list | tuple):
            sha256.update(f"[{len(value)}]".encode())
            for inner in value:
                add(inner)
        else:
            sha256.update(repr(value).encode())

    add(state)
    return sha256.hexdigest()


@dataclass(frozen=True)
class MemorySettings:
    """Size of the memory, and how a buffer stores images: the flags of continual.py of these names.

    A method without one of the flags has its default.
    """

    memory_bytes: int | None = None
    buffer_size: int | None = None
    codec: str = "raw"
    quality: int = 75
    fill_real: bool = False


def make_memory(
    name: str,
    settings: MemorySettings,
    plan: Plan,
    learners: Sequence[Learner],
    classes: Sequence[Sequence[int]],
) -> Memory:
    """Make the memory of the method called `name`, with its parts sized to --memory-bytes. Raises UsageError
    if one does not fit.

    classes: those of each task.
    """
    method, generation, info = plan.method, plan.generation, plan.info
    max_bytes, buffer_size = settings.memory_bytes, settings.buffer_size
    copies = sum(num_bytes(average) for learner in learners for average in learner.averages)
    left = None if max_bytes is None else max_bytes - copies
    if left is not None and left <= 0:
        raise UsageError(
            f"--memory-bytes {max_bytes}: the averaged copies of {name} take {copies}, expected more than "
            "that"
        )
    every_class = [label for labels in classes for label in labels]
    if method.balanced and buffer_size is not None and buffer_size < len(every_class):
        raise UsageError(
            f"--buffer-size {buffer_size}: expected room for one image of each of the {len(every_class)} "
            "classes"
        )
    buffer = generators = None
    try:
        if generation is not None:
            generators = make_generators(info, classes, left, generation, method.carries)
        if method.memory == "buffer":
            shared = {
                "max_bytes": left,
                "max_images": buffer_size,
                "codec": settings.codec,
                "quality": settings.quality,
            }
            buffer = Buffer(
                info,
                plan.runtime.device,
                **shared,
                balanced=method.balanced,
                classes=every_class,
                planned=method.condenses,
                networks=len(learners) if method.keeps_logits else 0,
                seed=derive_seed(plan.seed, "buffer"),
            )
            if method.condenses:
                filler = None
                if settings.fill_real:
                    filler = Buffer(
                        info, plan.runtime.device, **shared, seed=derive_seed(plan.seed, "filler")
                    )
                buffer = CondensedBuffer(buffer, filler)
    except UsageError as error:
        raise UsageError(f"--memory-bytes {max_bytes}: {error}" if max_bytes else str(error)) from None
    return Memory(max_bytes, buffer, generators, copies)
