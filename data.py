"""Image sets: load_data reads one from its files, or downloads those that are missing.

This file is the face of the room imagesets/: every name of an image set is imported from here.
"""

import argparse
import os
import shutil
import tempfile
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from engine.files import file_hash
from imagesets.batches import balanced_epochs, class_batches, epoch_order, split_held_out, steps_per_epoch
from imagesets.images import SPLITS, Data, DataInfo, ImageSet, fingerprint, to_float, to_uint8
from imagesets.pictures import (
    BACKGROUNDS,
    check_different,
    is_gray,
    list_pictures,
    match_classes,
    read_pictures,
)
from imagesets.sets import DATASETS, NAMES, Layout, Row
from utils import UsageError, count


def add_data_flags(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add the flags that name an image set and its splits. default: None = the set of the checkpoint."""
    name = "image set" if default else "image set (default: the checkpoint's, or cifar10)"
    parser.add_argument("--data", choices=NAMES, default=default, help=name)
    data_dir = "folder of the set, which is downloaded if missing"
    parser.add_argument("--data-dir", default="datasets", help=data_dir)
    val_size = "hold out N training images, to choose best.pth (stages 1, 2) or to test on (3, 4)"
    parser.add_argument("--val-size", type=count, default=0, help=val_size)
    size = "side of the images of --data folder in pixels (default 32)"
    parser.add_argument("--image-size", type=int, choices=(28, 32), help=size)
    background = "color behind transparent pictures in folders (default black)"
    parser.add_argument("--background", choices=BACKGROUNDS, help=background)
    test_folder = "folder of the test pictures of --data folder, such as val (default test)"
    parser.add_argument("--test-folder", help=test_folder)


def load_data(
    name: str,
    data_dir: str | Path,
    *,
    splits: tuple[str, ...] = SPLITS,
    val_size: int = 0,
    image_size: int | None = None,
    info: DataInfo | None = None,
    background: str | None = None,
    test_folder: str | None = None,
) -> Data:
    """Read an image set from `data_dir`; files that are missing there are downloaded by torchvision.

    splits: the splits to read; files of the others need not exist. val_size: number of images held out of
    `train`, class-balanced. image_size, background, test_folder: of a "folder" set, its flags (see
    add_data_flags). info: the info in a checkpoint, which a "folder" set must match and whose normalisation
    it takes. Raises UsageError for an unknown name, a wrong image size, missing or altered files, or an
    impossible val_size.
    """
    if name == "folder":
        info, images = _read_folder(
            Path(data_dir), splits, image_size, info, background, test_folder or "test"
        )
    elif name in DATASETS:
        row = DATASETS[name]
        info = row.info
        if image_size not in (None, info.image_size):
            reason = f"{name} has {info.image_size} pixels"
            raise UsageError(f"--image-size {image_size}: {reason}, the flag is for --data folder")
        for flag, value in (("--background", background), ("--test-folder", test_folder)):
            if value:
                reason = f"{name} is no folder of pictures"
                raise UsageError(f"{flag} {value}: {reason}, the flag is for --data folder")
        images = _read_digits() if name == "digits" else _read_files(row, Path(data_dir), splits)
    else:
        raise UsageError(f"--data {name}: unknown data set, expected one of {', '.join(NAMES)}")
    train = images["train"] if "train" in splits else None
    val = None
    if val_size:
        kept, held_out = split_held_out(train.labels, val_size, info.num_classes, info.class_names)
        val = train[held_out]
        train = train[kept]
    return Data(info, train, val, images["test"] if "test" in splits else None)


def check_data_dir(data_dir: Path) -> None:
    """Raise UsageError if the data folder is a file or cannot be listed. It need not exist."""
    try:
        if data_dir.exists():
            os.listdir(data_dir)
    except NotADirectoryError:
        raise UsageError(f"--data-dir {data_dir}: is a file, expected a folder") from None
    except OSError as error:
        raise UsageError(f"--data-dir {data_dir}: cannot be read ({error.strerror})") from None


def _read_files(row: Row, data_dir: Path, splits: tuple[str, ...]) -> dict[str, ImageSet]:
    check_data_dir(data_dir)
    layout = _find_layout(row, data_dir, splits)
    if layout is None:
        _download(row, data_dir, splits)
        layout = _find_layout(row, data_dir, splits)
    if layout is None:
        reason = f"{_missing(row, splits)}, and the download did not bring it"
        raise UsageError(f"--data-dir {data_dir}: {reason}")
    sets = {}
    for split in splits:
        paths = [data_dir / path for path in layout.files[split]]
        for path, expected in zip(paths, layout.files[split].values(), strict=True):
            try:
                md5 = file_hash(path, "md5")
            except OSError as error:
                raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
            if md5 != expected:
                raise UsageError(f"{path}: truncated or altered: found MD5 {md5}, expected {expected}")
        images, labels = layout.reader(paths)
        labels = np.array(labels, np.int64)
        sets[split] = ImageSet(torch.from_numpy(np.array(images)), torch.from_numpy(labels))
    return sets


def _find_layout(row: Row, data_dir: Path, splits: tuple[str, ...]) -> Layout | None:
    for layout in row.layouts:
        if all((data_dir / path).is_file() for split in splits for path in layout.files[split]):
            return layout
    return None


def _missing(row: Row, splits: tuple[str, ...]) -> str:
    names = [" ".join(path for split in splits for path in layout.files[split]) for layout in row.layouts]
    return f"{row.info.name} not found, expected {' or '.join(names)}"


def _download(row: Row, data_dir: Path, splits: tuple[str, ...]) -> None:
    """Download by torchvision into a temporary folder, then move the files into `data_dir`.

    Raises UsageError if this fails.
    """
    import torchvision

    parent = data_dir
    while not parent.exists():
        parent = parent.parent
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix=".download-") as folder:
            download = getattr(torchvision.datasets, row.torchvision_name)
            for split in splits:
                choice = {"split": split} if row.torchvision_name == "SVHN" else {"train": split == "train"}
                download(folder, download=True, **choice)
            for path in Path(folder).rglob("*"):
                target = data_dir / path.relative_to(folder)
                if path.is_file() and not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(path, target)
    except (OSError, RuntimeError, HTTPException) as error:  # RuntimeError: of failed mirrors
        # torchvision names each mirror and its error in a line
        reason = " ".join((str(error) or type(error).__name__).split())
        missing = _missing(row, splits)
        raise UsageError(f"--data-dir {data_dir}: {missing}; the download failed: {reason}") from None


def _read_digits() -> dict[str, ImageSet]:
    """scikit-learn's 1,797 digits of 8 x 8 pixels in 0..16, resized to 28: 1,500 train, 297 test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images).float().unsqueeze(1) * (255 / 16)
    images = F.interpolate(small, size=28, mode="bilinear", align_corners=False).round().byte()
    labels = torch.from_numpy(digits.target).long()
    return {"train": ImageSet(images[:1500], labels[:1500]), "test": ImageSet(images[1500:], labels[1500:])}


def _read_folder(
    root: Path,
    splits: tuple[str, ...],
    image_size: int | None,
    info: DataInfo | None,
    background: str | None,
    test_folder: str,
) -> tuple[DataInfo, dict[str, ImageSet]]:
    """Read root/train/CLASS/* and root/TEST_FOLDER/CLASS/*.

    The normalisation comes from `info` or from the training images.
    """
    check_data_dir(root)
    size = image_size or (info.image_size if info else 32)
    if info and size != info.image_size:
        reason = f"the checkpoint was made for {info.image_size} pixels"
        raise UsageError(f"--image-size {image_size}: {reason}")
    if info:
        made_with = info.background or BACKGROUNDS[0]
        if background not in (None, made_with):
            raise UsageError(f"--background {background}: the checkpoint was made with {made_with}")
        background = info.background
    needed = splits if info else SPLITS
    folders = {"train": root / "train", "test": root / test_folder}
    _check_test_folder(root, test_folder, needed)
    files = {split: list_pictures(folders[split]) for split in needed}
    names = info.class_names if info else tuple(files["train"])
    for split, classes in files.items():
        if odd := sorted(set(classes) ^ set(names)):
            expected = "those of the checkpoint" if info else f"those of {root / 'train'}"
            difference = f"its classes differ from {expected}: {', '.join(odd)} only on one side"
            raise UsageError(f"{folders[split]}: {difference}")
    if info:
        channels = info.channels
    else:
        channels = 1 if all(is_gray(path) for paths in files["train"].values() for path in paths) else 3
    sets = {}
    for split, classes in files.items():
        paths = [classes[name] for name in names]
        sets[split] = ImageSet(*read_pictures(paths, channels, size, background=background))
    if info is None:
        values = sets["train"].images.double() / 255
        mean = tuple(values.mean((0, 2, 3)).tolist())
        std = tuple(values.std((0, 2, 3)).clamp(min=1e-3).tolist())
        info = DataInfo("folder", channels, size, len(names), names, mean, std, background)
    return info, sets


def _check_test_folder(root: Path, test_folder: str, splits: tuple[str, ...]) -> None:
    """Raise UsageError if the folder of the test pictures is no folder of its own under `root`."""
    path = root / test_folder
    outside = Path(test_folder).is_absolute() or ".." in Path(test_folder).parts
    if not test_folder.strip() or outside or path == root:
        raise UsageError(f"--test-folder {test_folder!r}: expected the name of a folder under {root}")
    if path.resolve() == (root / "train").resolve():
        raise UsageError(f"--test-folder {test_folder}: is the folder of the training pictures")
    others = [name for name in ("test", "val", "valid", "validation") if (root / name).is_dir()]
    if "test" in splits and not path.is_dir() and others:
        expected = f"PATH/train/CLASS/* and PATH/{test_folder}/CLASS/* for --data folder"
        hint = f"found {root / others[0]}, which --test-folder {others[0]} names"
        raise UsageError(f"{path}: no such folder, expected {expected}; {hint}")
