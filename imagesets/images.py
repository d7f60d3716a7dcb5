"""Image sets as uint8 tensors.

Images are stored as uint8 (N, C, H, W) and used as float32 in [-1, 1]; labels are int64 (N,).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

SPLITS = ("train", "test")


@dataclass(frozen=True)
class DataInfo:
    """What a network must know about an image set. mean and std are per channel, of images in [0, 1].

    background: the color behind the transparent pictures of a folder; None = black.
    """

    name: str
    channels: int
    image_size: int
    num_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    # repr=False: not in fingerprints, which hold the images themselves
    background: str | None = field(default=None, repr=False)

    def to_dict(self) -> dict:
        """Plain values, for a checkpoint; without a background if none was named."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {k: v for k, v in values.items() if k != "background" or v is not None}

    @classmethod
    def from_dict(cls, values: dict) -> "DataInfo":
        """The inverse of to_dict."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 (N, C, H, W) and labels int64 (N,) on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "ImageSet":
        """The same set on `device`."""
        return ImageSet(self.images.to(device), self.labels.to(device))

    def __getitem__(self, index: Tensor) -> "ImageSet":
        """The subset at `index` (M,)."""
        return ImageSet(self.images[index], self.labels[index])

    @classmethod
    def joined(cls, sets: Sequence["ImageSet"]) -> "ImageSet":
        """All images of `sets`, one set after another."""
        return cls(torch.cat([one.images for one in sets]), torch.cat([one.labels for one in sets]))

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) as float32 in [-1, 1] and labels (B,)."""
        return to_float(self.images[index]), self.labels[index]


@dataclass(frozen=True)
class Data:
    """The splits of an image set; those that were not read are None.

    val: held out of `train`, or None if nothing is.
    """

    info: DataInfo
    train: ImageSet | None
    val: ImageSet | None
    test: ImageSet | None

    def to(self, device: torch.device) -> "Data":
        """The same data on `device`."""
        return Data(self.info, *(split and split.to(device) for split in (self.train, self.val, self.test)))

    def describe(self) -> str:
        """One line for the user: images per split, channels, size, and the first ten classes."""
        splits = (("training", self.train), ("held-out", self.val), ("test", self.test))
        counts = ", ".join(f"{len(images):,} {name}" for name, images in splits if images is not None)
        info = self.info
        images = f"images of {info.channels} x {info.image_size} x {info.image_size}"
        classes = ", ".join(info.class_names[:10]) + (", ..." if info.num_classes > 10 else "")
        return f"data: {info.name}, {counts} {images}; {info.num_classes} classes: {classes}"

    @property
    def evaluation_split(self) -> tuple[str, ImageSet]:
        """Name and images of the split that classifiers are tested on: "val" if there is one, else "test"."""
        return ("test", self.test) if self.val is None else ("val", self.val)


def to_float(images: Tensor) -> Tensor:
    """uint8 [0, 255] to float32 [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """float [-1, 1] to uint8 [0, 255], rounded; values outside of the range are clipped."""
    return ((images + 1) * 127.5).round().clamp(0, 255).byte()


def fingerprint(info: DataInfo, images: ImageSet | None) -> str | None:
    """A short hash of a set and its normalisation, which tells results on different images apart."""
    if images is None:
        return None
    digest = hashlib.sha256(repr(info).encode())
    for tensor in (images.images, images.labels):
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()[:16]
