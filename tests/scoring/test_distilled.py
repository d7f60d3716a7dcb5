"""Sets of others: each layout in which they are released is read to the same images, and what does not fit is
refused in one line."""

import numpy as np
import pytest
import torch
from conftest import run, validate_flags
from PIL import Image

import validate
from data import DATASETS
from scoring.distilled import read_distilled, write_distilled
from utils import UsageError

INFO, COLOR = DATASETS["digits"].info, DATASETS["cifar10"].info


@pytest.fixture
def images() -> torch.Tensor:
    """Two of each class, uint8, all values of the range among them."""
    images = torch.randint(0, 256, (20, 1, 28, 28), generator=torch.Generator().manual_seed(0)).byte()
    images[0, 0, 0, :2] = torch.tensor([0, 255])
    return images


LABELS = torch.arange(10).repeat_interleave(2)


def normalised(images: torch.Tensor) -> torch.Tensor:
    return (images / 255 - INFO.mean[0]) / INFO.std[0]


def write_folder(path, images):
    for i, array in enumerate(images[:, 0].numpy()):
        (path / str(i // 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path / str(i // 2) / f"{i}.png")


LAYOUTS = {
    "pair": lambda path, x, y: torch.save((x, y), path),
    "dict": lambda path, x, y: torch.save({"images": x, "labels": y}, path),
    "data": lambda path, x, y: torch.save(
        {
            "data": [[x, y]],
            "accs_all_exps": {"ConvNet": [np.float64(0.3), np.float32(0.2)], "n": np.int64(3)},
        },
        path,
    ),
    "mtt": lambda path, x, y: (torch.save(x, path), torch.save(y, path.with_name("labels_best.pt"))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["uint8", "unit", "normalised", "signed"])
def test_each_layout_and_range_gives_the_same_images(layout, kind, images, tmp_path):
    kinds = {
        "uint8": images,
        "unit": images / 255,
        "normalised": normalised(images),
        "signed": images / 127.5 - 1,
    }
    path = tmp_path / "images_best.pt"
    LAYOUTS[layout](path, kinds[kind], LABELS)
    (found,) = read_distilled(path, INFO, "signed" if kind == "signed" else None)
    assert torch.allclose(found.images, images / 127.5 - 1, atol=1e-5)
    assert torch.equal(found.labels, LABELS)
    assert (found.ipc, found.soft) == (2, False)
    assert found.num_bytes == images.numel() * (1 if kind == "uint8" else 4)


def test_a_folder_of_pictures(images, tmp_path):
    write_folder(tmp_path / "set", images)
    (found,) = read_distilled(tmp_path / "set", INFO)
    assert torch.equal(found.images, images.float() / 127.5 - 1)
    assert torch.equal(found.labels, LABELS)


def test_folders_may_have_numbers_for_names(images, tmp_path):
    for label, name in enumerate(COLOR.class_names):
        for folder in (tmp_path / "names" / name, tmp_path / "numbers" / f"{label:05d}"):
            folder.mkdir(parents=True)
            Image.fromarray(np.full((32, 32, 3), 20 * label, np.uint8)).save(folder / "0.png")
    by_name, by_number = (read_distilled(tmp_path / kind, COLOR)[0] for kind in ("names", "numbers"))
    assert torch.equal(by_name.images, by_number.images)
    assert by_number.labels.tolist() == list(range(10))
    (tmp_path / "numbers" / "00009").rename(tmp_path / "numbers" / "10")
    with pytest.raises(UsageError, match="its folders are not the classes of cifar10"):
        read_distilled(tmp_path / "numbers", COLOR)


def test_sets_of_several_experiments(images, tmp_path):
    torch.save({"data": [[images, LABELS], [255 - images, LABELS]]}, tmp_path / "x.pt")
    first, second = read_distilled(tmp_path / "x.pt", INFO)
    assert (first.number, second.number) == (0, 1)
    assert torch.allclose(first.images, -second.images, atol=1e-6)
    assert first.sha256() != second.sha256()


def test_learned_pixels_may_lie_outside_the_range_of_pixels(images, tmp_path):
    wild = normalised(images)
    wild[0, 0, 0, 0] = 9.0
    torch.save((wild, LABELS), tmp_path / "x.pt")
    (found,) = read_distilled(tmp_path / "x.pt", INFO)
    assert found.images[0, 0, 0, 0] == pytest.approx((9 * INFO.std[0] + INFO.mean[0]) * 2 - 1)


def test_soft_labels(images, tmp_path):
    soft = torch.rand(20, 10).softmax(1)
    torch.save((images, soft), tmp_path / "x.pt")
    (found,) = read_distilled(tmp_path / "x.pt", INFO)
    assert torch.allclose(found.labels, soft)
    assert (found.soft, found.ipc, found.num_bytes) == (True, 2, images.numel() + 20 * 10 * 4)


@pytest.mark.parametrize("info", [INFO, COLOR], ids=lambda info: info.name)
def test_what_is_written_is_read_back(info, tmp_path):
    shape = (20, info.channels, info.image_size, info.image_size)
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).byte()
    soft = torch.rand(20, 10).softmax(1)
    write_distilled(tmp_path / "out", images, LABELS, soft, info)
    for path in (tmp_path / "out.pt", tmp_path / "out", tmp_path / "out_soft.pt"):
        (found,) = read_distilled(path, info)
        assert torch.equal(found.images, images.float() / 127.5 - 1)
        assert torch.equal(found.labels, soft if "soft" in path.name else LABELS)


# faults


def broken(name: str, images: torch.Tensor, tmp_path) -> object:
    """What the file of a fault holds."""
    unit = images / 255
    bad = {"nan": float("nan"), "infinite": float("inf")}
    if name in bad:
        unit[3, 0, 5, 5] = bad[name]
        return unit, LABELS
    soft = torch.full((20, 10), 0.1)
    return {
        "hwc": (images.permute(0, 2, 3, 1), LABELS),
        "no channel": (images[:, 0], LABELS),
        "other size": (images[..., :27], LABELS),
        "color": (images.expand(-1, 3, -1, -1), LABELS),
        "empty": (images[:0], LABELS[:0]),
        "empty data": {"data": []},
        "one class": (images, torch.zeros(20, dtype=torch.long)),
        "nine classes": (images, LABELS.clamp(max=8)),
        "label 10": (images, LABELS + 1),
        "label -1": (images, LABELS - 1),
        "fractional": (images, LABELS + 0.5),
        "short labels": (images, LABELS[:-1]),
        "soft sum": (images, soft * 2),
        "logits": (images, soft - 0.5),
        "soft classes": (images, soft[:, :9]),
        "soft nan": (images, soft * float("nan")),
        "integers": (images.int(), LABELS),
        "undecidable": (images / 127.5 - 1, LABELS),
        "0 to 255 as float": (images.float(), LABELS),
        "a list": [1, 2],
        "a word": "images",
        "numpy": {"data": [[images.numpy(), LABELS.numpy()]]},
        "sparse": (unit.to_sparse(), LABELS),
        "alone": images,
        "other dict": {"x": images},
        "a triple": {"data": [images]},
    }[name]


FAULTS = {
    "hwc": "found images (20, 28, 28, 1), the order NHWC, expected (N, 1, 28, 28)",
    "no channel": "found images (20, 28, 28), expected (N, 1, 28, 28) for digits",
    "other size": "found images (20, 1, 28, 27), expected (N, 1, 28, 28)",
    "color": "found images (20, 3, 28, 28), expected (N, 1, 28, 28)",
    "empty": "found images (0, 1, 28, 28), expected (N, 1, 28, 28)",
    "empty data": "holds no images",
    "one class": "found images of 1 classes, expected the 10 of digits; none of 1, 2, 3, 4, 5, 6, 7, 8, 9",
    "nine classes": "found images of 9 classes, expected the 10 of digits; none of 9",
    "label 10": "found labels 1 to 10, expected 0 to 9",
    "label -1": "found labels -1 to 8, expected 0 to 9",
    "fractional": "found labels that are no whole numbers",
    "short labels": "found labels (19,), expected (20,), or one-hot or soft (20, 10)",
    "soft sum": "found soft labels that sum to 2, expected 1",
    "logits": "found soft labels that are negative or not finite, expected probabilities, not logits",
    "soft classes": "found soft labels (20, 9), expected (20, 10)",
    "soft nan": "found soft labels that are negative or not finite",
    "nan": "found 1 values that are NaN or infinite",
    "infinite": "found 1 values that are NaN or infinite",
    "integers": "found images of torch.int32, expected uint8 or floating point",
    "undecidable": "0 outside [-1, 1] of 15,680); name it: --image-range uint8 unit signed normalised",
    "0 to 255 as float": "values 0 to 255 do not tell their range",
    "a list": "expected tensors: images (N, 1, 28, 28) and labels",
    "a word": "found a str of 6, expected (images, labels)",
    "numpy": "found pickled code (numpy",
    "sparse": "expected tensors: images (N, 1, 28, 28) and labels",
    "alone": "holds one tensor; for its labels expected",
    "other dict": "found a dict of x, expected (images, labels)",
    "a triple": "its list data holds a tensor (20, 1, 28, 28), expected [images, labels]",
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_fit_is_refused(name, images, tmp_path):
    torch.save(broken(name, images, tmp_path), tmp_path / "x.pt")
    with pytest.raises(UsageError) as error:
        read_distilled(tmp_path / "x.pt", INFO)
    assert FAULTS[name] in str(error.value)
    assert str(tmp_path / "x.pt") in str(error.value)
    assert "\n" not in str(error.value)


class Runs:
    """Pickled, it would write a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_code_is_not_executed(images, tmp_path):
    for allowed in ({}, {"accs_all_exps": np.float64(1)}):
        torch.save(
            {"data": [[images, LABELS]], "x": Runs(tmp_path / "executed")} | allowed, tmp_path / "x.pt"
        )
        with pytest.raises(UsageError, match=r"pickled code \((io|builtins|_io)\.open\), not executed"):
            read_distilled(tmp_path / "x.pt", INFO)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("image_range", "values", "message"),
    [
        ("unit", "normalised", "--image-range unit: found values"),
        ("signed", "normalised", "--image-range signed: found values"),
        ("uint8", "normalised", "--image-range uint8: found values"),
        ("normalised", "float255", "--image-range normalised: found values 0 to 255"),
        ("unit", "uint8", "--image-range unit: "),
        ("normalised", "folder", "holds pictures, which are uint8"),
    ],
)
def test_a_range_that_contradicts_the_values(image_range, values, message, images, tmp_path):
    path = tmp_path / "x.pt"
    if values == "folder":
        path = tmp_path / "set"
        write_folder(path, images)
    else:
        torch.save(
            ({"normalised": normalised(images), "float255": images.float(), "uint8": images}[values], LABELS),
            path,
        )
    with pytest.raises(UsageError) as error:
        read_distilled(path, INFO, image_range)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_a_named_range_is_taken(images, tmp_path):
    torch.save((images.float(), LABELS), tmp_path / "x.pt")
    assert torch.allclose(read_distilled(tmp_path / "x.pt", INFO, "uint8")[0].images, images / 127.5 - 1)


def test_folders_that_do_not_fit(images, tmp_path):
    path = tmp_path / "set"
    with pytest.raises(UsageError, match="no such file, expected images and labels"):
        read_distilled(path, INFO)
    write_folder(path, images)
    (path / "9" / "18.png").unlink(), (path / "9" / "19.png").unlink()
    with pytest.raises(UsageError, match="an empty class"):
        read_distilled(path, INFO)
    (path / "9").rmdir()
    with pytest.raises(UsageError, match="its folders are not the classes of digits: 9 only on one side"):
        read_distilled(path, INFO)
    write_folder(path, images)
    Image.new("L", (32, 28)).save(path / "9" / "18.png")
    with pytest.raises(UsageError, match=r"18.png: found 32 x 28 pixels, expected 28 x 28"):
        read_distilled(path, INFO)


def test_unequal_images_of_each_class_are_read(images, tmp_path):
    labels = torch.cat([torch.tensor([0, 0]), LABELS[:18]])  # four of class 0, none more of class 9
    labels[-1] = 9
    torch.save((images, labels), tmp_path / "x.pt")
    write_folder(tmp_path / "set", images)
    (tmp_path / "set" / "9" / "18.png").rename(tmp_path / "set" / "8" / "18.png")
    for path, counts in (
        (tmp_path / "x.pt", (4, 2, 2, 2, 2, 2, 2, 2, 1, 1)),
        (tmp_path / "set", (2, 2, 2, 2, 2, 2, 2, 2, 3, 1)),
    ):
        (found,) = read_distilled(path, INFO)
        assert found.counts == counts == tuple(torch.bincount(found.labels).tolist())
        assert (found.ipc, found.num_images) == (2, 20)
    soft = torch.full((19, 10), 0.05) + torch.eye(10)[LABELS[:19]] / 2
    torch.save((images[:19], soft), tmp_path / "soft.pt")
    assert read_distilled(tmp_path / "soft.pt", INFO)[0].counts == (2,) * 9 + (1,)


def test_color_and_gray_pictures_are_converted_as_those_of_an_image_set_are(images, tmp_path):
    write_folder(tmp_path / "set", images)
    for path in (tmp_path / "set").rglob("*.png"):
        Image.open(path).convert("RGB").save(path)
    assert torch.equal(read_distilled(tmp_path / "set", INFO)[0].images, images.float() / 127.5 - 1)


def test_a_file_is_a_source_and_its_size_the_tables(images, tmp_path, capsys):
    torch.save({"data": [[images, LABELS], [255 - images, LABELS]]}, tmp_path / "x.pt")
    flags = ["--source", "file", "--file", str(tmp_path / "x.pt"), "--data", "digits", "--budget", "fixed"]
    rows = run(
        validate,
        [flag for flag in validate_flags(tmp_path, *flags) if flag not in ("--no-real", "--ipc", "3")],
    )
    assert [(row["source"], row["set"], row["ipc"]) for row in rows] == [
        ("file", 0, 2),
        ("file", 1, 2),
        ("real", None, 2),
    ]
    assert [row["images_seen"] for row in rows] == [4 * 20] * 3
    assert (rows[0]["num_bytes"], rows[0]["num_images"], rows[0]["bits_per_class"]) == (
        20 * 784,
        20,
        8 * 2 * 784,
    )
    assert rows[0]["file"] == "x.pt"
    assert "over 2 trainings" in capsys.readouterr().out
    asked = run(validate, validate_flags(tmp_path, *flags, "--ipc", "2"))
    assert [(row["source"], row["ipc"]) for row in asked] == [("file", 2), ("file", 2)]
