"""Read distilled sets in the file layouts in which other projects release them, and write our own."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data import DataInfo, list_pictures, match_classes, read_pictures
from engine.files import read_plain, write_atomic, write_tensors
from utils import UsageError

RANGES = ("uint8", "unit", "signed", "normalised")
BOUNDS = {"uint8": (0, 255), "unit": (0, 1), "signed": (-1, 1), "normalised": (-30, 30)}
SLACK = 1e-3  # tolerance at the bounds of a range, for stored floats that were rounded
# The released files of DC, DSA and DM hold accuracies as numpy scalars beside their tensors. No other numpy type is allowed.
NUMPY_SCALARS = [
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),  # before numpy 2
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64")),
]


@dataclass(frozen=True)
class DistilledSet:
    """A distilled set: float32 images (N, C, H, W), and labels (N,) or soft labels (N, K).

    An image is 2 * pixel - 1 for pixels in [0, 1]; learned pixels may lie outside of that range. number: index of the set in its file.
    num_bytes: size of the images in the data type of the file, and of the soft labels if there are any.
    """

    path: Path
    number: int
    images: Tensor
    labels: Tensor
    ipc: int
    num_bytes: int

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
    def soft(self) -> bool:
        """Whether the labels are probabilities."""
        return self.labels.is_floating_point()


def read_distilled(path: str | Path, info: DataInfo, image_range: str | None = None) -> list[DistilledSet]:
    """Read the distilled sets in a file or folder: one, or several if the file holds several experiments.

    Accepted are a .pt file with (images, labels); one with a dict of "images" and "labels"; one with a dict whose "data" is a list of
    [images, labels] (DC, DSA, DM); one with the images alone, whose labels lie beside it as labels_*.pt (MTT); and a folder with one
    folder of pictures for each class, named as match_classes takes it.
    image_range: one of RANGES, needed if the values do not determine it. Pickled code is refused and never executed. Raises UsageError
    if the contents do not fit `info`.
    """
    path = Path(path)
    if path.is_dir():
        return [_read_folder(path, info, image_range)]
    found = [_checked(path, number, *pair, info, image_range) for number, pair in enumerate(_pairs(path))]
    if not found:
        raise UsageError(f"{path}: holds no images, expected [images, labels] in its list data")
    return found


def _pairs(path: Path) -> Iterator[tuple[object, object]]:
    """(images, labels) of each set in a .pt file."""
    state = read_plain(path, "images and labels", NUMPY_SCALARS)
    if isinstance(state, dict) and isinstance(state.get("data"), list):
        for pair in state["data"]:
            if not isinstance(pair, list | tuple) or len(pair) < 2:
                raise UsageError(f"{path}: its list data holds {_kind(pair)}, expected [images, labels]")
            yield pair[0], pair[1]
    elif isinstance(state, dict) and {"images", "labels"} <= state.keys():
        yield state["images"], state["labels"]
    elif isinstance(state, list | tuple) and len(state) == 2:
        yield state[0], state[1]
    elif isinstance(state, Tensor):
        beside = path.with_name(path.name.replace("images", "labels", 1))
        if beside == path or not beside.is_file():
            wanted = "that file" if beside != path else "a name images_*.pt with labels_*.pt beside it"
            raise UsageError(f"{path}: holds one tensor; for its labels expected {beside if beside != path else wanted}")
        yield state, read_plain(beside, "labels", NUMPY_SCALARS)
    else:
        found = f"a dict of {', '.join(map(str, state)) or 'nothing'}" if isinstance(state, dict) else _kind(state)
        raise UsageError(f"{path}: found {found}, expected (images, labels), or a dict with data, or images and labels")


def _kind(value: object) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__} of {_length(value)}"


def _length(value: object) -> str:
    return str(len(value)) if isinstance(value, list | tuple | dict | str) else "no length"


def _checked(path: Path, number: int, images: object, labels: object, info: DataInfo, image_range: str | None) -> DistilledSet:
    shape = (info.channels, info.image_size, info.image_size)
    expected = f"(N, {', '.join(map(str, shape))})"
    dense = [isinstance(value, Tensor) and value.layout == torch.strided for value in (images, labels)]
    if not all(dense):
        raise UsageError(f"{path}: found {_kind(images)} and {_kind(labels)}, expected tensors: images {expected} and labels")
    if images.dim() == 4 and images.shape[1:] == (*shape[1:], shape[0]) and images.shape[1:] != shape:
        raise UsageError(f"{path}: found images {tuple(images.shape)}, the order NHWC, expected {expected}")
    if images.shape[1:] != shape or len(images) == 0:
        raise UsageError(f"{path}: found images {tuple(images.shape)}, expected {expected} for {info.name}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise UsageError(f"{path}: found images of {images.dtype}, expected uint8 or floating point")
    images, labels = images.detach().cpu(), labels.detach().cpu()
    num_bytes = images.numel() * images.element_size() + (labels.numel() * labels.element_size() if labels.is_floating_point() else 0)
    labels, ipc = _checked_labels(path, labels, len(images), info)
    return DistilledSet(path, number, _to_signed(path, images, info, image_range), labels, ipc, num_bytes)


def _checked_labels(path: Path, labels: Tensor, n: int, info: DataInfo) -> tuple[Tensor, int]:
    """Return the labels as int64 (N,) or float32 (N, K), and the number of images of each class."""
    k = info.num_classes
    if labels.is_floating_point() and labels.dim() == 2:
        if labels.shape != (n, k):
            raise UsageError(f"{path}: found soft labels {tuple(labels.shape)}, expected ({n}, {k}) for {n} images of {info.name}")
        labels = labels.float()
        if not torch.isfinite(labels).all() or labels.min() < 0:
            raise UsageError(f"{path}: found soft labels that are negative or not finite, expected probabilities, not logits")
        sums = labels.sum(1)
        worst = sums[(sums - 1).abs().argmax()]
        if abs(worst - 1) > 1e-2:
            raise UsageError(f"{path}: found soft labels that sum to {worst:g}, expected 1")
        if n % k:
            raise UsageError(f"{path}: found {n} images, expected as many for each of the {k} classes")
        return labels / sums[:, None] if abs(worst - 1) > 1e-6 else labels, n // k
    if labels.shape != (n,):
        raise UsageError(f"{path}: found labels {tuple(labels.shape)}, expected ({n},) or soft ({n}, {k})")
    if labels.dtype == torch.bool or labels.is_complex() or not torch.isfinite(labels).all() or (labels != labels.round()).any():
        raise UsageError(f"{path}: found labels that are no whole numbers, expected classes 0 to {k - 1}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= k:
        raise UsageError(f"{path}: found labels {low} to {high}, expected 0 to {k - 1} for {info.name}")
    counts = torch.bincount(labels.long(), minlength=k)
    if (counts == 0).any():
        raise UsageError(f"{path}: found images of {int((counts > 0).sum())} classes, expected the {k} of {info.name}")
    if (counts != counts[0]).any():
        raise UsageError(f"{path}: found {int(counts.min())} to {int(counts.max())} images a class, expected as many of each")
    return labels.long(), int(counts[0])


def _to_signed(path: Path, images: Tensor, info: DataInfo, image_range: str | None) -> Tensor:
    """Convert images to float32, 2 * pixel - 1 for pixels in [0, 1]."""
    if images.dtype == torch.uint8:
        if image_range not in (None, "uint8"):
            raise UsageError(f"--image-range {image_range}: {path} holds uint8 images")
        return images.float() / 127.5 - 1
    images = images.float()
    if not torch.isfinite(images).all():
        raise UsageError(f"{path}: found {int((~torch.isfinite(images)).sum())} values that are NaN or infinite, expected finite images")
    low, high = float(images.min()), float(images.max())
    image_range = image_range or _guess(path, low, high)
    bounds = BOUNDS[image_range]
    slack = SLACK * (bounds[1] - bounds[0])
    if low < bounds[0] - slack or high > bounds[1] + slack:
        raise UsageError(f"--image-range {image_range}: found values {low:g} to {high:g} in {path}, expected {bounds[0]} to {bounds[1]}")
    if image_range in ("signed", "unit", "uint8"):
        return {"signed": images, "unit": images * 2 - 1, "uint8": images / 127.5 - 1}[image_range]
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (info.mean, info.std))
    return (images * std + mean) * 2 - 1


def _guess(path: Path, low: float, high: float) -> str:
    """Guess the range of float images from their smallest and largest value. Raises UsageError if the values do not determine it."""
    if low >= 0 and high <= 1 and high > 0.05:
        return "unit"
    if (low < -1 - SLACK or (low < 0 and high > 1 + SLACK)) and max(-low, high) <= BOUNDS["normalised"][1]:
        return "normalised"
    raise UsageError(f"{path}: values {low:g} to {high:g} do not tell their range; name it: --image-range {' '.join(RANGES)}")


def _read_folder(path: Path, info: DataInfo, image_range: str | None) -> DistilledSet:
    if image_range not in (None, "uint8"):
        raise UsageError(f"--image-range {image_range}: {path} holds pictures, which are uint8")
    found = list_pictures(path, f"a folder for each class of {info.name}")
    names = match_classes(found, info.class_names)
    if names is None:
        odd = sorted(set(found) ^ set(info.class_names))
        raise UsageError(f"{path}: its folders are not the classes of {info.name}: {', '.join(odd)} only on one side")
    images, labels = read_pictures([found[name] for name in names], info.channels, info.image_size, exact=True)
    return _checked(path, 0, images, labels, info, None)


def write_distilled(folder: Path, images: Tensor, labels: Tensor, soft: Tensor | None, info: DataInfo) -> None:
    """Write uint8 images (N, C, H, W), sorted by class, with labels (N,): as FOLDER.pt, and as pictures FOLDER/CLASS/00000.png.

    soft: soft labels (N, K); if given, FOLDER_soft.pt holds the images with these. Pictures that an earlier, larger set left in the same
    folders are removed.
    """
    labels, images = labels.cpu(), images.cpu()
    for name, values in (("", labels), ("_soft", soft)):
        if values is not None:
            content = (images, values.cpu())
            write_tensors(folder.with_name(f"{folder.name}{name}.pt"), lambda path, content=content: torch.save(content, path))
    for label, name in enumerate(info.class_names):
        arrays = images[labels == label].permute(0, 2, 3, 1).numpy()  # (ipc, H, W, C)
        part = folder / name
        part.mkdir(parents=True, exist_ok=True)
        for number, array in enumerate(arrays):
            picture = Image.fromarray(np.ascontiguousarray(array.squeeze(2) if info.channels == 1 else array))
            write_atomic(part / f"{number:05d}.png", lambda path, picture=picture: picture.save(path, "PNG"))
        for path in part.glob("[0-9][0-9][0-9][0-9][0-9].png"):
            if int(path.stem) >= len(arrays):
                path.unlink()
