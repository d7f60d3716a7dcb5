"""Atomic writes, locks, hashes, and readers that never execute pickled code."""

import contextlib
import errno
import hashlib
import json
import os
import re
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import filelock
import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from utils import FailedRun, UsageError, tell

NO_FLUSH = (
    *(errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP),
    *(errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR),
)
NO_LOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
TRIES = 8  # of a rename that Windows refuses while another process reads the file; 1.4 seconds in all
MAX_BYTES = 4 << 30  # of what a file decompresses to, or claims to hold; beyond it the file is refused


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Call write(temporary path), then rename it to `path`.

    Readers see the old file or the new one, never half.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _flush(temporary, os.O_RDWR)  # Windows flushes only what is open for writing
        replace_file(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush(path.parent, os.O_RDONLY)  # so that the rename survives a power cut


def replace_file(source: Path, target: Path) -> None:
    """Rename `source` to `target`, which is replaced; tried again for a moment if that is refused."""
    for number in range(1, TRIES + 1):
        try:
            return os.replace(source, target)
        except PermissionError:
            if number == TRIES:
                raise
            time.sleep(0.05 * number)


def _flush(path: Path, flags: int) -> None:
    """Flush a file or folder to the disk, where the system and the file system can (Windows opens no folder).

    Errors of the disk are raised.
    """
    try:
        handle = os.open(path, flags)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in NO_FLUSH:
            raise


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock `folder` for this process during the block, by the file .lock in it.

    Raises UsageError if another process holds the lock. The system releases the lock of a process that dies.
    A file system without locks gets a warning.
    """
    lock = filelock.FileLock(folder / ".lock", fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        reason = "another process is writing there, expected this command to be alone"
        raise UsageError(f"{folder}: {reason}") from None
    except OSError as error:
        if error.errno not in NO_LOCK:
            raise
        reason = f"this file system has no locks ({error.strerror})"
        tell(f"warning: {folder}: {reason}; two commands must not write there at once")
    try:
        yield
    finally:
        lock.release()


def write_tensors(path: Path, write: Callable[[Path], None]) -> None:
    """write_atomic for torch and safetensors, whose own errors of a full disk become FailedRun."""
    try:
        write_atomic(path, write)
    except (RuntimeError, SafetensorError) as error:
        raise FailedRun(f"{path}: could not be written ({str(error).splitlines()[0]})") from None


def write_json(path: Path, value) -> None:
    """Write `value` as indented JSON, atomically."""
    text = json.dumps(value, indent=1) + "\n"
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def file_hash(path: str | Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file."""
    digest = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def short_hash(text: str, digits: int = 16) -> str:
    """The first hex digits of the SHA-256 of a text, such as settings in JSON."""
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def check_archive(path: Path) -> None:
    """Raise UsageError if a zip archive decompresses to more than MAX_BYTES and its own size.

    The files of torch and numpy are such archives.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        claimed = sum(member.file_size for member in archive.infolist())
    if claimed > max(MAX_BYTES, size):
        raise UsageError(
            f"{path}: found {size:,} bytes that decompress to {claimed:,}, expected at most {MAX_BYTES:,}"
        )


def read_plain(path: str | Path, expected: str, allowed: Sequence = ()) -> object:
    """Read a file of torch.save that holds tensors and plain values; other pickled code is never executed.

    expected: what the file should hold, for the error message. allowed: further types, or (type, full name),
    that the file may hold. Raises UsageError if the file is missing, a folder, truncated, or holds anything
    else.
    """
    path = Path(path)
    if not path.is_file():
        reason = "no such file of the regular kind" if path.exists() else "no such file"
        raise UsageError(f"{path}: {'is a folder' if path.is_dir() else reason}, expected {expected}")
    try:
        if zipfile.is_zipfile(path):
            check_archive(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(allowed)):
            warnings.simplefilter("ignore")  # warnings of torch; the error below says what is wrong
            return torch.load(path, map_location="cpu", weights_only=True)
    except UsageError:
        raise
    except Exception as error:  # a damaged file may raise any error; no code of it has been run
        content = f"{path.stat().st_size} bytes of another kind, or truncated"
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            content = f"pickled code ({code[1]}), not executed"
        raise UsageError(
            f"{path}: expected {expected} of tensors and plain values, found {content}"
        ) from None


def read_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint, a dict, by read_plain. Raises UsageError if the file is anything else."""
    if Path(path).is_dir():
        raise UsageError(f"{path}: is a folder, expected a checkpoint file such as {Path(path) / 'last.pth'}")
    state = read_plain(path, "a checkpoint")
    if not isinstance(state, dict):
        raise UsageError(f"{path}: holds a {type(state).__name__}, expected a checkpoint (a dict)")
    return state


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    Raises UsageError if it is missing, damaged, or something else.
    """
    path = Path(path)
    if not path.is_file():
        reason = "is a folder" if path.is_dir() else "no such file"
        raise UsageError(f"{path}: {reason}, expected a generator in safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            return tensors, file.metadata() or {}
    except SafetensorError as error:
        content = f"{path.stat().st_size} bytes of another kind, or truncated ({error})"
        raise UsageError(f"{path}: expected safetensors, found {content}") from None


def run_path(results_dir: str, tag: str) -> Path:
    """The path results_dir/tag. Raises UsageError if the tag names no folder below results_dir."""
    if not tag.strip() or not Path(tag).parts or Path(tag).is_absolute() or ".." in Path(tag).parts:
        raise UsageError(f"--tag {tag!r}: expected the name of a folder under {results_dir}")
    return Path(results_dir) / tag


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents. Raises UsageError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        raise UsageError(f"{folder}: {reason}, expected a folder for the results") from None


def save_picture(path: Path, image: Tensor) -> None:
    """Write one (C, H, W) image in [-1, 1] as a PNG, atomically."""
    array = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(np.ascontiguousarray(array.squeeze(2) if array.shape[2] == 1 else array))
    write_atomic(path, lambda temporary: picture.save(temporary, format="PNG"))
