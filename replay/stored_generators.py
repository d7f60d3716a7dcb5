"""The generators of a continual learner as they are stored between tasks, and their size in bytes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from data import DataInfo
from engine.runtime import Runtime
from engine.seeds import seeded
from models import GANS, build_gan, build_generator, decode
from models.deploy import ByClass, Latents, OwnClasses
from scoring.storage import encode, num_bytes
from utils import UsageError


class GeneratorMemory:
    """Stored generators: one that is carried on from task to task, or one for each task (`layout`).

    config: constructor values of a generator. num_classes: of the set; if the generator has tables for fewer,
    they are of the classes that it is made for. kept_with: what else is kept to continue its training, by
    name, as plain tensors. num_latents: of each class that are kept, if any.
    """

    def __init__(self, config: dict, storage: str, layout: str, num_classes: int, num_latents: int = 0):
        self.config, self.storage, self.layout, self.num_classes, self.num_latents = (
            config,
            storage,
            layout,
            num_classes,
            num_latents,
        )
        self.stored: list[dict[str, Tensor]] = []
        self.classes: list[list[int]] = []  # of each generator
        self.latents: list[Tensor] = []  # of each generator, if any; the last one may have none yet
        self.kept_with: dict = {}

    def keep(self, generator: nn.Module, classes: Sequence[int], kept_with: dict | None = None) -> None:
        """Store the generator of `classes`: it replaces the one that was carried on, or joins those of
        earlier tasks."""
        if self.layout == "carried":
            self.stored, self.classes = [], []
        self.stored.append(encode(generator, self.storage))
        self.classes.append(list(classes))
        self.kept_with = kept_with or {}

    def new_latents(self, seed: int, runtime: Runtime) -> Latents:
        """Random latents of the classes of the last generator, as it is stored."""
        generator = runtime.place(self._generators()[-1])
        return Latents.drawn(
            generator, self.num_latents, seed, runtime.device, self.config["num_classes"], self.classes[-1]
        )

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
        generators = self._generators()
        for number, (latents, classes) in enumerate(zip(self.latents, self.classes, strict=False)):
            generators[number] = Latents.decoded(generators[number], latents, classes).requires_grad_(False)
        if self.layout == "carried" or not generators:
            return generators[0] if generators else None
        return ByClass(generators, self.classes)

    def _generators(self) -> list[nn.Module]:
        generators = []
        for tensors, classes in zip(self.stored, self.classes, strict=True):
            with seeded(
                torch.device("cpu"), "any"
            ):  # these weights are overwritten at once: do not advance the random state
                generator = self._own(build_generator(self.config), classes)
            load_stored(generator, tensors)
            generators.append(generator.eval().requires_grad_(False))
        return generators

    def num_bytes(self) -> dict[str, int]:
        """Return the bytes kept, by kind: weights, and latents and training if kept."""
        parts = {
            "weights": tensor_bytes(self.stored),
            "latents": tensor_bytes(self.latents),
            "training": tensor_bytes(self.kept_with),
        }
        return {name: size for name, size in parts.items() if size}

    def state_dict(self) -> dict:
        """Return what is stored."""
        latents = {"latents": self.latents} if self.num_latents else {}
        return {"stored": self.stored, "classes": self.classes, "kept_with": self.kept_with} | latents

    def load_state_dict(self, state: dict) -> None:
        """Restore what state_dict() returned."""
        self.stored, self.classes, self.kept_with = state["stored"], state["classes"], state["kept_with"]
        self.latents = state.get("latents", [])


def load_stored(generator: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load what was stored of a generator: all but the counters of BatchNorm, which nothing reads. Raises
    UsageError for another kind."""
    found = generator.load_state_dict(decode(tensors), strict=False)
    if found.unexpected_keys or not all(name.endswith("num_batches_tracked") for name in found.missing_keys):
        raise UsageError(
            "the stored generators have other tables (older runs have those of all classes): expected the "
            "--class-tables of the run"
        )


def tensor_bytes(state) -> int:
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(tensor_bytes(value) for value in inner)


def generator_bytes(config: dict, storage: str) -> int:
    """Size in bytes of a generator with these constructor values. Raises UsageError if they make no
    generator."""
    with torch.device("meta"):
        return num_bytes(build_generator(config), storage)


def training_bytes(config: dict) -> int:
    """Size in bytes of the discriminator and both Adam states that belong to a generator with these
    constructor values."""
    with torch.device("meta"):
        generator, discriminator = build_gan(config)
    parameters = [*generator.parameters(), *discriminator.parameters()]
    adams = sum(
        2 * 4 * parameter.numel() + 4 for parameter in parameters
    )  # two moments, and a count of steps
    return tensor_bytes(discriminator.state_dict()) + adams


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
    *,
    gan: str,
    width: int | None,
    z_dim: int | None,
    storage: str,
    layout: str,
    tables: str,
    latents: int,
    keep_discriminator: bool,
) -> GeneratorMemory:
    """Make an empty memory of generators that fit into max_bytes, None = no limit. Raises UsageError if they
    do not fit.

    width: channels; None = as many as fit, or the default of `gan` without a limit. tables: of which classes
    a generator for one task has tables, one of TABLES. classes: those of each task. latents: of each class
    that are kept beside the generators.
    """
    config = {
        "gan": gan,
        "num_classes": max(map(len, classes)) if tables == "task" else info.num_classes,
        "channels": info.channels,
        "image_size": info.image_size,
        "z_dim": z_dim or max(100, 2 * info.num_classes),
    }
    generator_bytes(config | {"width": 1}, storage)  # raises UsageError for sizes that make no generator
    held = len(classes) if layout == "per-task" else 1

    def size(width: int) -> int:
        sized = config | {"width": width}
        return held * generator_bytes(sized, storage) + (training_bytes(sized) if keep_discriminator else 0)

    of_latents = 2 * latents * sum(map(len, classes)) * (config["z_dim"] - config["num_classes"])
    if max_bytes is None:
        width = width or GANS[gan].width
    else:
        room = max_bytes - of_latents
        if latents and room <= 0:
            raise UsageError(
                f"--latents {latents} take {of_latents} bytes, expected less than the {max_bytes} of "
                "generators"
            )
        width = width or widest(size, room)
        if size(width) > room:
            raise UsageError(
                f"--width {width}: its generators take {size(width)} bytes, expected at most {room}"
            )
    return GeneratorMemory(config | {"width": width}, storage, layout, info.num_classes, latents)
