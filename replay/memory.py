"""What a continual learner keeps between tasks, and its size in bytes: a buffer of images, or generators."""

from collections.abc import Sequence

from engine.seeds import derive_seed
from engine.tensors import to_host
from replay.buffer import Buffer
from replay.condensing import CondensedBuffer
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
        self.max_bytes = max_bytes
        self.buffer = buffer
        self.generators = generators
        self.copies = copies
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
            kind = "real"
            if isinstance(buffer, CondensedBuffer):
                kind = "condensed" if buffer.filler is None else "condensed and real"
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
        """What is kept, under the key "memory"."""
        return {"memory": to_host({name: part.state_dict() for name, part in self.parts.items()})}

    def load_state_dict(self, state: dict) -> None:
        """Restore what state_dict() returned. Raises UsageError if it exceeds the budget."""
        for name, part in self.parts.items():
            part.load_state_dict(state["memory"][name])
        self.check()


def make_memory(plan: Plan, learners: Sequence[Learner], classes: Sequence[Sequence[int]]) -> Memory:
    """Make the memory of the plan's method, with its parts sized to --memory-bytes.

    classes: those of each task. Raises UsageError if a part does not fit.
    """
    args = plan.args
    method = plan.method
    max_bytes = args.memory_bytes
    copies = sum(num_bytes(average) for learner in learners for average in learner.averages)
    left = None if max_bytes is None else max_bytes - copies
    if left is not None and left <= 0:
        raise UsageError(
            f"--memory-bytes {max_bytes}: the averaged copies of {args.method} take {copies}, expected more "
            "than that"
        )
    every_class = [label for labels in classes for label in labels]
    if method.balanced and args.buffer_size is not None and args.buffer_size < len(every_class):
        raise UsageError(
            f"--buffer-size {args.buffer_size}: expected room for one image of each of the "
            f"{len(every_class)} classes"
        )

    def new_buffer(stream: str, **kind) -> Buffer:
        limits = {"max_bytes": left, "max_images": args.buffer_size}
        storage = {"codec": args.codec, "quality": args.quality, "seed": derive_seed(args.seed, stream)}
        return Buffer(plan.info, plan.runtime.device, **limits, **storage, **kind)

    buffer = generators = None
    try:
        if method.memory == "generator":
            generators = make_generators(plan.info, classes, left, args, method.carries)
        if method.memory == "buffer":
            networks = len(learners) if method.keeps_logits else 0
            kind = {"balanced": method.balanced, "classes": every_class, "networks": networks}
            buffer = new_buffer("buffer", planned=method.condenses, **kind)
        if method.condenses:
            buffer = CondensedBuffer(buffer, new_buffer("filler") if args.fill_real else None)
    except UsageError as error:
        raise UsageError(f"--memory-bytes {max_bytes}: {error}" if max_bytes else str(error)) from None
    return Memory(max_bytes, buffer, generators, copies)
