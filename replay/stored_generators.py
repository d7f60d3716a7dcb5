"""The generators of a continual learner as they are stored between tasks, and their size in bytes."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from data import DataInfo
from engine.seeds import seeded
from models import GANS, build_gan, build_generator, decode
from models.deploy import ByClass, OwnClasses
from scoring.storage import encode, num_bytes
from utils import UsageError


class GeneratorMemory:
    """Stored generators: one that is carried on from task to task, or one for each task (`layout`).

    config: constructor values of a generator. num_classes: of the set; if the generator has tables for fewer,
    they are of the classes that it is made for.
    """

    def __init__(self, config: dict, storage: str, layout: str, num_classes: int):
        self.config, self.storage, self.layout, self.num_classes = config, storage, layout, num_classes
        self.stored: list[dict[str, Tensor]] = []
        self.classes: list[list[int]] = []  # of each generator

    def keep(self, generator: nn.Module, classes: Sequence[int]) -> None:
        """Store the generator of `classes`: it replaces the one that was carried on, or joins those of
        earlier tasks."""
        if self.layout == "carried":
            self.stored, self.classes = [], []
        self.stored.append(encode(generator, self.storage))
        self.classes.append(list(classes))

    def players(self, classes: Sequence[int]) -> tuple[nn.Module, nn.Module]:
        """A freshly initialised generator of `classes`, and a discriminator for all classes of the set."""
        generator, discriminator = build_gan(self.config, self.num_classes)
        return self._own(generator, classes), discriminator

    def _own(self, generator: nn.Module, classes: Sequence[int]) -> nn.Module:
        return (
            generator
            if self.config["num_classes"] == self.num_classes
            else OwnClasses(generator, classes, self.num_classes)
        )

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
        self.stored, self.classes = state["stored"], state["classes"]


def generator_bytes(config: dict, storage: str) -> int:
    """Size in bytes of a generator with these constructor values. Raises UsageError if they make no
    generator."""
    with torch.device("meta"):
        return num_bytes(build_generator(config), storage)


def widest(size: Callable[[int], int], max_bytes: int) -> int:
    """Find the largest width whose size(width), in bytes, is at most `max_bytes`. Raises UsageError if there
    is none."""
    low, high = 0, 1
    while size(high) <= max_bytes:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= max_bytes else (low, middle)
    if low == 0:
        raise UsageError(
            f"{max_bytes} bytes are left for generators, expected at least the {size(1)} of width 1"
        )
    return low


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
