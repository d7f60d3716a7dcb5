"""What a continual learner keeps between tasks, and its size in bytes: a buffer of images, or generators."""

import bisect
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from data import DataInfo
from engine.seeds import derive_seed, seeded
from engine.tensors import to_host
from models import GANS, build_gan, build_generator, decode
from models.deploy import ByClass, OwnClasses
from replay.buffer import Buffer
from replay.condensing import CondensedBuffer
from replay.learner import Learner
from replay.plan import Plan
from scoring.storage import encode, num_bytes
from utils import UsageError

MAX_WIDTH = 4096  # of generators whose width a budget sets


class GeneratorMemory:
    """Stored generators: one that is carried on from task to task, or one for each task (`layout`).

    config: constructor values of a generator. num_classes: of the set; if the generator has tables for fewer,
    they are of the classes that it is made for.
    """

    def __init__(self, config: dict, storage: str, layout: str, num_classes: int):
        self.config = config
        self.storage = storage
        self.layout = layout
        self.num_classes = num_classes
        self.stored: list[dict[str, Tensor]] = []
        self.classes: list[list[int]] = []  # of each generator

    def keep(self, generator: nn.Module, classes: Sequence[int]) -> None:
        """Store the generator of `classes`: it replaces the one that was carried on, or joins those of
        earlier tasks."""
        if self.layout == "carried":
            self.stored = []
            self.classes = []
        self.stored.append(encode(generator, self.storage))
        self.classes.append(list(classes))

    def players(self, classes: Sequence[int]) -> tuple[nn.Module, nn.Module]:
        """A freshly initialised generator of `classes`, and a discriminator for all classes of the set."""
        generator, discriminator = build_gan(self.config, self.num_classes)
        return self._own(generator, classes), discriminator

    def _own(self, generator: nn.Module, classes: Sequence[int]) -> nn.Module:
        if self.config["num_classes"] == self.num_classes:
            return generator
        return OwnClasses(generator, classes, self.num_classes)

    def build(self) -> nn.Module | None:
        """Build a generator from what is stored, on the CPU; it samples all classes so far. Returns None
        before the first task."""
        generators = []
        for tensors, classes in zip(self.stored, self.classes, strict=True):
            # These weights are overwritten at once: do not advance the random state.
            with seeded(torch.device("cpu"), "any"):
                generator = self._own(build_generator(self.config), classes)
            # What is not stored are the counters of BatchNorm, which nothing reads.
            generator.load_state_dict(decode(tensors), strict=False)
            generators.append(generator.eval().requires_grad_(False))
        if self.layout == "carried" or not generators:
            return generators[0] if generators else None
        return ByClass(generators, self.classes)

    def num_bytes(self) -> dict[str, int]:
        """Return the bytes kept, by kind: weights, if there are any."""
        tensors = [tensor for generator in self.stored for tensor in generator.values()]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return {"weights": size} if size else {}

    def state_dict(self) -> dict:
        """Return what is stored."""
        return {"stored": self.stored, "classes": self.classes}

    def load_state_dict(self, state: dict) -> None:
        """Restore what state_dict() returned."""
        self.stored = state["stored"]
        self.classes = state["classes"]


def generator_bytes(config: dict, storage: str) -> int:
    """Size in bytes of a generator with these constructor values. Raises UsageError if they make no
    generator."""
    with torch.device("meta"):
        return num_bytes(build_generator(config), storage)


def widest(size: Callable[[int], int], max_bytes: int) -> int:
    """The largest width whose size(width), in bytes, is at most `max_bytes`. Raises UsageError if there
    is none."""
    width = bisect.bisect_right(range(1, MAX_WIDTH + 1), max_bytes, key=size)
    if width == 0:
        raise UsageError(
            f"{max_bytes} bytes are left for generators, expected at least the {size(1)} of width 1"
        )
    return width


def make_generators(
    info: DataInfo,
    classes: Sequence[Sequence[int]],
    max_bytes: int | None,
    args: SimpleNamespace,
    carries: bool,
) -> GeneratorMemory:
    """Make an empty memory of generators that fit into max_bytes, None = no limit. Raises UsageError if they
    do not fit.

    They are of --width, else as wide as fits, or as is the default of --gan without a limit. classes: those
    of each task. args: the flags. carries: keep one generator with tables of all classes of the set, instead
    of one for each task with tables of its classes.
    """
    config = {
        "gan": args.gan,
        "num_classes": info.num_classes if carries else max(map(len, classes)),
        "channels": info.channels,
        "image_size": info.image_size,
        "z_dim": args.z_dim or max(100, 2 * info.num_classes),
    }

    def size(width: int) -> int:
        return (1 if carries else len(classes)) * generator_bytes(config | {"width": width}, args.storage)

    size(1)  # raises UsageError for sizes that make no generator
    if max_bytes is None:
        width = args.width or GANS[args.gan].width
    else:
        width = args.width or widest(size, max_bytes)
        if size(width) > max_bytes:
            raise UsageError(
                f"--width {width}: its generators take {size(width)} bytes, expected at most {max_bytes}"
            )
    layout = "carried" if carries else "per-task"
    return GeneratorMemory(config | {"width": width}, args.storage, layout, info.num_classes)


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
