import gzip
import hashlib
import itertools
import pickle
import struct

import numpy as np
import pytest
import scipy.io
import torch
from inputs import picture
from PIL import Image

import data
from data import (
    DATASETS,
    balanced_epochs,
    class_batches,
    epoch_order,
    load_data,
    split_held_out,
    steps_per_epoch,
)
from imagesets import readers, sets
from utils import UsageError

RNG = np.random.default_rng(0)


def write(path, content: bytes) -> tuple[str, str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.md5(content).hexdigest()


def cifar_python(n: int, label_key: str) -> tuple[bytes, np.ndarray, list[int]]:
    pixels, labels = RNG.integers(0, 256, (n, 3072), np.uint8), [int(i) for i in RNG.integers(0, 10, n)]
    return pickle.dumps({"data": pixels, label_key: labels}), pixels.reshape(n, 3, 32, 32), labels


def cifar_binary(n: int) -> tuple[bytes, np.ndarray, list[int]]:
    rows = RNG.integers(0, 10, (n, 3073), np.uint8)
    return rows.tobytes(), rows[:, 1:].reshape(n, 3, 32, 32), rows[:, 0].tolist()


def idx(n: int) -> tuple[bytes, bytes, np.ndarray, list[int]]:
    pixels, labels = RNG.integers(0, 256, (n, 1, 28, 28), np.uint8), RNG.integers(0, 10, n, np.uint8)
    return (
        struct.pack(">4i", 2051, n, 28, 28) + pixels.tobytes(),
        struct.pack(">2i", 2049, n) + labels.tobytes(),
        pixels,
        labels.tolist(),
    )


def small_set(monkeypatch, root, name: str, layout: int, n: int = 7) -> dict:
    """Write small files of a set's own format under `root`, with their MD5; split -> (images, labels)."""
    row, expected, files = DATASETS[name], {}, {}
    for split, listed in row.layouts[layout].files.items():
        paths = [root / path for path in listed]
        reader = row.layouts[layout].reader
        if reader is readers.read_idx:
            images, labels, *expected[split] = idx(n)
            pack = gzip.compress if paths[0].suffix == ".gz" else bytes
            contents = [pack(images), pack(labels)]
        elif reader is readers.read_svhn:
            x, y = RNG.integers(0, 256, (32, 32, 3, n), np.uint8), RNG.integers(1, 11, (n, 1), np.uint8)
            root.mkdir(exist_ok=True)
            scipy.io.savemat(paths[0], {"X": x, "y": y})
            contents = [paths[0].read_bytes()]
            expected[split] = (x.transpose(3, 2, 0, 1), [int(label) % 10 for label in y.flatten()])
        else:
            make = (
                cifar_binary
                if reader is readers.read_cifar_binary
                else lambda n: cifar_python(n, "fine_labels" if "100" in name else "labels")
            )
            made = [make(n) for _ in paths]
            contents = [content for content, _, _ in made]
            expected[split] = (
                np.concatenate([i for _, i, _ in made]),
                [label for _, _, labels in made for label in labels],
            )
        files[split] = {
            path: write(root / path, content) for path, content in zip(listed, contents, strict=True)
        }
    only = sets.Layout(row.layouts[layout].reader, files)
    monkeypatch.setitem(DATASETS, name, sets.Row(row.info, (only,), row.torchvision_name))
    return expected


LAYOUTS = [(name, i) for name, row in DATASETS.items() for i in range(len(row.layouts))]


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_every_reader_on_small_files_of_its_format(monkeypatch, tmp_path, name, layout):
    expected = small_set(monkeypatch, tmp_path, name, layout)
    loaded = load_data(name, tmp_path)
    for split in ("train", "test"):
        images, labels = expected[split]
        actual = getattr(loaded, split)
        assert actual.images.dtype == torch.uint8
        assert actual.labels.dtype == torch.int64
        assert torch.equal(actual.images, torch.from_numpy(np.array(images)))
        assert actual.labels.tolist() == labels


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_an_altered_or_truncated_file_is_named_with_both_md5s(monkeypatch, tmp_path, name, layout):
    small_set(monkeypatch, tmp_path, name, layout)
    path, expected = list(DATASETS[name].layouts[0].files["test"].items())[-1]
    content = (tmp_path / path).read_bytes()
    for bad in (content[:-1], bytes([content[0] ^ 1]) + content[1:]):
        (tmp_path / path).write_bytes(bad)
        actual = hashlib.md5(bad).hexdigest()
        with pytest.raises(
            UsageError, match=f"{path}: truncated or altered: found MD5 {actual}, expected {expected}"
        ):
            load_data(name, tmp_path)


def test_an_altered_pickle_is_never_executed(monkeypatch, tmp_path):
    small_set(monkeypatch, tmp_path, "cifar10", 0)
    marker = tmp_path / "executed"

    class Code:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    (path,) = DATASETS["cifar10"].layouts[0].files["test"]
    (tmp_path / path).write_bytes(pickle.dumps(Code()))
    with pytest.raises(UsageError, match="MD5"):
        load_data("cifar10", tmp_path)
    assert not marker.exists()


def test_the_test_split_needs_only_its_own_files(monkeypatch, tmp_path):
    expected = small_set(monkeypatch, tmp_path, "cifar10", 1)
    for path in DATASETS["cifar10"].layouts[0].files["train"]:
        (tmp_path / path).unlink()
    loaded = load_data("cifar10", tmp_path, splits=("test",))
    assert loaded.train is None
    assert loaded.test.labels.tolist() == expected["test"][1]


def test_md5s_are_torchvisions():
    from torchvision import datasets

    def table(name: str, layout: int) -> dict[str, str]:
        return {
            path.split("/")[-1]: md5
            for files in DATASETS[name].layouts[layout].files.values()
            for path, md5 in files.items()
        }

    assert table("cifar10", 0) == dict(datasets.CIFAR10.train_list + datasets.CIFAR10.test_list)
    assert table("cifar100", 0) == dict(datasets.CIFAR100.train_list + datasets.CIFAR100.test_list)
    assert table("svhn", 0) == {
        name: md5 for split, (_, name, md5) in datasets.SVHN.split_list.items() if split != "extra"
    }
    assert table("mnist", 1) == dict(datasets.MNIST.resources)
    assert table("fashion", 1) == dict(datasets.FashionMNIST.resources)


def test_missing_files_without_a_network(tmp_path):
    folder = tmp_path / "none" / "here"
    with pytest.raises(UsageError) as error:
        load_data("cifar10", folder)
    for part in (
        str(folder),
        "cifar-10-batches-py/data_batch_1",
        "cifar-10-batches-bin/data_batch_1.bin",
        "no network in tests",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_download_of_mnist_gives_its_reason(tmp_path):
    with pytest.raises(
        UsageError, match=r"the download failed: Error downloading .* no network in tests"
    ) as error:
        load_data("mnist", tmp_path / "new")
    assert "\n" not in str(error.value)


def test_a_download_arrives_whole_and_leaves_no_temporary_folder(monkeypatch, tmp_path):
    expected = small_set(monkeypatch, tmp_path / "elsewhere", "mnist", 1)

    class Download:
        def __init__(self, root, train, download):
            assert download
            for path in DATASETS["mnist"].layouts[0].files["train" if train else "test"]:
                write(type(tmp_path)(root) / path, (tmp_path / "elsewhere" / path).read_bytes())

    monkeypatch.setattr("torchvision.datasets.MNIST", Download)
    loaded = load_data("mnist", tmp_path / "new")
    assert loaded.test.labels.tolist() == expected["test"][1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "new"]


def test_data_dir_that_is_a_file_or_cannot_be_read(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("mnist", "folder"):
        with pytest.raises(UsageError, match=r"--data-dir .*file: is a file, expected a folder"):
            load_data(name, tmp_path / "file")
    monkeypatch.setattr(
        "os.listdir", lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(UsageError, match=r"cannot be read .Permission denied"):
        load_data("mnist", tmp_path)


def test_digits():
    loaded = load_data("digits", "nowhere")
    assert (len(loaded.train), len(loaded.test)) == (1500, 297)
    assert loaded.train.images.shape[1:] == (1, 28, 28)
    values = loaded.train.images.double() / 255
    assert (values.mean().item(), values.std().item()) == pytest.approx(
        (loaded.info.mean[0], loaded.info.std[0]), abs=1e-3
    )
    with pytest.raises(UsageError, match="--image-size 32: digits has 28"):
        load_data("digits", "nowhere", image_size=32)


def test_held_out_split_is_balanced_nested_and_disjoint():
    labels = load_data("digits", "").train.labels
    kept, held = split_held_out(labels, 105, 10)
    assert torch.bincount(labels[held]).tolist() == [11] * 5 + [10] * 5
    assert sorted((*kept.tolist(), *held.tolist())) == list(range(1500))
    assert set(split_held_out(labels, 40, 10)[1].tolist()) < set(held.tolist())
    loaded = load_data("digits", "", val_size=105)
    assert loaded.evaluation_split == ("val", loaded.val)
    assert torch.equal(loaded.val.images, load_data("digits", "").train.images[held])
    assert len(loaded.train) == 1395


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (5, "at least one image"),
        (1500, "asks for 150 of the 150 training images of class 2"),
        (10**6, "asks for"),
    ],
)
def test_held_out_split_of_a_wrong_size(size, message):
    with pytest.raises(UsageError, match=f"--val-size {size}: .*{message}"):
        load_data("digits", "", val_size=size)


def test_orders_depend_on_their_seed_alone():
    torch.manual_seed(1)
    first = epoch_order(50, torch.device("cpu"), 0, "gan", 3)
    torch.manual_seed(2)
    assert torch.equal(first, epoch_order(50, torch.device("cpu"), 0, "gan", 3))
    assert not torch.equal(first, epoch_order(50, torch.device("cpu"), 0, "gan", 4))
    assert sorted(first.tolist()) == list(range(50))


def test_class_batches_take_classes_in_turn_and_their_images_in_whole_passes():
    labels = torch.tensor([4, 7, 9]).repeat(
        5
    )  # five images of each of three classes that are not numbered from 0

    def take(n: int, num_classes: int, skip: int = 0) -> list:
        return list(itertools.islice(class_batches(labels, 2, num_classes, 0, "match", skip=skip), n))

    batches = take(12, 3)
    assert all(batch.shape == (3, 2) for batch in batches)
    assert all(len(set(labels[row].tolist())) == 1 for batch in batches for row in batch)
    assert all(sorted(labels[batch[:, 0]].tolist()) == [4, 7, 9] for batch in batches)
    for label in (4, 7, 9):
        rows = [row for batch in batches for row in batch if labels[row[0]] == label]
        passes = [torch.cat(rows[i : i + 2]).tolist() for i in range(0, 12, 2)]
        assert all(
            len(set(images)) == 4 for images in passes
        )  # of five images, two whole batches; none twice
        assert len({tuple(images) for images in passes}) > 1
    dealt = [
        label for batch in take(12, 2) for label in labels[batch[:, 0]].tolist()
    ]  # two of three classes at a time
    assert all(sorted(dealt[i : i + 3]) == [4, 7, 9] for i in range(0, 24, 3))
    assert torch.equal(torch.stack(take(4, 2, skip=7)), torch.stack(take(11, 2)[7:]))
    with pytest.raises(UsageError, match="--match-batch 6: class 4 has 5 training images"):
        next(class_batches(labels, 6, 3, 0))


def test_balanced_epochs_pass_through_each_class_before_they_repeat():
    labels = torch.tensor([0, 1] * 4 + [0])  # five of class 0, four of class 1
    epochs = balanced_epochs(labels, 2, 2, 0)
    seen = [next(epochs) for _ in range(4)]
    for index in seen:
        assert labels[index].tolist() == [0, 0, 1, 1]
    assert sorted(torch.cat([e[2:] for e in seen[:2]]).tolist()) == [1, 3, 5, 7]
    assert len(set(torch.cat([e[:2] for e in seen])[:5].tolist())) == 5


def test_steps_per_epoch():
    assert steps_per_epoch(1500, 64) == 23
    with pytest.raises(UsageError, match="--batch-size 1501: larger than the training set, which has 1500"):
        steps_per_epoch(1500, 1501)


def test_range_in_flight():
    flight = data.to_float(torch.arange(256, dtype=torch.uint8))
    assert flight.tolist()[::51] == pytest.approx([-1, -0.6, -0.2, 0.2, 0.6, 1], abs=1e-6)


# a folder of pictures


@pytest.fixture
def pictures(tmp_path):
    for split, n in (("train", 4), ("test", 2)):
        for i in range(n):
            picture(tmp_path / split / "cat" / f"{i}.png", (250, 0, 0))
            picture(tmp_path / split / "dog" / f"{i}.jpg", (0, 0, 250), size=(20, 60))
    (tmp_path / "train" / "cat" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("x")
    return tmp_path


@pytest.mark.parametrize("size", [None, 28, 32])
def test_folder(pictures, size):
    loaded = load_data("folder", pictures, image_size=size)
    assert loaded.info.class_names == ("cat", "dog")
    assert loaded.train.images.shape == (8, 3, size or 32, size or 32)
    assert loaded.train.labels.tolist() == [0] * 4 + [1] * 4
    assert loaded.train.images[0, :, 5, 5].tolist() == [250, 0, 0]
    assert loaded.info.mean == pytest.approx((0.49, 0, 0.49), abs=0.01)
    assert all(s > 0 for s in loaded.info.std)


def test_gray_folder_has_one_channel(tmp_path):
    for split in ("train", "test"):
        for name in "ab":
            picture(tmp_path / split / name / "0.png", (9, 9, 9), mode="L")
    assert load_data("folder", tmp_path).train.images.shape == (2, 1, 32, 32)


def test_pictures_of_16_bits_keep_their_range_and_floats_are_refused(tmp_path):
    for split in ("train", "test"):
        for name, value in (("a", 0), ("b", 30000), ("c", 65535)):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(np.full((32, 32), value, np.uint16)).save(tmp_path / split / name / "0.png")
    loaded = load_data("folder", tmp_path)
    assert loaded.train.images[:, 0, 4, 4].tolist() == [0, 117, 255]
    Image.fromarray(np.zeros((32, 32), np.float32)).save(tmp_path / "train" / "a" / "1.tiff")
    with pytest.raises(UsageError, match=r"1.tiff: an unreadable picture .*floating-point"):
        load_data("folder", tmp_path)


def test_folder_with_a_checkpoints_info_needs_only_its_test_split(pictures):
    import shutil

    info = load_data("folder", pictures).info
    shutil.rmtree(pictures / "train")
    loaded = load_data("folder", pictures, splits=("test",), info=info)
    assert loaded.info == info
    assert len(loaded.test) == 4


def test_folder_faults(pictures):
    def refused(message: str) -> None:
        with pytest.raises(UsageError, match=message) as error:
            load_data("folder", pictures)
        assert "\n" not in str(error.value)

    (pictures / "test" / "dog" / "broken.png").write_bytes(b"no picture")
    refused("broken.png: an unreadable picture")
    (pictures / "test" / "dog" / "broken.png").unlink()
    good = (pictures / "train" / "cat" / "0.png").read_bytes()
    (pictures / "train" / "cat" / "half.png").write_bytes(good[: len(good) // 2])
    refused("half.png: an unreadable picture")
    (pictures / "train" / "cat" / "half.png").unlink()
    (pictures / "train" / "bird").mkdir()
    refused("bird: an empty class")
    picture(pictures / "train" / "bird" / "0.png")
    refused("test: its classes differ from those of .*train: bird only on one side")
    for name in ("bird", "dog"):
        (pictures / "train" / name).rename(pictures / name)
    refused("train: found 1 class folders, expected at least 2")
    (pictures / "train").rename(pictures / "moved")
    refused("train: no such folder")


# real files, where DATA_DIR names them


@pytest.mark.parametrize(
    ("name", "sizes"), [("cifar10", (50000, 10000)), ("mnist", (60000, 10000)), ("fashion", (60000, 10000))]
)
def test_real_sets(data_dir, name, sizes):
    loaded = load_data(name, data_dir)
    assert (len(loaded.train), len(loaded.test)) == sizes
    assert torch.bincount(loaded.test.labels, minlength=10).min() > 800
    means = (loaded.train.images.double() / 255).mean((0, 2, 3)).tolist()
    assert means == pytest.approx(list(loaded.info.mean), abs=2e-3)
