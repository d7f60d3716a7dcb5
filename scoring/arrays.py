"""Read arrays of numpy's files; pickled objects are refused, and so is what takes more memory than a stated
limit."""

import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from engine.files import MAX_BYTES, check_archive
from utils import UsageError


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name, or the one of an .npy file as "". Raises UsageError if the file is
    missing or damaged."""
    if not path.is_file():
        raise UsageError(
            f"{path}: no such file{' of the regular kind' if path.exists() else ''}, expected arrays of numpy"
        )
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                return {"": _read(path, file, path.stat().st_size)}
        check_archive(path)
        with zipfile.ZipFile(path) as archive:
            arrays = {}
            for member in (member for member in archive.infolist() if member.filename.endswith(".npy")):
                name = member.filename.removesuffix(".npy")
                if name.lower() in map(str.lower, arrays):
                    raise UsageError(f"{path}: holds two arrays {name} (in any case), expected one")
                with archive.open(member) as file:
                    arrays[name] = _read(path, file, member.file_size)
            return arrays
    except UsageError:
        raise
    except Exception as error:  # a damaged file may raise any error; no code of it has been run
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"{path}: expected arrays of numpy, found {path.stat().st_size} bytes of another kind, or "
            f"damaged ({reason})"
        ) from None


def _read(path: Path, file: IO[bytes], size: int) -> np.ndarray:
    """The array in `file`, which has `size` bytes. Its header is read first, so that no memory is taken that
    the file does not fill."""
    version = np.lib.format.read_magic(file)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(
        version
    )
    if header is None:
        raise ValueError(f"format {version[0]}.{version[1]}")
    shape, fortran, dtype = header(file)
    if dtype.hasobject:
        raise UsageError(f"{path}: found pickled objects, not executed, expected arrays of numbers")
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if not 0 <= count * dtype.itemsize <= min(size, MAX_BYTES):
        raise UsageError(
            f"{path}: claims {count * dtype.itemsize:,} bytes for an array, holds {size:,}; the limit is "
            f"{MAX_BYTES:,}"
        )
    array = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    return array.reshape(shape[::-1]).transpose() if fortran else array.reshape(shape)
