"""Read distilled sets in the file layouts in which other projects release them, and write our own."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data import DataInfo, check_different, list_pictures, match_classes, read_pictures
from engine.files import MAX_BYTES, write_atomic, write_tensors
from scoring.labels import read_labels
from scoring.pairs import check_not_whitened, is_dense, is_unwhitened, kind_of, read_pairs
from scoring.values import to_signed
from utils import UsageError


@dataclass(frozen=True)
class DistilledSet:
    """A distilled set: float32 images (N, C, H, W), and labels (N,) or soft labels (N, K).

    An image is 2 * pixel - 1 for pixels in [0, 1]; learned pixels may lie outside of that range. number:
    index of the set in its file. num_bytes: size of the images in the data type of the file, and of the soft
    labels if there are any. counts: number of stored images of each class. factor: each stored image held
    factor * factor of these images.
    """

    path: Path
    number: int
    images: Tensor
    labels: Tensor
    num_bytes: int
    counts: tuple[int, ...]
    factor: int = 1

    def to(self, device: torch.device) -> "DistilledSet":
        """The same set on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def sha256(self) -> str:
        """Hash of the images and labels, which does not depend on the file that holds them."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels):
            digest.update(tensor.contiguous().cpu().numpy())
        return digest.hexdigest()

    @property
    def fields(self) -> dict:
        """What a row of results holds of the set."""
        return {
            "file": self.path.name,
            "file_sha256": self.sha256(),
            "set": self.number,
            "factor": self.factor if self.factor > 1 else None,
            "labels": "soft" if self.soft else "hard",
        }

    @property
    def origin(self) -> dict:
        """Where the set lies, and the images of each class if they are unequal."""
        counts = list(self.counts) if len(set(self.counts)) > 1 else None
        return {"path": self.path.as_posix(), "images_per_class": counts}

    @property
    def soft(self) -> bool:
        """Whether the labels are probabilities."""
        return self.labels.is_floating_point()

    @property
    def num_images(self) -> int:
        """Number of stored images."""
        return sum(self.counts)

    @property
    def ipc(self) -> int:
        """Number of stored images of each class; if they are unequal, their mean, rounded."""
        return max(1, round(self.num_images / len(self.counts)))


def read_distilled(
    path: str | Path,
    info: DataInfo,
    image_range: str | None = None,
    label_kind: str | None = None,
    factor: int = 1,
    background: str | None = None,
) -> list[DistilledSet]:
    """Read the distilled sets in a file or folder: one, or several if the file holds several experiments.

    docs/files.md lists the layouts. image_range: one of RANGES, needed if the values do not determine it.
    label_kind: one of LABEL_KINDS, needed for logits and centred labels. factor: side of the collage of
    images that each stored image is. background: color behind transparent pictures (default: that of `info`).
    Pickled code is refused and never executed. Raises UsageError if the contents do not fit `info`.
    """
    path = Path(path)
    if not 1 <= factor <= info.image_size // 2:
        raise UsageError(
            f"--factor {factor}: expected 1 to {info.image_size // 2} for images of {info.image_size} pixels"
        )
    if path.is_dir():
        images, labels = _read_folder(path, info, image_range, background)
        return [_checked(path, 0, images, labels, info, None, label_kind, factor)]
    check_not_whitened(path)
    if image_range is None and is_unwhitened(path):
        image_range = "unit"
    pairs = enumerate(read_pairs(path))
    sets = [_checked(path, number, *pair, info, image_range, label_kind, factor) for number, pair in pairs]
    if not sets:
        raise UsageError(f"{path}: holds no images, expected [images, labels] in its list data")
    return sets


def _checked(
    path: Path,
    number: int,
    images: object,
    labels: object,
    info: DataInfo,
    image_range: str | None,
    label_kind: str | None,
    factor: int,
) -> DistilledSet:
    shape = (info.channels, info.image_size, info.image_size)
    expected = f"(N, {', '.join(map(str, shape))})"
    if not (is_dense(images) and is_dense(labels)):
        raise UsageError(
            f"{path}: found {kind_of(images)} and {kind_of(labels)}, expected tensors: images {expected} "
            "and labels"
        )
    if images.dim() == 4 and images.shape[1:] == (*shape[1:], shape[0]) and images.shape[1:] != shape:
        raise UsageError(f"{path}: found images {tuple(images.shape)}, the order NHWC, expected {expected}")
    if images.shape[1:] != shape or len(images) == 0:
        raise UsageError(f"{path}: found images {tuple(images.shape)}, expected {expected} for {info.name}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise UsageError(f"{path}: found images of {images.dtype}, expected uint8 or floating point")
    if 4 * factor**2 * images.numel() > MAX_BYTES:  # a file of some bytes may claim a tensor of any size
        raise UsageError(
            f"{path}: claims images {tuple(images.shape)}, expected at most {MAX_BYTES:,} bytes as float32"
        )
    images, labels = images.detach().cpu(), labels.detach().cpu()
    num_bytes, label_bytes = images.numel() * images.element_size(), labels.numel() * labels.element_size()
    labels, counts = read_labels(path, labels, len(images), info, label_kind)
    check_different(path, images)
    images = to_signed(path, images, info, image_range)
    num_bytes += label_bytes if labels.is_floating_point() else 0
    images, labels = decode_collages(images, labels, factor)
    return DistilledSet(path, number, images, labels, num_bytes, tuple(counts), factor)


def decode_collages(images: Tensor, labels: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Cut images (N, C, H, W) into factor * factor parts, each enlarged to H x W: images and labels of all
    first parts, then of all second.

    The uniform multi-formation of IDC (Kim et al. 2022, arXiv:2205.14959, 3.2): parts by rows, bilinear
    upsampling. A side that is no multiple of `factor` is padded with gray first.
    """
    if factor == 1:
        return images, labels
    size = images.shape[-1]
    images = F.pad(images, (0, -size % factor, 0, -size % factor))
    side = images.shape[-1] // factor
    parts = [
        images[:, :, i * side :, j * side :][:, :, :side, :side] for i in range(factor) for j in range(factor)
    ]
    decoded = F.interpolate(torch.cat(parts), size=(size, size), mode="bilinear", align_corners=False)
    return decoded, torch.cat([labels] * factor**2)


