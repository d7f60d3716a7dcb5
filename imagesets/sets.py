"""The table of image sets: what each holds, where its files lie, their official MD5."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imagesets.images import DataInfo
from imagesets.readers import read_cifar_binary, read_cifar_python, read_idx, read_svhn


@dataclass(frozen=True)
class Layout:
    """Where a set's files lie under the data folder.

    files: split -> {path: official MD5}, in the reader's order.
    """

    reader: Callable[[list[Path]], tuple[np.ndarray, np.ndarray]]
    files: dict[str, dict[str, str]]


def _idx_layouts(folder: str, *md5s: tuple[str, str, str, str]) -> tuple[Layout, ...]:
    """Layouts of the unpacked files and of the gzipped ones. md5s: of the four files of each."""
    layouts = []
    for end, (images, labels, test_images, test_labels) in zip(("", ".gz"), md5s, strict=True):
        path = f"{folder}/raw/{{}}-{{}}-ubyte{end}".format
        train = {path("train-images", "idx3"): images, path("train-labels", "idx1"): labels}
        test = {path("t10k-images", "idx3"): test_images, path("t10k-labels", "idx1"): test_labels}
        layouts.append(Layout(read_idx, {"train": train, "test": test}))
    return tuple(layouts)


CIFAR10_LAYOUTS = (
    Layout(
        read_cifar_python,
        {
            "train": {
                "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
                "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
                "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            },
            "test": {"cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e"},
        },
    ),
    Layout(
        read_cifar_binary,
        {
            "train": {
                "cifar-10-batches-bin/data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
                "cifar-10-batches-bin/data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
                "cifar-10-batches-bin/data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
                "cifar-10-batches-bin/data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
                "cifar-10-batches-bin/data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
            },
            "test": {"cifar-10-batches-bin/test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d"},
        },
    ),
)
CIFAR100_LAYOUTS = (
    Layout(
        read_cifar_python,
        {
            "train": {"cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d"},
            "test": {"cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        },
    ),
)
SVHN_LAYOUTS = (
    Layout(
        read_svhn,
        {
            "train": {"train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373"},
            "test": {"test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3"},
        },
    ),
)
# training images, training labels, test images, test labels
MNIST_MD5 = (
    "6bbc9ace898e44ae57da46a324031adb",
    "a25bea736e30d166cdddb491f175f624",
    "2646ac647ad5339dbf082846283269ea",
    "27ae3e4e09519cfbb04c329615203637",
)
MNIST_GZ_MD5 = (
    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "d53e105ee54ea40749a09fcbcd1e9432",
    "9fb629c4189551a2d022fa330f9573f3",
    "ec29112dd5afa0611ce80d1b7f02629c",
)
FASHION_MD5 = (
    "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "9018921c3c673c538a1fc5bad174d6f9",
    "8181f5470baa50b63fa0f6fddb340f0a",
    "15d484375f8d13e6eb1aabb0c3f46965",
)
FASHION_GZ_MD5 = (
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "25c81989df183df01b3e8a0aad5dffbe",
    "bef4ecab320f06d8554ea6380940ec79",
    "bb300cfdad3c16e7a12a480ee83cd310",
)

DIGIT_NAMES = tuple("0123456789")
CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION_NAMES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag")
FASHION_NAMES += ("ankle boot",)
# The 100 fine labels in the order of the official files, which is alphabetical.
CIFAR100_NAMES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """.split()
)


@dataclass(frozen=True)
class Row:
    """One line of the table of sets: its info, where its files lie, torchvision's class to download them.

    flip: whether the mirror image of an image belongs to the same class.
    """

    info: DataInfo
    layouts: tuple[Layout, ...] = ()
    torchvision_name: str = ""
    flip: bool = False


def _info(
    name: str, channels: int, size: int, class_names: tuple[str, ...], mean: tuple, std: tuple
) -> DataInfo:
    return DataInfo(name, channels, size, len(class_names), class_names, mean, std)


CIFAR10 = _info("cifar10", 3, 32, CIFAR10_NAMES, (0.491, 0.482, 0.447), (0.202, 0.199, 0.201))
CIFAR100 = _info("cifar100", 3, 32, CIFAR100_NAMES, (0.507, 0.487, 0.441), (0.267, 0.256, 0.276))
SVHN = _info("svhn", 3, 32, DIGIT_NAMES, (0.437, 0.444, 0.473), (0.198, 0.201, 0.197))
MNIST = _info("mnist", 1, 28, DIGIT_NAMES, (0.131,), (0.308,))
FASHION = _info("fashion", 1, 28, FASHION_NAMES, (0.286,), (0.353,))
DIGITS = _info("digits", 1, 28, DIGIT_NAMES, (0.305,), (0.323,))

DATASETS = {
    "cifar10": Row(CIFAR10, CIFAR10_LAYOUTS, "CIFAR10", flip=True),
    "cifar100": Row(CIFAR100, CIFAR100_LAYOUTS, "CIFAR100", flip=True),
    "svhn": Row(SVHN, SVHN_LAYOUTS, "SVHN"),
    "mnist": Row(MNIST, _idx_layouts("MNIST", MNIST_MD5, MNIST_GZ_MD5), "MNIST"),
    "fashion": Row(
        FASHION, _idx_layouts("FashionMNIST", FASHION_MD5, FASHION_GZ_MD5), "FashionMNIST", flip=True
    ),
    "digits": Row(DIGITS),
}
NAMES = (*DATASETS, "folder")
