"""The memory of a continual learner between tasks, and its size in bytes: a buffer of real images, generators, or both."""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from data import DataInfo
from engine.runtime import Runtime
from engine.seeds import derive_seed, seeded
from engine.tensors import to_host
from models import GANS, build_gan, build_generator, decode
from models.deploy import ByClass, Latents, OwnClasses
from replay.buffer import Buffer
from replay.condensed_buffer import CondensedBuffer
from replay.learner import Learner
from replay.methods import Method
from scoring.storage import encode, num_bytes
from utils import UsageError

LAYOUTS = ("carried", "per-task")
STARTS = ("new", "previous")
TABLES = ("task", "all")


class GeneratorMemory:
    """Stored generators: one that is carried on from task to task, or one for each task (`layout`).

    config: constructor values of a generator. num_classes: of the set; if the generator has tables for fewer, they are of the classes that
    it is made for. kept_with: what else is kept to continue its training, by name, as plain tensors. num_latents: of each class that are
    kept, if any.
    """

    def __init__(self, config: dict, storage: str, layout: str, num_classes: int, num_latents: int = 0):
        self.config, self.storage, self.layout, self.num_classes, self.num_latents = config, storage, layout, num_classes, num_latents
        self.stored: list[dict[str, Tensor]] = []
        self.classes: list[list[int]] = []  # of each generator
        self.latents: list[Tensor] = []  # of each generator, if any; the last one may have none yet
        self.kept_with: dict = {}

    def keep(self, generator: nn.Module, classes: Sequence[int], kept_with: dict | None = None) -> None:
        """Store the generator of `classes`: it replaces the one that was carried on, or joins those of earlier tasks."""
        if self.layout == "carried":
            self.stored, self.classes = [], []
        self.stored.append(encode(generator, self.storage))
        self.classes.append(list(classes))
        self.kept_with = kept_with or {}

    def new_latents(self, seed: int, runtime: Runtime) -> Latents:
        """Random latents of the classes of the last generator, as it is stored."""
        generator = runtime.place(self._generators()[-1])
        return Latents.drawn(generator, self.num_latents, seed, runtime.device, self.config["num_classes"], self.classes[-1])

    def players(self, classes: Sequence[int]) -> tuple[nn.Module, nn.Module]:
        """A freshly initialised generator of `classes`, and a discriminator for all classes of the set."""
        generator, discriminator = build_gan(self.config, self.num_classes)
        return self._own(generator, classes), discriminator

    def _own(self, generator: nn.Module, classes: Sequence[int]) -> nn.Module:
        return generator if self.config["num_classes"] == self.num_classes else OwnClasses(generator, classes, self.num_classes)

    def build(self) -> nn.Module | None:
        """Build a generator from what is stored, on the CPU; it samples all classes so far. Returns None before the first task."""
        generators = self._generators()
        for number, (latents, classes) in enumerate(zip(self.latents, self.classes, strict=False)):
            generators[number] = Latents.decoded(generators[number], latents, classes).requires_grad_(False)
        if self.layout == "carried" or not generators:
            return generators[0] if generators else None
        return ByClass(generators, self.classes)

    def _generators(self) -> list[nn.Module]:
        generators = []
        for tensors, classes in zip(self.stored, self.classes, strict=True):
            with seeded(torch.device("cpu"), "any"):  # these weights are overwritten at once: do not advance the random state
                generator = self._own(build_generator(self.config), classes)
            load_stored(generator, tensors)
            generators.append(generator.eval().requires_grad_(False))
        return generators

    def num_bytes(self) -> dict[str, int]:
        """Return the bytes kept, by kind: weights, and latents and training if kept."""
        parts = {"weights": _tensor_bytes(self.stored), "latents": _tensor_bytes(self.latents), "training": _tensor_bytes(self.kept_with)}
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
    """Load what was stored of a generator: all but the counters of BatchNorm, which nothing reads. Raises UsageError for another kind."""
    found = generator.load_state_dict(decode(tensors), strict=False)
    if found.unexpected_keys or not all(name.endswith("num_batches_tracked") for name in found.missing_keys):
        raise UsageError(
            "the stored generators have other tables (older runs have those of all classes): expected the --class-tables of the run"
        )


