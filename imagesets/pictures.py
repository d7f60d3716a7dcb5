"""A folder of pictures, PATH/CLASS/*, as uint8 images of one size."""

import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from utils import UsageError, tell

GRAY_MODES = ("1", "L", "I", "I;16", "I;16B", "I;16L", "F")
PICTURE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# no others, whatever the suffix: Pillow hands PostScript to a program
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
BACKGROUNDS = ("black", "gray", "white")
MAX_PIXELS = 89_478_485  # from where Pillow warns of a decompression bomb
ALIKE = "; what tells them apart may lie in an alpha channel (--background) or in values too small for 8 bits"
BITS_PER_SAMPLE = 258  # a tag of TIFF


def list_pictures(
    folder: Path, expected: str = "PATH/train/CLASS/* and PATH/test/CLASS/* for --data folder"
) -> dict[str, list[Path]]:
    """Class name -> its picture files, both in the order of their names as strings, as in ImageFolder.

    expected: the layout that the error names. Raises UsageError if the folder is missing, has fewer than two
    classes or an empty one, or two folders whose names are one number (1 and 01) or the same text in Unicode.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder, expected {expected}")
    folders = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if len(folders) < 2:
        raise UsageError(f"{folder}: found {len(folders)} class folders, expected at least 2")
    classes = {}
    meanings = {}
    for path in sorted(folders, key=lambda path: path.name):
        meaning = as_number(path.name) or unicodedata.normalize("NFC", path.name)
        first = meanings.setdefault(meaning, path.name)
        if first != path.name:
            reason = f"the folders {first} and {path.name} stand for one class"
            raise UsageError(f"{folder}: {reason}, expected one folder for each")
        pictures = (
            p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and not p.name.startswith(".")
        )
        classes[path.name] = sorted(pictures, key=lambda p: p.name)
        if not classes[path.name]:
            suffixes = " ".join(sorted(PICTURE_SUFFIXES))
            raise UsageError(f"{path}: an empty class, expected pictures ({suffixes})")
    return classes


def as_number(name: str) -> str | None:
    """The whole number that a name is, without leading zeros; None if it is none."""
    return str(int(name)) if name.isascii() and name.isdecimal() else None


def match_classes(folders: Iterable[str], class_names: Sequence[str]) -> list[str] | None:
    """The folder names of the classes, in the order of `class_names`; None if they do not fit.

    A folder is the class of its own name. Only where no folder has the name of a class do numbers count:
    those of the classes' names if these are numbers themselves (002 is the class 2), else the places of the
    classes, from 0.
    """
    folders = list(folders)
    if set(folders) == set(class_names):
        return list(class_names)
    by_number = {as_number(name): name for name in folders}
    if len(by_number) < len(folders) or set(folders) & set(class_names):
        return None
    numbers = [as_number(name) for name in class_names]
    if None in numbers:
        numbers = [str(place) for place in range(len(class_names))]
    return [by_number[number] for number in numbers] if set(by_number) == set(numbers) else None


def is_gray(path: Path) -> bool:
    """Whether a picture has one channel, by its header."""
    return _open(path, lambda picture: picture.mode in GRAY_MODES)


def read_pictures(
    classes: list[list[Path]], channels: int, size: int, exact: bool = False, background: str | None = None
) -> tuple[Tensor, Tensor]:
    """The files of each class -> images uint8 (N, channels, size, size) and labels int64 (N,), in order.

    The shorter side is resized to `size`, and the longer side is cropped about its centre; color and gray are
    converted into each other. exact: refuse pictures of another size. background: one of BACKGROUNDS (default
    black), the color behind transparent pictures. Values are scaled by the depth that their file states.
    Raises UsageError if a picture is refused or cannot be read, or if all pictures of a class are equal.
    """
    depths: Counter[int] = Counter()

    def fit(picture: Image.Image) -> np.ndarray:
        if exact and picture.size != (size, size):
            width, height = picture.size
            raise UsageError(f"{picture.filename}: found {width} x {height} pixels, expected {size} x {size}")
        bits = depth_of(picture)
        depths[bits] += 1
        picture = _on_background(ImageOps.exif_transpose(picture), bits, background or BACKGROUNDS[0])
        return np.asarray(ImageOps.fit(picture.convert("L" if channels == 1 else "RGB"), (size, size)))

    arrays = [_open(path, fit) for paths in classes for path in paths]
    images = (
        torch.from_numpy(np.stack(arrays)).view(-1, size, size, channels).permute(0, 3, 1, 2).contiguous()
    )
    counts = [len(paths) for paths in classes]
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor(counts))
    folder = classes[0][0].parent.parent
    check_different(folder, images, ALIKE)
    for paths, part in zip(classes, images.split(counts), strict=True):
        check_different(paths[0].parent, part, ALIKE)
    for bits in sorted(set(depths) - {8}):
        scaled = f"their values 0 to {2**bits - 1:,} are scaled to 0 to 255"
        tell(f"{folder}: {depths[bits]:,} pictures have {bits} bits; {scaled}")
    low = int(images.min())
    high = int(images.max())
    if high - low < 26:
        values = f"{high - low + 1} of 256 values, from {low} to {high}"
        tell(f"warning: {folder}: its pictures use {values}")
    return images, labels


def check_different(place: object, images: Tensor, hint: str = "") -> None:
    """Raise UsageError, with the hint, if there are two or more images (N, C, H, W) and all are equal."""
    if len(images) > 1 and torch.equal(images[0], images[1]) and bool((images == images[0]).all()):
        raise UsageError(f"{place}: its {len(images)} images are all equal, expected different ones{hint}")


def depth_of(picture: Image.Image) -> int:
    """The bits of a value, as the file states them. Raises ValueError for those whose range is unknown."""
    if picture.mode == "F":
        raise ValueError("floating-point values of unknown range, expected 8 or 16 bits")
    if not picture.mode.startswith("I"):
        return 8
    bits = 16  # to which Pillow scales the formats other than TIFF
    if picture.format == "TIFF":
        bits = picture.tag_v2.get(BITS_PER_SAMPLE, 32)
        bits = bits[0] if isinstance(bits, tuple) else bits
    if bits > 16:
        raise ValueError(f"integers of {bits} bits, of unknown range, expected 8 or 16 bits")
    return bits


def _on_background(picture: Image.Image, bits: int, background: str) -> Image.Image:
    """The picture in 8 bits and without transparency.

    Pillow's conversion would clip deeper values at 255 and drop the alpha channel.
    """
    alpha = None
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        clear = picture.info.get("transparency")  # the one value that is transparent
        if values.min() < 0:
            raise ValueError("negative values, expected 0 or more")
        picture = Image.fromarray((values / ((2**bits - 1) / 255)).round().clip(0, 255).astype(np.uint8))
        alpha = None if clear is None else Image.fromarray(((values != clear) * 255).astype(np.uint8))
    elif picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        alpha = rgba.getchannel("A")
    if alpha is None or alpha.getextrema()[0] == 255:
        return picture
    picture = picture if picture.mode == "L" and bits > 8 else rgba.convert("RGB")
    ground = Image.new(picture.mode, picture.size, background)
    ground.paste(picture, mask=alpha)
    return ground


def _open(path: Path, take: Callable[[Image.Image], Any]) -> Any:
    """take(picture) for the picture at `path`. Raises UsageError if it cannot be read."""
    try:
        if not path.is_file():  # a pipe would never end
            raise ValueError("no such file, or none of the regular kind")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of what it mends and of large pictures
            with Image.open(path, formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                return take(picture)
    except UsageError:
        raise
    except Image.DecompressionBombError:
        reason = f"claims more pixels than the limit of {MAX_PIXELS:,}"
    except Exception as error:  # a damaged file may raise any error
        reason = (str(error) or type(error).__name__).splitlines()[0]
    raise UsageError(f"{path}: an unreadable picture ({reason})")
