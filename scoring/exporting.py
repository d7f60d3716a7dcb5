"""The exported folder of stage 3: a generator as it is shipped, and the sets drawn from it."""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from data import to_float
from engine.files import make_folder, replace_file
from models import GanCheckpoint
from scoring.distilled import write_distilled
from scoring.sources import draw_fixed
from scoring.storage import export_generator
from scoring.table import Table
from utils import UsageError, out_of_memory_hint

PART = re.compile(
    r"generator\.safetensors|ipc\d+(_soft)?\.pt|ipc\d+|\.export\.\d+\.tmp"
)  # what an export consists of
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


def export(folder: Path, checkpoint: GanCheckpoint, storage: str, table: Table, ipcs: Sequence[int]) -> None:
    """Export the only generator of the table and the sets drawn from it, with the teacher's labels if the
    table has soft labels.

    An earlier export in `folder` is replaced as a whole, once all files of this one are written.
    """
    (deployed,) = table.deployed
    make_folder(folder)
    fresh = folder / f".export.{os.getpid()}.tmp"
    fresh.mkdir(exist_ok=True)
    try:
        export_generator(fresh / "generator.safetensors", checkpoint, storage)
        for ipc in ipcs:
            with out_of_memory_hint("--ipc"):
                if table.drawer:
                    images, labels, _ = table.drawer(deployed.generator, deployed.about, ipc)
                else:
                    images, labels = draw_fixed(deployed.generator, ipc, deployed.seed, table.runtime)
            soft = table.teacher.labels(to_float(images)) if "soft" in (table.labels or []) else None
            write_distilled(fresh / f"ipc{ipc}", images, labels, soft, table.data.info)
        for part in earlier_export(folder):
            if part != fresh:
                shutil.rmtree(part) if part.is_dir() else part.unlink()
        for path in fresh.iterdir():
            replace_file(path, folder / path.name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
