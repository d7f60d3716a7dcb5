"""A folder of pictures, PATH/CLASS/*, as uint8 images of one size."""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
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
    """Class name -> its picture files, both in the order of their names as strings, as torchvision's ImageFolder has them.

    expected: the layout that the error names. Raises UsageError if the folder is missing, has fewer than two classes or an empty one, or
    two folders whose names are one number (1 and 01) or the same text in Unicode.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder, expected {expected}")
    classes = sorted((path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")), key=lambda path: path.name)
    if len(classes) < 2:
        raise UsageError(f"{folder}: found {len(classes)} class folders, expected at least 2")
    found, meanings = {}, {}
    for path in classes:
        first = meanings.setdefault(as_number(path.name) or unicodedata.normalize("NFC", path.name), path.name)
        if first != path.name:
            raise UsageError(f"{folder}: the folders {first} and {path.name} stand for one class, expected one folder for each")
        pictures = (p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and not p.name.startswith("."))
        found[path.name] = sorted(pictures, key=lambda p: p.name)
        if not found[path.name]:
            raise UsageError(f"{path}: an empty class, expected pictures ({' '.join(sorted(PICTURE_SUFFIXES))})")
    return found


def as_number(name: str) -> str | None:
    """The whole number that a name is, without leading zeros; None if it is none."""
    return str(int(name)) if name.isascii() and name.isdecimal() else None


def match_classes(found: Iterable[str], class_names: Sequence[str]) -> list[str] | None:
    """The folder names of the classes, in the order of `class_names`; None if they do not fit.

    A folder is the class of its own name. Only where no folder has the name of a class do numbers count: those of the classes' names if
    these are numbers themselves (002 is the class 2), else the places of the classes, from 0.
    """
    found = list(found)
    if set(found) == set(class_names):
        return list(class_names)
    numbers = {as_number(name): name for name in found}
    if len(numbers) < len(found) or set(found) & set(class_names):
        return None
    wanted = [as_number(name) for name in class_names]
    wanted = wanted if None not in wanted else [str(place) for place in range(len(class_names))]
    return [numbers[number] for number in wanted] if set(numbers) == set(wanted) else None


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