def _read_folder(
    path: Path, info: DataInfo, image_range: str | None, background: str | None
) -> tuple[Tensor, Tensor]:
    if image_range not in (None, "uint8"):
        raise UsageError(f"--image-range {image_range}: {path} holds pictures, which are uint8")
    pictures = list_pictures(path, f"a folder for each class of {info.name}")
    names = match_classes(pictures, info.class_names)
    if names is None:
        odd = sorted(set(pictures) ^ set(info.class_names))
        raise UsageError(
            f"{path}: its folders are not the classes of {info.name}: {', '.join(odd)} only on one side"
        )
    background = background or info.background
    return read_pictures(
        [pictures[name] for name in names], info.channels, info.image_size, exact=True, background=background
    )


def write_distilled(
    folder: Path, images: Tensor, labels: Tensor, soft: Tensor | None, info: DataInfo
) -> None:
    """Write uint8 images (N, C, H, W), sorted by class, with labels (N,): as FOLDER.pt, and as pictures
    FOLDER/CLASS/00000.png.

    soft: soft labels (N, K); if given, FOLDER_soft.pt holds the images with these.
    """
    labels, images = labels.cpu(), images.cpu()
    for name, values in (("", labels), ("_soft", soft)):
        if values is not None:
            content = (images, values.cpu())
            write_tensors(
                folder.with_name(f"{folder.name}{name}.pt"),
                lambda path, content=content: torch.save(content, path),
            )
    for label, name in enumerate(info.class_names):
        arrays = images[labels == label].permute(0, 2, 3, 1).numpy()  # (ipc, H, W, C)
        part = folder / name
        part.mkdir(parents=True, exist_ok=True)
        for number, array in enumerate(arrays):
            picture = Image.fromarray(np.ascontiguousarray(array.squeeze(2) if info.channels == 1 else array))
            write_atomic(part / f"{number:05d}.png", lambda path, picture=picture: picture.save(path, "PNG"))
