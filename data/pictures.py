"""A folder of pictures, PATH/CLASS/*, as uint8 images of one size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from utils import UsageError

GRAY_MODES = ("1", "L", "I", "I;16", "I;16B", "I;16L", "F")
PICTURE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def list_pictures(folder: Path, expected: str = "PATH/train/CLASS/* and PATH/test/CLASS/* for --data folder") -> dict[str, list[Path]]:
    """Class name -> its picture files, both sorted.

    expected: the layout that the error names. Raises UsageError if the folder is missing, has fewer than two classes or an empty one.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder, expected {expected}")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        raise UsageError(f"{folder}: found {len(classes)} class folders, expected at least 2")
    found = {}
    for path in classes:
        found[path.name] = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and not p.name.startswith("."))
        if not found[path.name]:
            raise UsageError(f"{path}: an empty class, expected pictures ({' '.join(sorted(PICTURE_SUFFIXES))})")
    return found


def is_gray(path: Path) -> bool:
    """Whether a picture has one channel, by its header."""
    return _open(path, lambda picture: picture.mode in GRAY_MODES)


def read_pictures(classes: list[list[Path]], channels: int, size: int, exact: bool = False) -> tuple[Tensor, Tensor]:
    """The files of each class -> images uint8 (N, channels, size, size) and labels int64 (N,), one file after another.

    The shorter side is resized to `size`, and the longer side is cropped about its centre. exact: refuse pictures of another size, or color
    instead of gray and vice versa. Raises UsageError if a picture is refused or cannot be read.
    """
    mode = "L" if channels == 1 else "RGB"

    def fit(picture: Image.Image) -> np.ndarray:
        if exact and (picture.size != (size, size) or (channels == 1) != (picture.mode in GRAY_MODES)):
            width, height = picture.size
            raise ValueError(f"{width} x {height} pixels, mode {picture.mode}, expected {size} x {size}, mode {mode}")
        picture = ImageOps.exif_transpose(_to_8_bits(picture)).convert(mode)
        return np.asarray(ImageOps.fit(picture, (size, size)))

    arrays = [_open(path, fit) for paths in classes for path in paths]
    images = torch.from_numpy(np.stack(arrays)).view(len(arrays), size, size, channels).permute(0, 3, 1, 2)
    labels = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor([len(paths) for paths in classes]))
    return images.contiguous(), labels


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """Scale 16-bit gray pictures to 8 bits; Pillow's own conversion would clip them at 255."""
    if picture.mode == "F":
        raise ValueError("floating-point values of unknown range, expected 8 or 16 bits")
    if not picture.mode.startswith("I"):
        return picture
    values = np.asarray(picture)
    return Image.fromarray((values / (257 if values.max() > 255 else 1)).round().clip(0, 255).astype(np.uint8))


def _open(path: Path, take: Callable[[Image.Image], Any]) -> Any:
    """take(picture) for the picture at `path`. Raises UsageError if it cannot be read."""
    try:
        with Image.open(path) as picture:
            return take(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f"{path}: an unreadable picture ({reason})") from None
