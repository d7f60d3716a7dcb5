"""Image sets as uint8 tensors on the device, their held-out split, and batches taken from them.

Images are uint8 (N, C, H, W) at rest and float32 in [-1, 1] in flight; labels are int64 (N,).
"""

import gzip
import hashlib
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pictures import is_gray, list_pictures, read_pictures
from utils import UsageError, derive_seed, file_hash

SPLITS = ("train", "test")


@dataclass(frozen=True)
class DataInfo:
    """What a network must know of an image set. mean and std are per channel, of images in [0, 1]."""

    name: str
    channels: int
    image_size: int
    num_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_dict(self) -> dict:
        """Plain values, for a checkpoint."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict) -> "DataInfo":
        """The inverse of to_dict."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 (N, C, H, W) and labels int64 (N,) on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "ImageSet":
        """The same set on `device`."""
        return ImageSet(self.images.to(device), self.labels.to(device))

    def __getitem__(self, index: Tensor) -> "ImageSet":
        """The subset at `index` (M,)."""
        return ImageSet(self.images[index], self.labels[index])

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) as float32 in [-1, 1] and labels (B,)."""
        return to_float(self.images[index]), self.labels[index]


@dataclass(frozen=True)
class Data:
    """An image set's splits; `val` is held out of `train` and None where nothing is; unread splits are None."""

    info: DataInfo
    train: ImageSet | None
    val: ImageSet | None
    test: ImageSet | None

    def to(self, device: torch.device) -> "Data":
        """The same data on `device`."""
        return Data(self.info, *(split and split.to(device) for split in (self.train, self.val, self.test)))

    @property
    def referee(self) -> tuple[str, ImageSet]:
        """What classifiers are tested on while something may still be chosen: ("val", held out) or ("test", test set)."""
        return ("test", self.test) if self.val is None else ("val", self.val)


def to_float(images: Tensor) -> Tensor:
    """uint8 [0, 255] to float32 [-1, 1]."""
    return images.float() / 127.5 - 1


def fingerprint(info: DataInfo, images: ImageSet | None) -> str | None:
    """A short hash of a set and of its normalisation, so that results of different images are never taken for one."""
    if images is None:
        return None
    digest = hashlib.sha256(repr(info).encode())
    for tensor in (images.images, images.labels):
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()[:16]


# Readers: paths of one split -> (images uint8 (N, C, H, W), labels (N,)).


def read_cifar_python(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR's python version: pickles, unpickled only after their MD5 was found to be the official one."""
    batches = [pickle.loads(path.read_bytes(), encoding="latin1") for path in paths]
    labels = [batch["fine_labels" if "fine_labels" in batch else "labels"] for batch in batches]
    return np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32), np.concatenate(labels)


def read_cifar_binary(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10's binary version: rows of one label byte and 3 x 32 x 32 pixels."""
    rows = np.concatenate([np.fromfile(path, np.uint8).reshape(-1, 3073) for path in paths])
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]


