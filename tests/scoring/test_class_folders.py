"""A folder's name stands for the class of that name, in an image set and in a distilled set alike."""

import numpy as np
import pytest
import torch
from conftest import continual_flags, run, validate_flags
from PIL import Image

import continual
import validate
from data import load_data
from scoring.distilled import read_distilled, write_distilled
from utils import UsageError

NUMBERS = [str(number) for number in range(12)]


def write_class(folder, value: int, n: int = 2) -> None:
    """n different pictures, all about as bright as `value`."""
    folder.mkdir(parents=True)
    for i in range(n):
        array = np.full((28, 28), value, np.uint8)
        array[i] = 255
        Image.fromarray(array).save(folder / f"{i}.png")


@pytest.fixture
def numbered(tmp_path):
    """An image set with the classes 0 ... 11, whose pictures are 10 times the name bright."""
    for split in ("train", "test"):
        for name in NUMBERS:
            write_class(tmp_path / "set" / split / name, 10 * int(name), 4)
    return tmp_path


def test_numbered_folders_are_the_classes_of_these_names(numbered):
    info = load_data("folder", numbered / "set", image_size=28).info
    assert info.class_names == (
        "0",
        "1",
        "10",
        "11",
        "2",
        "3",
        "4",
        "5",
        "6",
        "7",
        "8",
        "9",
    )  # as torchvision orders them
    for name in NUMBERS:
        write_class(numbered / "same" / name, 10 * int(name))
        write_class(numbered / "padded" / f"{int(name):03d}", 10 * int(name))
    for folder in ("same", "padded"):
        (found,) = read_distilled(numbered / folder, info)
        values = (found.images[:, 0, 20, 20] + 1) * 127.5
        assert values.round().int().tolist() == [10 * int(info.class_names[label]) for label in found.labels]


def test_our_own_export_of_numbered_classes_is_read_back(numbered):
    loaded = load_data("folder", numbered / "set", image_size=28)
    write_distilled(numbered / "out", loaded.train.images, loaded.train.labels, None, loaded.info)
    as_tensors, as_pictures = (read_distilled(numbered / name, loaded.info)[0] for name in ("out.pt", "out"))
    assert torch.equal(as_tensors.images, as_pictures.images)
    assert torch.equal(as_tensors.labels, as_pictures.labels)


def test_numbers_count_only_where_no_name_fits(numbered):
    info = load_data("folder", numbered / "set", image_size=28).info
    for name in (*NUMBERS[1:], "12"):
        write_class(numbered / "shifted" / name, 10 * int(name))
    with pytest.raises(UsageError, match="its folders are not the classes of folder: 0, 12 only on one side"):
        read_distilled(numbered / "shifted", info)


@pytest.mark.parametrize(("one", "other"), [("1", "01"), ("\u00e9", "e\u0301")])
def test_two_folders_for_one_class_are_refused(one, other, tmp_path):
    for split in ("train", "test"):
        for name in (one, other, "9"):
            write_class(tmp_path / "set" / split / name, 9)
    names = " and ".join(sorted((one, other)))
    with pytest.raises(UsageError, match=f"train: the folders {names} stand for one class"):
        load_data("folder", tmp_path / "set")
    with pytest.raises(UsageError, match=f"test: the folders {names} stand for one class"):
        read_distilled(tmp_path / "set" / "test", load_data("digits", "").info)


def test_a_checkpoints_order_of_the_classes_is_kept(numbered):
    from dataclasses import replace

    loaded = load_data("folder", numbered / "set", image_size=28)
    info = replace(loaded.info, class_names=tuple(NUMBERS))  # as another system may have ordered them
    again = load_data("folder", numbered / "set", info=info)
    assert again.info == info
    values = again.test.images[:, 0, 20, 20].tolist()
    assert values == [10 * int(info.class_names[label]) for label in again.test.labels]


def test_results_name_the_classes(tmp_path, capsys):
    flags = validate_flags(
        tmp_path, "--source", "real", "--data", "digits", "--repeats", "1", "--epochs-eval", "1"
    )
    (row,) = run(validate, flags)
    assert row["class_names"] == list("0123456789")
    results = run(continual, continual_flags(tmp_path, "finetune"))
    assert list(results["class_names"]) == list("0123456789")
    assert "tasks: 1: 0, 1; 2: 2, 3; 3: 4, 5; 4: 6, 7; 5: 8, 9" in capsys.readouterr().err
