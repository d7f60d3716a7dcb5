"""Images and labels of the files in which distilled sets are released: of torch (.pt) and of numpy (.npz,
.npy)."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.files import check_archive, read_plain
from utils import UsageError

# The released files of DC, DSA and DM hold accuracies as numpy scalars beside their tensors. No other numpy
# type is allowed.
NUMPY_SCALARS = [
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),  # before numpy 2
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64")),
]
# of the arrays of an .npz file, in any case
NAMES = (("images", "labels"), ("x", "y"), ("x_train", "y_train"))


def read_pairs(path: Path) -> Iterator[tuple[object, object]]:
    """Yield (images, labels) of each set in a file, as the file holds them.

    Raises UsageError if the file is missing, damaged, or of another layout.
    """
    if path.suffix.lower() in (".npz", ".npy"):
        yield _numpy_pair(path)
        return
    state = read_plain(path, "images and labels", NUMPY_SCALARS)
    if isinstance(state, dict) and isinstance(state.get("data"), list):
        for pair in state["data"]:
            if not isinstance(pair, list | tuple) or len(pair) < 2:
                raise UsageError(f"{path}: its list data holds {kind_of(pair)}, expected [images, labels]")
            yield pair[0], pair[1]
    elif isinstance(state, dict) and {"images", "labels"} <= state.keys():
        yield state["images"], state["labels"]
    elif isinstance(state, list | tuple) and len(state) == 2:
        yield state[0], state[1]
    elif isinstance(state, Tensor):
        yield state, read_plain(_labels_beside(path), "labels", NUMPY_SCALARS)
    else:
        names = ", ".join(map(str, state)) or "nothing" if isinstance(state, dict) else ""
        found = f"a dict of {names}" if names else kind_of(state)
        raise UsageError(
            f"{path}: found {found}, expected (images, labels), or a dict with data, or images and labels"
        )


def is_unwhitened(path: Path) -> bool:
    """Whether a file has the name that MTT gives to the un-whitened copy of whitened images. Its values are
    pixels in [0, 1], learned."""
    return path.name.startswith("images_zca")


def check_not_whitened(path: Path) -> None:
    """Raise UsageError if MTT's un-whitened copy lies beside the file, which then holds whitened images. The
    best set has no copy there."""
    copy = path.with_name(path.name.replace("images", "images_zca", 1))
    if path.name == "images_best.pt" and not copy.is_file():
        copy = next(iter(sorted(path.parent.glob("images_zca_*.pt"))), copy)
    if copy != path and not is_unwhitened(path) and copy.is_file():
        raise UsageError(
            f"{path}: holds whitened images (ZCA), not supported; expected an un-whitened copy, as beside "
            f"it: {copy}"
        )


def _labels_beside(path: Path) -> Path:
    """The file of labels that belongs to a file of images: labels_N beside images_N or images_zca_N."""
    beside = [path.with_name(re.sub(old, "labels", path.name, count=1)) for old in ("images_zca", "images")]
    beside = [other for other in dict.fromkeys(beside) if other != path]
    for other in beside:
        if other.is_file():
            return other
    wanted = beside[0] if beside else f"a name images_*{path.suffix} with labels_*{path.suffix} beside it"
    raise UsageError(
        f"{path}: holds one {'array' if path.suffix == '.npy' else 'tensor'}; for its labels expected "
        f"{wanted}"
    )


def _numpy_pair(path: Path) -> tuple[Tensor, Tensor]:
    """(images, labels) of an .npz file, or of an .npy file and that of its labels; NHWC and (N, H, W) become
    NCHW."""
    if path.suffix.lower() == ".npy":
        images, labels = (_read_arrays(file)[""] for file in (path, _labels_beside(path)))
    else:
        arrays = _read_arrays(path)
        pair = next((names for names in NAMES if arrays.keys() >= set(names)), None)
        if pair is None:
            expected = " or ".join(" and ".join(names) for names in NAMES)
            raise UsageError(f"{path}: holds the arrays {', '.join(arrays) or 'none'}, expected {expected}")
        images, labels = (arrays[name] for name in pair)
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    return tuple(_tensor(path, array) for array in (images, labels))


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name in lower case, or the one of an .npy file as ""; no pickled code is
    executed."""
    if not path.is_file():
        raise UsageError(
            f"{path}: no such file{' of the regular kind' if path.exists() else ''}, expected arrays of numpy"
        )
    try:
        if path.suffix.lower() == ".npy":
            return {"": np.load(path)}
        check_archive(path)
        with np.load(path) as archive:
            return {name.lower(): archive[name] for name in archive.files}
    except UsageError:
        raise
    except Exception as error:  # a damaged file may raise any error; no code of it has been run
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"{path}: expected arrays of numpy, found {path.stat().st_size} bytes of another kind, or "
            f"damaged ({reason})"
        ) from None


def _tensor(path: Path, array: np.ndarray) -> Tensor:
    """A tensor of an array of any byte order and memory order."""
    try:
        return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))
    except TypeError:
        raise UsageError(f"{path}: found values of type {array.dtype}, expected numbers") from None


def is_dense(value: object) -> bool:
    """Whether a value is a tensor with a number in memory at each place: not sparse, quantized or empty."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_nested or value.is_quantized)
    )


def kind_of(value: object) -> str:
    """What a value is, for an error message: "a tensor (2, 3)", "a list of 4"."""
    if isinstance(value, Tensor):
        kind = "" if is_dense(value) else "sparse, nested, quantized or empty "
        return f"a {kind}tensor" + ("" if value.is_nested else f" {tuple(value.shape)}")
    length = len(value) if isinstance(value, list | tuple | dict | str) else "no length"
    return f"a {type(value).__name__} of {length}"