def read_idx(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """MNIST's format, gzipped or not: 16 header bytes before 28 x 28 images, 8 before labels."""
    raw = [gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes() for path in paths]
    images, labels = np.frombuffer(raw[0], np.uint8, offset=16), np.frombuffer(raw[1], np.uint8, offset=8)
    return images.reshape(-1, 1, 28, 28), labels


def read_svhn(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """SVHN's cropped digits: X (32, 32, 3, N) and y (N, 1), in which the digit 0 is labelled 10."""
    from scipy.io import loadmat

    file = loadmat(paths[0])
    return file["X"].transpose(3, 2, 0, 1), file["y"].reshape(-1).astype(np.int64) % 10


@dataclass(frozen=True)
class Layout:
    """Where a set's files lie under the data folder: per split (path, official MD5) in the reader's order."""

    reader: Callable[[list[Path]], tuple[np.ndarray, np.ndarray]]
    files: dict[str, tuple[tuple[str, str], ...]]


def _idx_layouts(folder: str, md5s: dict[str, tuple[str, str]]) -> tuple[Layout, ...]:
    """The unpacked files, then the gzipped ones. md5s: file name -> (MD5 unpacked, MD5 gzipped)."""
    splits = {"train": list(md5s)[:2], "test": list(md5s)[2:]}
    return tuple(
        Layout(read_idx, {split: tuple((f"{folder}/raw/{name}{end}", md5s[name][i]) for name in names) for split, names in splits.items()})
        for i, end in enumerate(("", ".gz"))
    )


CIFAR10_LAYOUTS = (
    Layout(
        read_cifar_python,
        {
            "train": (
                ("cifar-10-batches-py/data_batch_1", "c99cafc152244af753f735de768cd75f"),
                ("cifar-10-batches-py/data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
                ("cifar-10-batches-py/data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
                ("cifar-10-batches-py/data_batch_4", "634d18415352ddfa80567beed471001a"),
                ("cifar-10-batches-py/data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
            ),
            "test": (("cifar-10-batches-py/test_batch", "40351d587109b95175f43aff81a1287e"),),
        },
    ),
    Layout(
        read_cifar_binary,
        {
            "train": (
                ("cifar-10-batches-bin/data_batch_1.bin", "5dd7e06a14cb22eb9f671a540d1b7c25"),
                ("cifar-10-batches-bin/data_batch_2.bin", "5ea93a67294ea407fff1d09f752e9692"),
                ("cifar-10-batches-bin/data_batch_3.bin", "942cd6a4bcdd0dd3c604fbe906cb4421"),
                ("cifar-10-batches-bin/data_batch_4.bin", "ae636b3ba5c66a11e91e8cb52e771fcb"),
                ("cifar-10-batches-bin/data_batch_5.bin", "53f37980c15c3d472c316c40844f3f0d"),
            ),
            "test": (("cifar-10-batches-bin/test_batch.bin", "803d5f7f4d78ea53de84dbe85f74fb6d"),),
        },
    ),
)
CIFAR100_LAYOUTS = (
    Layout(
        read_cifar_python,
        {
            "train": (("cifar-100-python/train", "16019d7e3df5f24257cddd939b257f8d"),),
            "test": (("cifar-100-python/test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
        },
    ),
)
SVHN_LAYOUTS = (
    Layout(
        read_svhn,
        {
            "train": (("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),),
            "test": (("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),),
        },
    ),
)
MNIST_LAYOUTS = _idx_layouts(
    "MNIST",
    {
        "train-images-idx3-ubyte": ("6bbc9ace898e44ae57da46a324031adb", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        "train-labels-idx1-ubyte": ("a25bea736e30d166cdddb491f175f624", "d53e105ee54ea40749a09fcbcd1e9432"),
        "t10k-images-idx3-ubyte": ("2646ac647ad5339dbf082846283269ea", "9fb629c4189551a2d022fa330f9573f3"),
        "t10k-labels-idx1-ubyte": ("27ae3e4e09519cfbb04c329615203637", "ec29112dd5afa0611ce80d1b7f02629c"),
    },
)
FASHION_LAYOUTS = _idx_layouts(
    "FashionMNIST",
    {
        "train-images-idx3-ubyte": ("f4a8712d7a061bf5bd6d2ca38dc4d50a", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        "train-labels-idx1-ubyte": ("9018921c3c673c538a1fc5bad174d6f9", "25c81989df183df01b3e8a0aad5dffbe"),
        "t10k-images-idx3-ubyte": ("8181f5470baa50b63fa0f6fddb340f0a", "bef4ecab320f06d8554ea6380940ec79"),
        "t10k-labels-idx1-ubyte": ("15d484375f8d13e6eb1aabb0c3f46965", "bb300cfdad3c16e7a12a480ee83cd310"),
    },
)

DIGIT_NAMES = tuple("0123456789")
CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION_NAMES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
# The 100 fine labels in the order of the official files, which is alphabetical.
CIFAR100_NAMES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
    """.split()
)


@dataclass(frozen=True)
class Row:
    """One line of the table of sets: its info, where its files lie, and the torchvision class that downloads them.

    flip: whether the mirror image of an image is of the same class.
    """

    info: DataInfo
    layouts: tuple[Layout, ...] = ()
    torchvision_name: str = ""
    flip: bool = False


def _info(name: str, channels: int, size: int, class_names: tuple[str, ...], mean: tuple, std: tuple) -> DataInfo:
    return DataInfo(name, channels, size, len(class_names), class_names, mean, std)


DATASETS = {
    row.info.name: row
    for row in (
        Row(_info("cifar10", 3, 32, CIFAR10_NAMES, (0.491, 0.482, 0.447), (0.202, 0.199, 0.201)), CIFAR10_LAYOUTS, "CIFAR10", True),
        Row(_info("cifar100", 3, 32, CIFAR100_NAMES, (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)), CIFAR100_LAYOUTS, "CIFAR100", True),
        Row(_info("svhn", 3, 32, DIGIT_NAMES, (0.437, 0.444, 0.473), (0.198, 0.201, 0.197)), SVHN_LAYOUTS, "SVHN"),
        Row(_info("mnist", 1, 28, DIGIT_NAMES, (0.131,), (0.308,)), MNIST_LAYOUTS, "MNIST"),
        Row(_info("fashion", 1, 28, FASHION_NAMES, (0.286,), (0.353,)), FASHION_LAYOUTS, "FashionMNIST", True),
        Row(_info("digits", 1, 28, DIGIT_NAMES, (0.305,), (0.323,))),
    )
}
NAMES = (*DATASETS, "folder")


def load_data(
    name: str,
    data_dir: str | Path,
    *,
    splits: tuple[str, ...] = SPLITS,
    val_size: int = 0,
    image_size: int | None = None,
    info: DataInfo | None = None,
) -> Data:
    """Read an image set, from `data_dir` or, where it is not there, downloaded into it by torchvision.

    splits: which to read; the files of the others need not exist. val_size: images held out of `train`, class-balanced.
    image_size: of a folder set (28 or 32, default 32). info: the expected info, of a checkpoint; then a folder set's
    normalisation is taken from it. Raises UsageError for an unknown name, missing or altered files, a val_size too large.
    """
    if name == "folder":
        info, images = _read_folder(Path(data_dir), splits, image_size, info)
    elif name in DATASETS:
        row = DATASETS[name]
        if image_size not in (None, row.info.image_size):
            raise UsageError(f"--image-size {image_size}: {name} has {row.info.image_size} pixels, the flag is for --data folder")
        images = _read_digits() if name == "digits" else _read_files(row, Path(data_dir), splits)
        info = row.info
    else:
        raise UsageError(f"--data {name}: unknown data set, expected one of {', '.join(NAMES)}")
    if "train" not in splits and val_size:
        raise ValueError("val_size needs the train split")
    train, val = images.get("train") if "train" in splits else None, None
    if val_size:
        kept, held_out = split_held_out(train.labels, val_size, info.num_classes)
        train, val = train[kept], train[held_out]
    return Data(info, train, val, images.get("test") if "test" in splits else None)


def split_held_out(labels: Tensor, val_size: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Indices (kept, held out) of a class-balanced held-out split, in file order.

    The draw is the same for every run, and a smaller split lies inside a larger one, so that what one stage held out
    no later stage has trained on. A remainder of val_size / num_classes goes to the first classes.
    """
    if val_size < num_classes:
        raise UsageError(f"--val-size {val_size}: expected 0 or at least one image for each of the {num_classes} classes")
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(num_classes):
        members = (labels.cpu() == label).nonzero().flatten()
        share = val_size // num_classes + (label < val_size % num_classes)
        if share >= len(members):
            raise UsageError(f"--val-size {val_size}: asks for {share} of the {len(members)} training images of class {label}")
        order = torch.randperm(len(members), generator=torch.Generator().manual_seed(derive_seed("held-out", label)))
        held_out[members[order[:share]]] = True
    return (~held_out).nonzero().flatten().to(labels.device), held_out.nonzero().flatten().to(labels.device)


def steps_per_epoch(num_images: int, batch_size: int, batches: int = 1) -> int:
    """Whole steps of `batches` batches in a pass over the set. Raises UsageError where there is none."""
    if batches * batch_size > num_images:
        asked = f"--batch-size {batch_size}" + (f" with --d-steps {batches}" if batches > 1 else "")
        raise UsageError(f"{asked}: larger than the training set, which has {num_images} images")
    return num_images // (batches * batch_size)


def epoch_order(num_images: int, device: torch.device, *seed: int | str) -> Tensor:
    """A permutation (num_images,) on `device` that depends on `seed` alone, the same on every kind of device."""
    return torch.randperm(num_images, generator=torch.Generator().manual_seed(derive_seed(*seed))).to(device)


def balanced_epochs(labels: Tensor, ipc: int, num_classes: int, *seed: int | str) -> Iterator[Tensor]:
    """Endless epochs of indices (num_classes * ipc,): the next `ipc` images of every class, each class in shuffled passes."""
    members = [(labels.cpu() == label).nonzero().flatten() for label in range(num_classes)]
    generator = torch.Generator().manual_seed(derive_seed(*seed))
    waiting = [torch.empty(0, dtype=torch.long)] * num_classes
    while True:
        for label, indices in enumerate(members):
            while len(waiting[label]) < ipc:
                fresh = indices[torch.randperm(len(indices), generator=generator)]
                waiting[label] = torch.cat([waiting[label], fresh])
        yield torch.cat([queue[:ipc] for queue in waiting]).to(labels.device)
        waiting = [queue[ipc:] for queue in waiting]


def check_data_dir(data_dir: Path) -> None:
    """Raise UsageError where the data folder is a file or cannot be listed. It need not exist."""
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
            raise UsageError(f"--data-dir {data_dir}: {_wanted(row, splits)}, and the download did not bring it")
    sets = {}
    for split in splits:
        paths = [data_dir / path for path, _ in layout.files[split]]
        for path, (_, expected) in zip(paths, layout.files[split], strict=True):
            try:
                found = file_hash(path, "md5")
            except OSError as error:
                raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
            if found != expected:
                raise UsageError(f"{path}: truncated or altered: found MD5 {found}, expected {expected}")
        images, labels = layout.reader(paths)
        sets[split] = ImageSet(torch.from_numpy(np.array(images)), torch.from_numpy(np.array(labels, np.int64)))
    return sets


def _find_layout(row: Row, data_dir: Path, splits: tuple[str, ...]) -> Layout | None:
    for layout in row.layouts:
        if all((data_dir / path).is_file() for split in splits for path, _ in layout.files[split]):
            return layout
    return None


def _wanted(row: Row, splits: tuple[str, ...]) -> str:
    names = [" ".join(path for split in splits for path, _ in layout.files[split]) for layout in row.layouts]
    return f"{row.info.name} not found, expected {' or '.join(names)}"


def _download(row: Row, data_dir: Path, splits: tuple[str, ...]) -> None:
    """Let torchvision download into a temporary folder, then move what came into `data_dir`."""
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
    except (OSError, RuntimeError, HTTPException) as error:  # torchvision reports failed mirrors as RuntimeError
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f"--data-dir {data_dir}: {_wanted(row, splits)}; the download failed: {reason}") from None


def _read_digits() -> dict[str, ImageSet]:
    """scikit-learn's 1,797 digits of 8 x 8 pixels in 0..16, resized to 28: the first 1,500 train, the last 297 test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images).float().unsqueeze(1) * (255 / 16)
    images = F.interpolate(small, size=28, mode="bilinear", align_corners=False).round().byte()
    labels = torch.from_numpy(digits.target).long()
    return {"train": ImageSet(images[:1500], labels[:1500]), "test": ImageSet(images[1500:], labels[1500:])}


def _read_folder(
    root: Path, splits: tuple[str, ...], image_size: int | None, info: DataInfo | None
) -> tuple[DataInfo, dict[str, ImageSet]]:
    """Read root/train/CLASS/* and root/test/CLASS/*; the normalisation comes from `info` or from the training images."""
    check_data_dir(root)
    size = image_size or (info.image_size if info else 32)
    if info and image_size not in (None, info.image_size):
        raise UsageError(f"--image-size {image_size}: the checkpoint was made for {info.image_size} pixels")
    wanted = splits if info else SPLITS
    files = {split: list_pictures(root / split) for split in wanted}
    names = info.class_names if info else tuple(files["train"])
    for split, found in files.items():
        if tuple(found) != names:
            odd = sorted(set(found) ^ set(names))
            expected = "those of the checkpoint" if info else f"those of {root / 'train'}"
            raise UsageError(f"{root / split}: its classes differ from {expected}: {', '.join(odd)} only on one side")
    channels = info.channels if info else 1 if all(is_gray(path) for paths in files[wanted[0]].values() for path in paths) else 3
    sets = {split: ImageSet(*read_pictures(list(found.values()), channels, size)) for split, found in files.items()}
    if info is None:
        values = sets["train"].images.double() / 255
        mean, std = values.mean((0, 2, 3)), values.std((0, 2, 3)).clamp(min=1e-3)
        info = DataInfo("folder", channels, size, len(names), names, tuple(mean.tolist()), tuple(std.tolist()))
    return info, sets
