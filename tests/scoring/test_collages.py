"""Sets whose stored images are collages (IDC): each is decoded to several images, of the bytes of one."""

import pytest
import torch
import torch.nn.functional as F
from conftest import run, validate_flags
from PIL import Image

import validate
from data import DATASETS
from scoring.distilled import decode_collages, read_distilled
from utils import UsageError

INFO = DATASETS["digits"].info


@pytest.fixture
def stored() -> torch.Tensor:
    """A collage of 2 x 2 for each class: uint8 (10, 1, 28, 28)."""
    return torch.randint(0, 256, (10, 1, 28, 28), generator=torch.Generator().manual_seed(0)).byte()


def test_a_collage_holds_images_of_half_the_size(stored, tmp_path, capsys):
    torch.save((stored, torch.arange(10)), tmp_path / "x.pt")
    (found,) = read_distilled(tmp_path / "x.pt", INFO, factor=2)
    parts = [stored[:, :, i : i + 14, j : j + 14].float() for i, j in ((0, 0), (0, 14), (14, 0), (14, 14))]
    expected = torch.nn.Upsample(size=28, mode="bilinear")(torch.cat(parts)) / 127.5 - 1
    assert torch.allclose(found.images, expected, atol=1e-5)
    assert found.labels.tolist() == list(range(10)) * 4
    assert (found.ipc, found.num_images, found.num_bytes) == (1, 10, stored.numel())
    for label in range(10):
        (tmp_path / "set" / str(label)).mkdir(parents=True)
        Image.fromarray(stored[label, 0].numpy()).save(tmp_path / "set" / str(label) / "0.png")
    assert torch.equal(read_distilled(tmp_path / "set", INFO, factor=2)[0].images, found.images)


def test_a_side_that_is_no_multiple_of_the_factor_is_padded_with_gray(stored):
    images = stored.float() / 127.5 - 1
    decoded, labels = decode_collages(images, torch.arange(10), 3)
    assert (decoded.shape, labels.shape) == ((90, 1, 28, 28), (90,))
    corner = F.pad(images[:, :, 20:, 20:], (0, 2, 0, 2))  # gray is 0
    assert torch.allclose(decoded[80:], F.interpolate(corner, size=(28, 28), mode="bilinear"))


def test_rows_of_collages_tell_images_and_bytes(stored, tmp_path, capsys):
    torch.save((stored, torch.arange(10)), tmp_path / "x.pt")
    flags = ["--source", "file", "--file", str(tmp_path / "x.pt"), "--data", "digits", "--budget", "fixed"]
    flags = [flag for flag in validate_flags(tmp_path, *flags) if flag not in ("--ipc", "3")]
    (whole,) = run(validate, flags)
    (row,) = run(validate, [*flags, "--factor", "2"])
    assert (whole["factor"], whole["images_seen"], whole["num_images"], whole["num_bytes"]) == (
        None,
        4 * 10,
        10,
        7840,
    )
    assert (row["factor"], row["images_seen"], row["num_images"], row["num_bytes"]) == (2, 4 * 40, 10, 7840)
    assert "0.01 MB, 10 images, each a collage of 2 x 2" in capsys.readouterr().out
    for factor in ("15", "100"):
        with pytest.raises(SystemExit) as stop:
            run(validate, [*flags, "--factor", factor])
        assert stop.value.code == 2
        assert f"--factor {factor}: expected 1 to 14 for images of 28 pixels" in capsys.readouterr().err


def test_a_factor_beyond_the_image_is_refused(stored, tmp_path):
    torch.save((stored, torch.arange(10)), tmp_path / "x.pt")
    with pytest.raises(UsageError, match="--factor 0: expected 1 to 14"):
        read_distilled(tmp_path / "x.pt", INFO, factor=0)
