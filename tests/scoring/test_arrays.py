"""Distilled sets in numpy's files, and files that claim more than they hold."""

import io
import os
import zipfile

import numpy as np
import pytest
import torch

from data import DATASETS
from scoring.distilled import read_distilled
from utils import UsageError

INFO, COLOR = DATASETS["digits"].info, DATASETS["cifar10"].info
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 1, 28, 28), np.uint8)
LABELS = np.arange(10).repeat(2)
EXPECTED = torch.from_numpy(IMAGES) / 127.5 - 1


@pytest.mark.parametrize("names", [("images", "labels"), ("x", "y"), ("X", "Y"), ("x_train", "y_train")])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(names, save, tmp_path):
    save(tmp_path / "x.npz", other=np.zeros(3), **dict(zip(names, (IMAGES, LABELS), strict=True)))
    (found,) = read_distilled(tmp_path / "x.npz", INFO)
    assert torch.equal(found.images, EXPECTED)
    assert found.labels.tolist() == LABELS.tolist()
    assert found.num_bytes == IMAGES.size


def test_npy_with_its_labels_beside_it(tmp_path):
    np.save(tmp_path / "images_1.npy", IMAGES)
    with pytest.raises(
        UsageError, match=r"images_1.npy: holds one array; for its labels expected .*labels_1.npy"
    ):
        read_distilled(tmp_path / "images_1.npy", INFO)
    np.save(tmp_path / "labels_1.npy", LABELS)
    assert torch.equal(read_distilled(tmp_path / "images_1.npy", INFO)[0].images, EXPECTED)
    np.save(tmp_path / "set.npy", IMAGES)
    with pytest.raises(
        UsageError, match=r"for its labels expected a name images_\*.npy with labels_\*.npy beside it"
    ):
        read_distilled(tmp_path / "set.npy", INFO)


FORMS = {
    "NHWC": (IMAGES.transpose(0, 2, 3, 1), LABELS),
    "NHW": (IMAGES[:, 0], LABELS),
    "big-endian": ((IMAGES / 255).astype(">f4"), LABELS.astype(">i8")),
    "Fortran order": (np.asfortranarray(IMAGES), LABELS),
    "strided": (IMAGES.repeat(2, 0)[::2], LABELS.repeat(2)[::2]),
}


@pytest.mark.parametrize("form", FORMS)
def test_arrays_of_any_order(form, tmp_path):
    images, labels = FORMS[form]
    np.savez(tmp_path / "x.npz", images=images, labels=labels)
    (found,) = read_distilled(tmp_path / "x.npz", INFO)
    assert torch.allclose(found.images, EXPECTED, atol=1e-6)
    assert found.labels.tolist() == LABELS.tolist()


def test_color_arrays_of_either_order(tmp_path):
    images = RNG.integers(0, 256, (10, 3, 32, 32), np.uint8)
    for name, array in (("nchw", images), ("nhwc", images.transpose(0, 2, 3, 1))):
        np.savez(tmp_path / f"{name}.npz", images=array, labels=np.arange(10))
    assert torch.equal(
        *(read_distilled(tmp_path / f"{name}.npz", COLOR)[0].images for name in ("nchw", "nhwc"))
    )


class Runs:
    """Pickled, it would write a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_objects_are_not_executed(tmp_path):
    harm = np.empty(20, object)
    harm[:] = Runs(tmp_path / "executed")
    np.savez(tmp_path / "x.npz", images=IMAGES, labels=harm)
    np.save(tmp_path / "images_1.npy", harm, allow_pickle=True)
    np.save(tmp_path / "labels_1.npy", LABELS)
    for name in ("x.npz", "images_1.npy"):
        with pytest.raises(
            UsageError, match=rf"{name}: expected arrays of numpy, .*Object arrays cannot be loaded"
        ):
            read_distilled(tmp_path / name, INFO)
    assert not (tmp_path / "executed").exists()


def header(shape) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def test_a_header_that_claims_more_than_the_file_holds(tmp_path):
    np.save(tmp_path / "labels_1.npy", LABELS)
    for shape in ((10**6, 3, 1000, 1000), (20, 1, 28, 29), (-1, 5)):
        (tmp_path / "images_1.npy").write_bytes(header(shape) + bytes(100))
        with pytest.raises(UsageError, match=r"images_1.npy: (expected arrays of numpy|found images)"):
            read_distilled(tmp_path / "images_1.npy", INFO)


def test_archives_that_decompress_to_more_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.files.MAX_BYTES", 10**6)
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((2000, 1, 28, 28), np.uint8), labels=LABELS)
    torch.save((torch.zeros(2000, 1, 28, 28), torch.arange(10).repeat(200)), tmp_path / "stored.pt")
    with (
        zipfile.ZipFile(tmp_path / "stored.pt") as old,
        zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    for name in ("x.npz", "x.pt"):
        with pytest.raises(
            UsageError,
            match=rf"{name}: found [\d,]+ bytes that decompress to [\d,]+, expected at most 1,000,000",
        ):
            read_distilled(tmp_path / name, INFO)


def test_a_tensor_of_few_bytes_that_claims_terabytes(tmp_path):
    torch.save(
        (torch.zeros(1).expand(10**9, 1, 28, 28), torch.zeros(1).long().expand(10**9)), tmp_path / "x.pt"
    )
    assert (tmp_path / "x.pt").stat().st_size < 10_000
    with pytest.raises(
        UsageError,
        match=r"x.pt: claims images \(1000000000, 1, 28, 28\), expected at most 4,294,967,296 bytes",
    ):
        read_distilled(tmp_path / "x.pt", INFO)


def test_damaged_files(tmp_path):
    np.savez(tmp_path / "good.npz", images=IMAGES, labels=LABELS)
    good = (tmp_path / "good.npz").read_bytes()
    np.save(tmp_path / "labels_1.npy", LABELS)
    np.save(tmp_path / "images_1.npy", IMAGES)
    array = (tmp_path / "images_1.npy").read_bytes()
    for number in range(12):
        (tmp_path / "x.npz").write_bytes(good[: len(good) * number // 12])
        (tmp_path / "images_1.npy").write_bytes(array[: len(array) * number // 12])
        for name in ("x.npz", "images_1.npy"):
            with pytest.raises(UsageError, match=name) as error:
                read_distilled(tmp_path / name, INFO)
            assert "\n" not in str(error.value)
    np.savez(tmp_path / "x.npz", a=IMAGES)
    with pytest.raises(UsageError, match=r"x.npz: holds the arrays a, expected images and labels or x and y"):
        read_distilled(tmp_path / "x.npz", INFO)
    np.savez(tmp_path / "x.npz", images=IMAGES, labels=np.array(["a"] * 20))
    with pytest.raises(UsageError, match=r"x.npz: found values of type <U1, expected numbers"):
        read_distilled(tmp_path / "x.npz", INFO)
    with pytest.raises(UsageError, match="no such file, expected arrays of numpy"):
        read_distilled(tmp_path / "none.npz", INFO)


def test_other_files_in_an_archive_and_suffixes_in_capitals(tmp_path):
    np.savez(tmp_path / "X.NPZ", images=IMAGES, labels=LABELS)
    path = tmp_path / "X.NPZ"
    if not path.exists():  # numpy adds its own suffix
        (tmp_path / "X.NPZ.npz").rename(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "ours")
    assert torch.equal(read_distilled(path, INFO)[0].images, EXPECTED)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    for name in ("x.pt", "x.npz"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UsageError, match=f"{name}: no such file of the regular kind"):
            read_distilled(tmp_path / name, INFO)