class Memory:
    """All that is kept between tasks: a buffer, generators and averaged networks.

    max_bytes: budget of all parts; None = no limit. copies: size in bytes of the averaged networks.
    """

    def __init__(self, max_bytes: int | None, buffer: Buffer | CondensedBuffer | None, generators: GeneratorMemory | None, copies: int = 0):
        self.max_bytes, self.buffer, self.generators, self.copies = max_bytes, buffer, generators, copies

    def describe(self) -> str:
        """One line for the reader: what is kept, and the budget."""
        parts = [f"{self.copies:,} bytes of averaged networks"] if self.copies else []
        if self.generators is not None:
            width, storage, layout = self.generators.config["width"], self.generators.storage, self.generators.layout
            latents = f" and {self.generators.num_latents:,} latents of each class" if self.generators.num_latents else ""
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
            raise UsageError(f"the memory holds {total} bytes, expected at most the {self.max_bytes} of --memory-bytes")

    def state_dict(self) -> dict:
        """Return what is kept, under the key "memory", with a digest."""
        parts = {name: part.state_dict() for name, part in (("buffer", self.buffer), ("generators", self.generators)) if part is not None}
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
            found.update(f"{value.dtype}{tuple(value.shape)}".encode() + value.detach().cpu().contiguous().numpy().tobytes())
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


def _tensor_bytes(state) -> int:
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(_tensor_bytes(value) for value in inner)


def generator_bytes(config: dict, storage: str) -> int:
    """Size in bytes of a generator with these constructor values. Raises UsageError if they make no generator."""
    with torch.device("meta"):
        return num_bytes(build_generator(config), storage)


def training_bytes(config: dict) -> int:
    """Size in bytes of the discriminator and both Adam states that belong to a generator with these constructor values."""
    with torch.device("meta"):
        generator, discriminator = build_gan(config)
    parameters = [*generator.parameters(), *discriminator.parameters()]
    adams = sum(2 * 4 * parameter.numel() + 4 for parameter in parameters)  # two moments, and a count of steps
    return _tensor_bytes(discriminator.state_dict()) + adams


def widest(size: Callable[[int], int], max_bytes: int) -> int:
    """Find the largest width whose size(width), in bytes, is at most `max_bytes`. Raises UsageError if there is none."""
    low, high = 0, 1
    while size(high) <= max_bytes:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= max_bytes else (low, middle)
    if low == 0:
        raise UsageError(f"{max_bytes} bytes are left for generators, expected at least the {size(1)} of width 1")
    return low


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
    gan: str,
    width: int | None,
    z_dim: int | None,
    storage: str,
    layout: str,
    tables: str,
    classes: Sequence[Sequence[int]],
    latents: int,
    keep_discriminator: bool,
    seed: int,
) -> Memory:
    """Make the memory of the method called `name`, with its parts sized to max_bytes. Raises UsageError if one does not fit.

    buffer_share: share of the bytes for real images beside a generator. fill_real: see CondensedBuffer. width: channels of the generators;
    None = as many as fit into the budget, or the default of `gan` if there is no budget. tables: of which classes a generator for one task
    has tables, one of TABLES. classes: those of each task. latents: of each class that are kept beside the generators.
    """
    copies = sum(num_bytes(average) for learner in learners for average in learner.averages)
    left = max_bytes and max_bytes - copies
    if left is not None and left <= 0:
        raise UsageError(f"--memory-bytes {max_bytes}: the averaged copies of {name} take {copies}, expected more than that")
    number = sum(map(len, classes))
    if method.balanced and buffer_size is not None and buffer_size < number:
        raise UsageError(f"--buffer-size {buffer_size}: expected room for one image of each of the {number} classes")
    buffer = generators = None
    try:
        if method.memory == "generator":
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

            of_latents = 2 * latents * number * (config["z_dim"] - config["num_classes"])
            room = left and int(left * (1 - buffer_share)) - of_latents
            if latents and left and room <= 0:
                raise UsageError(f"--latents {latents} take {of_latents} bytes, expected less than the {room + of_latents} of generators")
            width = width or (widest(size, room) if left else GANS[gan].width)
            if left and size(width) > room:
                raise UsageError(f"--width {width}: its generators take {size(width)} bytes, expected at most {room}")
            generators = GeneratorMemory(config | {"width": width}, storage, layout, info.num_classes, latents)
        if method.memory == "buffer" or buffer_share or buffer_size:
            sized = {"max_bytes": left and (int(left * buffer_share) if generators else left), "max_images": buffer_size}
            sized |= {"codec": codec, "quality": quality}
            buffer = Buffer(
                info,
                device,
                **sized,
                balanced=method.balanced,
                classes=[label for labels in classes for label in labels],
                planned=method.condenses,
                networks=len(learners) if method.keeps_logits else 0,
                seed=derive_seed(seed, "buffer"),
            )
            if method.condenses:
                filler = Buffer(info, device, **sized, seed=derive_seed(seed, "filler")) if fill_real else None
                buffer = CondensedBuffer(buffer, filler)
    except UsageError as error:
        raise UsageError(f"--memory-bytes {max_bytes}: {error}" if max_bytes else str(error)) from None
    return Memory(max_bytes, buffer, generators, copies)
