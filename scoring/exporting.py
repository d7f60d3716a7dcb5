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

PART = re.compile(r"generator\.safetensors|ipc\d+(_soft)?\.pt")  # the files of an export


def export(
    folder: Path,
    checkpoint: GanCheckpoint,
    storage: str | None,
    sets: Mapping[int, tuple[Tensor, Tensor]],
    teacher: Teacher | None,
) -> None:
    """Export the generator of a checkpoint and `sets` drawn from it, by their images a class; with the
    teacher's labels too if there is one.

    The files of an earlier export in `folder` are replaced once all files of this one are written.
    """
    make_folder(folder)
    fresh = folder / f".export.{os.getpid()}.tmp"
    fresh.mkdir(exist_ok=True)
    try:
        export_generator(fresh / "generator.safetensors", checkpoint, storage or checkpoint.storage)
        for ipc, (images, labels) in sets.items():
            write_distilled(fresh / f"ipc{ipc}.pt", images, labels)
            if teacher:
                write_distilled(fresh / f"ipc{ipc}_soft.pt", images, teacher.labels(to_float(images)))
        for part in folder.iterdir():
            if PART.fullmatch(part.name):
                part.unlink()
        for path in fresh.iterdir():
            replace_file(path, folder / path.name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
