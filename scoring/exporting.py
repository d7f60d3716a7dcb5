"""The exported folder of stage 3: a generator as it is shipped, and the sets drawn from it."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from data import to_float
from engine.files import make_folder, replace_file
from models import GanCheckpoint
from scoring.distilled import write_distilled
from scoring.sources import Teacher
from scoring.storage import export_generator
from utils import UsageError

# what an export consists of
PART = re.compile(r"generator\.safetensors|ipc\d+(_soft)?\.pt|ipc\d+|\.export\.\d+\.tmp")
PICTURE = re.compile(r"\d{5}\.png")
HIDDEN = ("Thumbs.db", "desktop.ini")  # beside names that begin with a dot: what a file manager leaves


def earlier_export(folder: Path) -> list[Path]:
    """Return the files and folders of an earlier export into `folder`; what else lies there is none of them.

    Raises UsageError if `folder` is a file, or if a folder of exported pictures holds anything but these.
    """
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise UsageError(f"--export {folder}: is a file, expected a folder")
    parts = sorted(path for path in folder.iterdir() if PART.fullmatch(path.name))
    for part in parts:
        for path in part.rglob("*") if part.is_dir() and part.name.startswith("ipc") else ():
            depth = len(path.relative_to(part).parts)
            expected = path.is_dir() if depth == 1 else depth == 2 and PICTURE.fullmatch(path.name)
            if not expected and not path.name.startswith(".") and path.name not in HIDDEN:
                raise UsageError(
                    f"--export {folder}: {path} is no part of an earlier export, which would be replaced; "
                    "expected another folder"
                )
    return parts


def export(
    folder: Path,
    checkpoint: GanCheckpoint,
    storage: str | None,
    sets: Mapping[int, tuple[Tensor, Tensor]],
    teacher: Teacher | None,
) -> None:
    """Export the generator of a checkpoint and `sets` drawn from it, by their images a class; with the
    teacher's labels too if there is one.

    An earlier export in `folder` is replaced as a whole, once all files of this one are written.
    """
    make_folder(folder)
    fresh = folder / f".export.{os.getpid()}.tmp"
    fresh.mkdir(exist_ok=True)
    try:
        export_generator(fresh / "generator.safetensors", checkpoint, storage or checkpoint.storage)
        for ipc, (images, labels) in sets.items():
            soft = teacher.labels(to_float(images)) if teacher else None
            write_distilled(fresh / f"ipc{ipc}", images, labels, soft, checkpoint.info)
        for part in earlier_export(folder):
            if part != fresh:
                shutil.rmtree(part) if part.is_dir() else part.unlink()
        for path in fresh.iterdir():
            replace_file(path, folder / path.name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
