"""The range of a distilled set is what most of its values say."""

import pytest
import torch

from data import DATASETS, load_data
from scoring.distilled import read_distilled
from scoring.values import looks_whitened
from utils import UsageError

INFO = DATASETS["digits"].info
LABELS = torch.arange(10).repeat_interleave(5)


@pytest.fixture
def digits() -> torch.Tensor:
    """Five real digits of each class, in [0, 1]: (50, 1, 28, 28)."""
    train = load_data("digits", "").train
    chosen = [(train.labels == label).nonzero().flatten()[:5] for label in range(10)]
    return train.images[torch.cat(chosen)].float() / 255


def read(path, images, image_range=None, labels=LABELS):
    torch.save((images, labels), path)
    return read_distilled(path, INFO, image_range)[0].images


@pytest.mark.parametrize("image_range", [None, "unit"])
def test_a_few_learned_pixels_outside_the_unit_range_are_clipped(image_range, digits, tmp_path, capsys):
    learned = digits.clone()
    learned[0, 0, 0, 0], learned[7, 0, 9, 9] = -0.06, 1.31
    expected = learned.clamp(0, 1) * 2 - 1
    assert torch.equal(read(tmp_path / "x.pt", learned, image_range), expected)
    assert (
        "x.pt: 2 of 39,200 values lie outside [0, 1], by up to 0.31; they are clipped"
        in capsys.readouterr().err
    )


def test_a_few_learned_pixels_outside_the_signed_range_are_asked_for(digits, tmp_path, capsys):
    learned = digits * 2 - 1
    learned[0, 0, 0, 0], learned[7, 0, 9, 9] = -1.5, 1.25
    with pytest.raises(
        UsageError,
        match=r"do not tell their range \(.* outside \[0, 1\], 2 outside \[-1, 1\] of 39,200\); name it",
    ):
        read(tmp_path / "x.pt", learned)
    assert torch.equal(read(tmp_path / "x.pt", learned, "signed"), learned.clamp(-1, 1))
    assert "2 of 39,200 values lie outside [-1, 1], by up to 0.5" in capsys.readouterr().err


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_many_pixels_outside_are_asked_for_and_never_taken_for_normalised(share, digits, tmp_path):
    learned = digits.clone()
    over = torch.rand(digits.shape, generator=torch.Generator().manual_seed(0)) < share
    learned[over] = torch.where(digits[over] > 0.5, 1.2, -0.2)
    with pytest.raises(UsageError, match="do not tell their range"):
        read(tmp_path / "x.pt", learned)
    assert torch.equal(read(tmp_path / "x.pt", learned, "unit"), learned.clamp(0, 1) * 2 - 1)


def test_rounded_floats_are_not_clipped(digits, tmp_path, capsys):
    rounded = digits * 1.0005
    assert torch.equal(read(tmp_path / "x.pt", rounded), rounded * 2 - 1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("image_range", ["unit", "signed", "uint8"])
def test_a_named_range_that_most_values_leave_is_refused(image_range, digits, tmp_path):
    normalised = (digits - INFO.mean[0]) / INFO.std[0]
    with pytest.raises(
        UsageError, match=f"--image-range {image_range}: found values .* expected .* at most (25|5) % outside"
    ):
        read(tmp_path / "x.pt", normalised, image_range)


def whitened(images: torch.Tensor, chosen: torch.Tensor, eps: float = 0.1) -> torch.Tensor:
    """ZCA of images in [0, 1], fitted to all of them: the chosen ones."""
    flat = images.flatten(1).double()
    centred = flat - flat.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / (len(flat) - 1))
    transform = vectors @ torch.diag((values.clamp(min=0) + eps).rsqrt()) @ vectors.T
    return (centred[chosen] @ transform).float().view(-1, *images.shape[1:])


def test_whitened_images_are_refused_by_their_statistics(digits, tmp_path, capsys):
    train = load_data("digits", "").train
    chosen = torch.cat([(train.labels == label).nonzero().flatten()[:5] for label in range(10)])
    white = whitened(train.images.float() / 255, chosen)
    assert looks_whitened(white)
    with pytest.raises(
        UsageError, match=r"x.pt: its images look whitened \(ZCA\).* expected the un-whitened copy"
    ):
        read(tmp_path / "x.pt", white)
    mean, std = INFO.mean[0], INFO.std[0]
    for pictures in (digits, digits * 2 - 1, (digits - mean) / std, torch.randn(50, 1, 28, 28)):
        assert not looks_whitened(pictures)


def mtt(folder, digits, with_copy=True):
    """MTT's files of one iteration, with ZCA: the whitened images, the labels, and the un-whitened copy."""
    torch.save(digits - 0.3, folder / "images_5000.pt")
    torch.save(LABELS, folder / "labels_5000.pt")
    if with_copy:
        copy = digits.clone()
        copy[0, 0, 0, :20] = -0.2  # learned
        torch.save(copy, folder / "images_zca_5000.pt")


def test_the_unwhitened_copy_of_mtt_is_read_with_the_labels_of_its_iteration(digits, tmp_path):
    mtt(tmp_path, digits)
    (found,) = read_distilled(tmp_path / "images_zca_5000.pt", INFO)
    assert torch.equal(found.images[1:], digits[1:] * 2 - 1)
    assert torch.equal(found.labels, LABELS)
    (tmp_path / "labels_5000.pt").unlink()
    with pytest.raises(UsageError, match=r"for its labels expected .*labels_5000.pt"):
        read_distilled(tmp_path / "images_zca_5000.pt", INFO)


def test_the_whitened_file_of_mtt_is_refused_by_its_name(digits, tmp_path):
    mtt(tmp_path, digits)
    with pytest.raises(
        UsageError,
        match=r"images_5000.pt: holds whitened images \(ZCA\), .*expected an un-whitened copy, as beside "
        r"it: .*images_zca_5000.pt",
    ):
        read_distilled(tmp_path / "images_5000.pt", INFO, "signed")
    for name in ("images", "labels"):
        (tmp_path / f"{name}_5000.pt").rename(tmp_path / f"{name}_best.pt")
    with pytest.raises(
        UsageError, match=r"images_best.pt: holds whitened images \(ZCA\), .*images_zca_5000.pt"
    ):
        read_distilled(tmp_path / "images_best.pt", INFO, "signed")


def test_images_of_little_contrast_are_told(digits, tmp_path, capsys):
    read(tmp_path / "x.pt", digits, "uint8")  # values of [0, 1] that are named as those of [0, 255]
    assert "warning: " in (told := capsys.readouterr().err)
    assert "x.pt: its images use 0.39 % of the range from black to white" in told
