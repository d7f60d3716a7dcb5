"""What a continual learner keeps between tasks, and what that costs in bytes: a buffer of real images, a generator, or both."""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from data import DataInfo, ImageSet, to_float
from models import build_gan, build_generator, decode
from models.deploy import ByClass
from storage import LENGTH_BYTES, decode_images, encode, encode_images, make_codec, num_bytes
from utils import UsageError, seeded, to_device, to_host

LAYOUTS = ("carried", "per-task")


class Draw(NamedTuple):
    """Images (B, C, H, W) in [-1, 1], labels (B,), and the logits (B, N, K) that N networks had for them, or (B, 0, K)."""

    images: Tensor
    y: Tensor
    logits: Tensor


class Buffer:
    """A uniform sample of all images offered so far: reservoir sampling (Vitter 1985, doi:10.1145/3147.3165).

    Each offered image gets a random key, and those of the smallest keys are kept, as many as fit: for images of one size a reservoir,
    and for compressed ones a sample that favours no size. The keys do not count: to
    go on sampling, a reservoir needs no more than the number of images that it was offered.
    `balanced`: a reservoir for each class, each with an equal share of the room. max_bytes counts pixels or codes, labels and
    logits; max_images counts images; None = no limit. networks: how many have their logits stored with each image. Raises
    UsageError where not one image fits.
    """

    def __init__(
        self,
        info: DataInfo,
        device: torch.device,
        *,
        max_bytes: int | None = None,
        max_images: int | None = None,
        balanced: bool = False,
        codec: str = "raw",
        quality: int = 75,
        networks: int = 0,
        seed: int = 0,
    ):
        self.info, self.device, self.max_bytes, self.max_images, self.balanced = info, device, max_bytes, max_images, balanced
        self.codec, self.rng = make_codec(codec, quality, info.channels), torch.Generator().manual_seed(seed)
        self.item_bytes = {"labels": 1 if info.num_classes <= 256 else 2, "logits": 4 * networks * info.num_classes}
        self.images = torch.empty(0, info.channels, info.image_size, info.image_size, dtype=torch.uint8, device=device)
        self.labels = torch.empty(0, dtype=torch.long, device=device)
        self.logits = torch.empty(0, networks, info.num_classes, device=device)
        # Of the same images, on the host: random keys, groups, bytes, and codes where they are compressed.
        self.keys, self.groups, self.sizes, self.codes = np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64), []
        self.bars: dict[int, float] = {}  # group -> the smallest key that was turned away
        self.known: list[int] = []  # groups in the order of their first image
        if max_bytes is not None:
            empty = encode_images(self.codec, self.images.new_zeros(1, *self.images.shape[1:])) if self.codec else [None]
            least = int(self._sizes(empty)[0]) + (self.codec.shared if self.codec else 0)
            wanted, least = ("one of each class", least * info.num_classes) if balanced else ("one", least)
            if least > max_bytes:
                raise UsageError(f"{max_bytes} bytes are left for real images, expected room for {wanted}, {least} bytes or more")

    def __len__(self) -> int:
        return len(self.keys)

    def offer(self, images: Tensor, labels: Tensor, logits: Tensor | None = None) -> None:
        """Take in what the sample has room for of images uint8 (B, C, H, W), labels (B,) on the host, and logits (B, N, K)."""
        keys = torch.rand(len(labels), generator=self.rng, dtype=torch.double).numpy()
        groups = labels.numpy() if self.balanced else np.zeros(len(labels), np.int64)
        wanted = np.flatnonzero(keys < [self.bars.get(group, np.inf) for group in groups.tolist()])
        if len(wanted) == 0:
            return
        if logits is None:
            logits = self.logits.new_empty(len(labels), *self.logits.shape[1:])
        codes, rows = [None] * len(wanted), wanted  # rows: where they lie in `images`
        if self.codec is not None:
            index = to_device(torch.from_numpy(wanted), self.device)
            codes, logits, rows = encode_images(self.codec, images[index]), logits[index], np.arange(len(wanted))
            images = self._decode(codes)
        arrived = (np.concatenate([self.keys, keys[wanted]]), np.concatenate([self.groups, groups[wanted]]))
        sizes, codes = np.concatenate([self.sizes, self._sizes(codes)]), self.codes + codes
        kept = np.flatnonzero(self._fits(*arrived, sizes))
        # Who arrives takes the place of who leaves, so that the others need not move.
        old, staying = len(self), kept[kept < len(self)]
        order = np.concatenate([staying, kept[kept >= old]])
        if len(kept) == old:
            order = np.arange(old)
            order[np.setdiff1d(order, staying)] = kept[kept >= old]
        self.keys, self.groups, self.sizes = arrived[0][order], arrived[1][order], sizes[order]
        self.codes = [codes[place] for place in order] if self.codec is not None else []
        grows = len(kept) != old
        places = staying if grows else np.flatnonzero(order != np.arange(old))  # in the tensors; what joins goes to the end, or there
        joins = kept[kept >= old] - old if grows else order[places] - old
        if not (grows or len(places)):
            return
        sent = [places, rows[joins], labels.numpy()[wanted[joins]]]  # one copy to the device, for which the host does not wait
        places, rows, fresh_labels = to_device(torch.from_numpy(np.concatenate(sent)), self.device).split([len(part) for part in sent])
        for name, fresh in {"images": images[rows], "labels": fresh_labels, "logits": logits[rows]}.items():
            tensor = getattr(self, name)
            if grows:
                setattr(self, name, torch.cat([tensor[places], fresh]))
            else:
                tensor[places] = fresh

    def draw(self, n: int) -> Draw:
        """n of the images, all where there are fewer, none twice; drawn on the device."""
        index = torch.randperm(len(self), device=self.device)[:n]
        return Draw(to_float(self.images[index]), self.labels[index], self.logits[index])

    def contents(self) -> ImageSet:
        """All images and labels."""
        return ImageSet(self.images, self.labels)

    def num_bytes(self) -> dict[str, int]:
        """Bytes kept, by what they are."""
        parts = {name: len(self) * size for name, size in self.item_bytes.items() if size}
        return {"images": int(self.sizes.sum()) - sum(parts.values()) + (self.codec.shared if self.codec else 0)} | parts

    def state_dict(self) -> dict:
        """What is kept: the pixels or the codes, with labels and logits."""
        return {
            "images": self.images if self.codec is None else None,
            "codes": [torch.frombuffer(bytearray(code), dtype=torch.uint8) for code in self.codes],
            "labels": self.labels,
            "logits": self.logits,
            "keys": torch.from_numpy(self.keys),
            "bars": dict(self.bars),
            "known": list(self.known),
            "rng": self.rng.get_state(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from state_dict()."""
        self.labels, self.logits = state["labels"].to(self.device), state["logits"].to(self.device)
        self.codes = [code.numpy().tobytes() for code in state["codes"]]
        self.images = (state["images"] if self.codec is None else self._decode(self.codes)).to(self.device)
        self.keys = state["keys"].numpy()
        self.groups = state["labels"].cpu().numpy() if self.balanced else np.zeros(len(self.keys), np.int64)
        self.sizes = self._sizes(self.codes if self.codec else [None] * len(self.keys))
        self.bars, self.known = dict(state["bars"]), list(state["known"])
        self.rng.set_state(state["rng"])

    def _sizes(self, codes: list[bytes | None]) -> np.ndarray:
        """Bytes of an image, with its label and logits."""
        raw = self.info.channels * self.info.image_size**2
        pixels = [raw if code is None else len(code) + LENGTH_BYTES for code in codes]
        return np.array(pixels, np.int64) + sum(self.item_bytes.values())

    def _fits(self, keys: np.ndarray, groups: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Which to keep (N,): of each group those of the smallest keys that have room. Sets the bars."""
        limit = self.max_images
        if self.max_bytes is not None:
            limit = self.max_bytes - (self.codec.shared if self.codec else 0)
        if limit is None:
            return np.ones(len(keys), bool)
        kept = np.zeros(len(keys), bool)
        self.known += [group for group in dict.fromkeys(groups.tolist()) if group not in self.known]
        for place, group in enumerate(self.known):
            room = limit // len(self.known) + (place < limit % len(self.known) if self.max_bytes is None else 0)
            (places,) = np.nonzero(groups == group)
            places = places[np.argsort(keys[places])]
            used = np.cumsum(sizes[places] if self.max_bytes is not None else np.ones(len(places)))
            fitting = int(np.searchsorted(used, room, side="right"))
            kept[places[:fitting]] = True
            if fitting < len(places):
                self.bars[group] = float(keys[places[fitting]])
        return kept

    def _decode(self, codes: list[bytes]) -> Tensor:
        return to_device(decode_images(self.codec, codes, self.info), self.device)


class GeneratorMemory:
    """Generators as they are stored: one that is carried on from task to task, or one for each task (`layout`).

    config: the generator's constructor values. kept_with: what else is kept to go on training it, by name, as plain tensors.
    """

    def __init__(self, config: dict, storage: str, layout: str):
        self.config, self.storage, self.layout = config, storage, layout
        self.stored: list[dict[str, Tensor]] = []
        self.classes: list[list[int]] = []  # of each
        self.kept_with: dict = {}

    def keep(self, generator: nn.Module, classes: Sequence[int], kept_with: dict | None = None) -> None:
        """Store `generator` of images of `classes`, in the place of the one that was carried on, or beside those of earlier tasks."""
        if self.layout == "carried":
            self.stored, self.classes = [], []
        self.stored.append(encode(generator, self.storage))
        self.classes.append(list(classes))
        self.kept_with = kept_with or {}

    def build(self) -> nn.Module | None:
        """What is stored, read back on the CPU: it samples images of all classes so far. None before the first task."""
        if not self.stored:
            return None
        generators = []
        for tensors in self.stored:
            with seeded(torch.device("cpu"), "any"):  # weights that are overwritten at once must not cost random numbers
                generator = build_generator(self.config)
            generator.load_state_dict(decode(tensors), strict=False)  # without counters, which nothing reads
            generators.append(generator.eval().requires_grad_(False))
        return generators[0] if self.layout == "carried" else ByClass(generators, self.classes)

    def num_bytes(self) -> dict[str, int]:
        """Bytes kept, by what they are."""
        parts = {"weights": sum(_tensor_bytes(tensors) for tensors in self.stored), "training": _tensor_bytes(self.kept_with)}
        return {name: size for name, size in parts.items() if size}

    def state_dict(self) -> dict:
        """What is kept."""
        return {"stored": self.stored, "classes": self.classes, "kept_with": self.kept_with}

    def load_state_dict(self, state: dict) -> None:
        """Go on from state_dict()."""
        self.stored, self.classes, self.kept_with = state["stored"], state["classes"], state["kept_with"]


class Memory:
    """All that is kept between tasks: a buffer, generators, and `copies` bytes of averaged networks, within `max_bytes` (None = any)."""

    def __init__(self, max_bytes: int | None, buffer: Buffer | None, generators: GeneratorMemory | None, copies: int = 0):
        self.max_bytes, self.buffer, self.generators, self.copies = max_bytes, buffer, generators, copies

    def num_bytes(self) -> dict[str, int]:
        """Bytes kept, by what they are; "total" last."""
        parts = {"copies": self.copies} if self.copies else {}
        for part in (self.buffer, self.generators):
            parts |= part.num_bytes() if part is not None else {}
        return parts | {"total": sum(parts.values())}

    def check(self) -> None:
        """Raise UsageError where more is kept than the budget allows."""
        total = self.num_bytes()["total"]
        if self.max_bytes is not None and total > self.max_bytes:
            raise UsageError(f"the memory holds {total} bytes, expected at most the {self.max_bytes} of --memory-bytes")

    def state_dict(self) -> dict:
        """What is kept, under the key "memory", with a digest."""
        parts = {name: part.state_dict() for name, part in (("buffer", self.buffer), ("generators", self.generators)) if part is not None}
        parts = to_host(parts)
        return {"memory": parts | {"sha256": digest(parts)}}

    def load_state_dict(self, state: dict) -> None:
        """Go on from state_dict(). Raises UsageError where it was altered, or holds more than the budget."""
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
    """What a generator of these constructor values takes."""
    with torch.device("meta"):
        return num_bytes(build_generator(config), storage)


def training_bytes(config: dict) -> int:
    """What a discriminator and both Adams take beside a generator of these constructor values."""
    with torch.device("meta"):
        generator, discriminator = build_gan(config)
    parameters = [*generator.parameters(), *discriminator.parameters()]
    adams = sum(2 * 4 * parameter.numel() + 4 for parameter in parameters)  # two moments, and a count of steps
    return _tensor_bytes(discriminator.state_dict()) + adams


def widest(size: Callable[[int], int], max_bytes: int) -> int:
    """The largest width whose size(width), in bytes, is at most `max_bytes`. Raises UsageError where none is."""
    low, high = 0, 1
    while size(high) <= max_bytes:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= max_bytes else (low, middle)
    if low == 0:
        raise UsageError(f"{max_bytes} bytes are left for generators, expected at least the {size(1)} of width 1")
    return low
