"""A buffer of real images: a uniform sample of all images offered, within a budget of bytes or images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data import DataInfo, ImageSet, to_float
from engine.tensors import to_device
from scoring.storage import LENGTH_BYTES, decode_images, encode_images, make_codec, roundtrip
from utils import UsageError


class MemoryBatch(NamedTuple):
    """A batch from memory: images (B, C, H, W) in [-1, 1], labels y (B,), and stored logits (B, N, K) of N
    networks, or (B, 0, K)."""

    images: Tensor
    y: Tensor
    logits: Tensor


class Images:
    """Stored images that are drawn in batches; a subclass has images, labels, logits and device."""

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, n: int) -> MemoryBatch:
        """Draw n different images, or all if there are fewer, with random numbers of the device."""
        index = torch.randperm(len(self), device=self.device)[:n]
        return MemoryBatch(to_float(self.images[index]), self.labels[index], self.logits[index])

    def contents(self) -> ImageSet:
        """All images and labels."""
        return ImageSet(self.images, self.labels)


class Buffer(Images):
    """A uniform sample of all images offered so far: reservoir sampling (Vitter 1985, doi:10.1145/3147.3165).

    Each offered image gets a random key. The images with the smallest keys are kept, as many as fit. If all
    images have one size, this is a reservoir; if they are compressed, it is a sample that favours no size.
    The keys do not count as memory: to go on sampling, a reservoir needs only the number of images that it
    was offered. balanced: keep one reservoir for each class, each with an equal share of the room. classes:
    those that will come, None = all of the set. planned: they have their shares from the start, so that no
    image leaves; it goes with `balanced`. max_bytes: budget for pixels or codes, labels and logits.
    max_images: budget in images. None = no limit. networks: number of networks whose logits are stored with
    each image. Raises UsageError if not even one image fits; with `balanced`, one of each class.
    """

    def __init__(
        self,
        info: DataInfo,
        device: torch.device,
        *,
        max_bytes: int | None = None,
        max_images: int | None = None,
        balanced: bool = False,
        classes: Sequence[int] | None = None,
        planned: bool = False,
        codec: str = "raw",
        quality: int = 75,
        networks: int = 0,
        seed: int = 0,
    ):
        self.info = info
        self.device = device
        self.max_bytes = max_bytes
        self.max_images = max_images
        self.balanced = balanced
        self.classes = sorted(range(info.num_classes) if classes is None else classes)
        self.codec = make_codec(codec, quality, info)
        self.rng = torch.Generator().manual_seed(seed)
        self.shared = self.codec.shared if self.codec else 0  # bytes that all images share
        self.lossy = roundtrip(codec, self.codec, info)
        self.item_bytes = {
            "labels": 1 if info.num_classes <= 256 else 2,
            "logits": 4 * networks * info.num_classes,
        }
        self.images = torch.empty(
            0, info.channels, info.image_size, info.image_size, dtype=torch.uint8, device=device
        )
        self.labels = torch.empty(0, dtype=torch.long, device=device)
        self.logits = torch.empty(0, networks, info.num_classes, device=device)
        # On the host, for the same images: random keys, groups, and codes (None if raw).
        self.keys = np.empty(0)
        self.groups = np.empty(0, np.int64)
        self.codes = []
        self.bars: dict[int, float] = {}  # group -> the smallest key that was rejected
        self.known = list(self.classes) if planned else []  # groups in the order of their first image
        if max_bytes is not None:
            black = self._encode(self.images.new_zeros(1, *self.images.shape[1:]))
            wanted, number = ("one of each class", len(self.classes)) if balanced else ("one", 1)
            least = number * int(self._sizes(black)[0]) + self.shared
            if least > max_bytes:
                raise UsageError(
                    f"{max_bytes} bytes are left for images, expected room for {wanted}, {least} bytes or "
                    "more"
                )

    def offer(self, images: Tensor, labels: Tensor, logits: Tensor | None = None) -> None:
        """Offer uint8 images (B, C, H, W), labels (B,) on the host, and logits (B, N, K); the buffer keeps
        those that enter the sample."""
        keys = torch.rand(len(labels), generator=self.rng, dtype=torch.double).numpy()
        groups = labels.numpy() if self.balanced else np.zeros(len(labels), np.int64)
        wanted = np.flatnonzero(keys < [self.bars.get(group, np.inf) for group in groups.tolist()])
        if len(wanted) == 0:
            return
        if logits is None:
            logits = self.logits.new_empty(len(labels), *self.logits.shape[1:])
        index = to_device(torch.from_numpy(wanted), self.device)
        images, logits = images[index], logits[index]
        codes = self._encode(images)
        if self.codec:
            images = self._decode(codes)
        self.keys = np.concatenate([self.keys, keys[wanted]])
        self.groups = np.concatenate([self.groups, groups[wanted]])
        self.codes = self.codes + codes
        self.images = torch.cat([self.images, images])
        self.labels = torch.cat([self.labels, to_device(labels[wanted], self.device)])
        self.logits = torch.cat([self.logits, logits])
        self.keep_what_fits(before=len(self) - len(wanted))

    def keep_what_fits(self, before: int) -> None:
        """Let the images leave that the sample has no room for. before: how many images are not new.

        If the number of images stays the same, a new image takes the place of one that leaves.
        """
        kept = np.flatnonzero(self._fits())
        if len(kept) == len(self):
            return
        staying, joining = kept[kept < before], kept[kept >= before]
        order = kept
        if len(kept) == before:
            order = np.arange(before)
            order[np.setdiff1d(order, staying)] = joining
        self.keys = self.keys[order]
        self.groups = self.groups[order]
        self.codes = [self.codes[place] for place in order]
        index = to_device(torch.from_numpy(order), self.device)
        self.images = self.images[index]
        self.labels = self.labels[index]
        self.logits = self.logits[index]

    def room_for_class(self, images: ImageSet, sample: int = 200) -> int:
        """The number of images that fit into the share of one class, at the mean size of `images`.

        sample: largest number of images whose size is looked at. Only with `planned`. Raises UsageError if
        not one fits.
        """
        if self.max_images is not None:
            return self.max_images // len(self.classes)
        some = images.images[:: -(-len(images) // sample)]
        sizes = self._sizes(self._encode(some))
        share = (self.max_bytes - self.shared) // len(self.classes)
        if share < sizes.mean():
            raise UsageError(
                f"--memory-bytes {self.max_bytes}: the share of a class is {share} bytes, expected room for "
                f"an image, about {sizes.mean():.0f}"
            )
        return int(share // sizes.mean())

    def num_bytes(self) -> dict[str, int]:
        """Return the bytes kept, by kind: images, labels and logits."""
        parts = {name: len(self) * size for name, size in self.item_bytes.items() if size}
        return {"images": int(self._sizes(self.codes).sum()) - sum(parts.values()) + self.shared} | parts

    def state_dict(self) -> dict:
        """Return the pixels or the codes, the labels and logits, and the state of the sampling."""
        return {
            "images": self.images if self.codec is None else None,
            "codes": [torch.frombuffer(bytearray(code), dtype=torch.uint8) for code in self.codes if code],
            "labels": self.labels,
            "logits": self.logits,
            "keys": torch.from_numpy(self.keys),
            "bars": dict(self.bars),
            "known": list(self.known),
            "rng": self.rng.get_state(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore what state_dict() returned."""
        self.labels = state["labels"].to(self.device)
        self.logits = state["logits"].to(self.device)
        self.keys = state["keys"].numpy()
        if self.codec:
            self.codes = [code.numpy().tobytes() for code in state["codes"]]
            self.images = self._decode(self.codes)
        else:
            self.codes = [None] * len(self.keys)
            self.images = state["images"].to(self.device)
        self.groups = state["labels"].cpu().numpy() if self.balanced else np.zeros(len(self.keys), np.int64)
        self.bars = dict(state["bars"])
        self.known = list(state["known"])
        self.rng.set_state(state["rng"])

    def _sizes(self, codes: list[bytes | None]) -> np.ndarray:
        """Size in bytes of each image, with its label and logits; the code None stands for raw pixels."""
        raw = self.info.channels * self.info.image_size**2
        pixels = [raw if code is None else len(code) + LENGTH_BYTES for code in codes]
        return np.array(pixels, np.int64) + sum(self.item_bytes.values())

    def _fits(self) -> np.ndarray:
        """Choose the images to keep, a mask (N,): in each group those with the smallest keys, as many as fit.
        Updates the bars."""
        limit = self.max_images
        if self.max_bytes is not None:
            limit = self.max_bytes - self.shared
        if limit is None:
            return np.ones(len(self), bool)
        kept = np.zeros(len(self), bool)
        sizes = self._sizes(self.codes)
        self.known += [group for group in dict.fromkeys(self.groups.tolist()) if group not in self.known]
        for place, group in enumerate(self.known):
            (places,) = np.nonzero(self.groups == group)
            places = places[np.argsort(self.keys[places])]
            room, rest = divmod(limit, len(self.known))
            if self.max_bytes is None:
                fitting = room + (place < rest)
            else:
                fitting = int(np.searchsorted(np.cumsum(sizes[places]), room, side="right"))
            kept[places[:fitting]] = True
            if fitting < len(places):
                self.bars[group] = float(self.keys[places[fitting]])
        return kept

    def _encode(self, images: Tensor) -> list[bytes | None]:
        return encode_images(self.codec, images) if self.codec else [None] * len(images)

    def _decode(self, codes: list[bytes]) -> Tensor:
        return to_device(decode_images(self.codec, codes, self.info), self.device)
