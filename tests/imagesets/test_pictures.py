"""Pictures of every kind are read to what they show, by one rule for the set, or refused in one line."""

import contextlib
import gzip
import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from inputs import picture
from PIL import Image

from data import DATASETS, ImageSet, class_batches, list_pictures, load_data, read_pictures
from imagesets.images import DataInfo, fingerprint
from utils import UsageError

SHAPES = [np.tri(32, dtype=np.uint8) * 255, np.tri(32, dtype=np.uint8)[::-1] * 255]  # two triangles


def save(path, picture: Image.Image, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)


def read(folder, channels=3, **options) -> torch.Tensor:
    return read_pictures(list(list_pictures(folder).values()), channels, 32, **options)[0]


# transparent pictures


def with_alpha(mode: str, alpha: np.ndarray, value: int) -> Image.Image:
    """A picture of one value whose shape is in its alpha channel."""
    plain = Image.new("L", (32, 32), value)
    if mode in ("RGBA", "LA"):
        bands = [plain] * (3 if mode == "RGBA" else 1)
        return Image.merge(mode, [*bands, Image.fromarray(alpha)])
    made = Image.fromarray(alpha // 255).convert("P" if mode == "P" else "L")  # transparent where it is 0
    if mode == "P":
        made.putpalette([value] * 6)
    return made


@pytest.mark.parametrize("background", [None, "black", "white"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_shape_in_the_alpha_channel_is_seen(mode, channels, background, tmp_path):
    value, behind = (0, 255) if background == "white" else (255, 0)
    for name in "ab":
        for number, shape in enumerate(SHAPES):
            options = {"transparency": 0} if mode == "P" else {}
            save(tmp_path / name / f"{number}.png", with_alpha(mode, shape, value), **options)
    images = read(tmp_path, channels, background=background)
    for number, shape in enumerate(SHAPES):
        expected = torch.from_numpy(np.where(shape > 0, value, behind).astype(np.uint8)).expand(
            channels, 32, 32
        )
        assert torch.equal(images[number], expected)


def test_half_transparent_values_are_mixed_with_the_background(tmp_path):
    for name, shape in zip("ab", SHAPES, strict=True):
        save(tmp_path / name / "0.png", with_alpha("RGBA", (shape // 255 * 51), 200))
    assert read(tmp_path)[0, 0, 31, 0] == 40  # 200 * 51 / 255
    assert read(tmp_path, background="white")[0, 0, 31, 0] == 244  # 40 + 255 * 204 / 255


def test_an_opaque_alpha_channel_changes_nothing(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        opaque = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
        save(tmp_path / "rgb" / name / "0.png", opaque)
        save(tmp_path / "rgba" / name / "0.png", opaque.convert("RGBA"))
    assert torch.equal(read(tmp_path / "rgb"), read(tmp_path / "rgba", background="white"))


def test_pictures_that_are_all_equal_are_refused_by_name(tmp_path):
    for split in ("train", "test"):
        for name, shapes in (("cat", SHAPES), ("dog", SHAPES)):
            for number, shape in enumerate(shapes):
                save(
                    tmp_path / split / name / f"{number}.png", with_alpha("RGBA", shape, 0)
                )  # black on black
    with pytest.raises(
        UsageError,
        match=r"train: its 4 images are all equal, expected different ones; .*alpha channel \(--background\)",
    ):
        load_data("folder", tmp_path)
    assert len(load_data("folder", tmp_path, background="white").train.images.unique(dim=0)) == 2
    for number, shape in enumerate(SHAPES):
        save(tmp_path / "train" / "cat" / f"{number}.png", Image.fromarray(shape))
    with pytest.raises(UsageError, match=r"train/dog: its 2 images are all equal"):
        load_data("folder", tmp_path)


def test_the_background_goes_with_the_checkpoint(tmp_path):
    for split in ("train", "test"):
        for name, shape in zip("ab", SHAPES, strict=True):
            save(tmp_path / split / name / "0.png", with_alpha("RGBA", shape, 0))
    loaded = load_data("folder", tmp_path, background="white")
    info = DataInfo.from_dict(loaded.info.to_dict())
    assert info == loaded.info
    again = load_data("folder", tmp_path, info=info)
    assert torch.equal(again.test.images, loaded.test.images)
    with pytest.raises(UsageError, match="--background black: the checkpoint was made with white"):
        load_data("folder", tmp_path, info=info, background="black")
    with pytest.raises(
        UsageError, match="--background white: digits is no folder of pictures, the flag is for --data folder"
    ):
        load_data("digits", "", background="white")


def test_checkpoints_and_fingerprints_without_a_background_are_what_they_were():
    info = DATASETS["digits"].info
    assert "background" not in info.to_dict()
    tiny = ImageSet(torch.arange(784).view(1, 1, 28, 28).byte(), torch.tensor([0]))
    assert fingerprint(info, tiny) == "f23edd142b67da99"


# pictures of more than 8 bits


def deep(path, values: list[list[int]]) -> None:
    """Pictures of one value each in 16 bits, one class after another."""
    for label, ones in enumerate(values):
        for number, value in enumerate(ones):
            save(path / f"c{label}" / f"{number}.png", Image.fromarray(np.full((32, 32), value, np.uint16)))


def test_16_bits_are_scaled_by_the_depth_of_the_file_and_not_by_the_maximum_of_a_picture(tmp_path, capsys):
    deep(tmp_path, [[255, 600], [65535, 30000]])
    assert read(tmp_path, 1)[:, 0, 4, 4].tolist() == [1, 2, 255, 117]
    assert (
        "4 pictures have 16 bits; their values 0 to 65,535 are scaled to 0 to 255" in capsys.readouterr().err
    )


def test_a_set_that_uses_little_of_its_range_is_told(tmp_path, capsys):
    deep(tmp_path, [[0, 4095], [2000, 300]])  # 12 bits in files of 16
    read(tmp_path, 1)
    assert f"warning: {tmp_path}: its pictures use 17 of 256 values, from 0 to 16" in capsys.readouterr().err


def test_12_bits_that_the_file_states_are_scaled_by_them(tmp_path):
    for name, values in (("a", (0, 4095)), ("b", (2048, 300))):
        for number, value in enumerate(values):
            rows = np.full((32, 32), value, np.uint16)
            packed = np.stack(
                [rows[:, ::2] >> 4, ((rows[:, ::2] & 15) << 4) | (rows[:, 1::2] >> 8), rows[:, 1::2] & 255], 2
            ).astype(np.uint8)
            tags = [
                (256, 32),
                (257, 32),
                (258, 12),
                (259, 1),
                (262, 1),
                (273, 8),
                (277, 1),
                (278, 32),
                (279, packed.size),
            ]
            offset = 8 + packed.size
            entries = b"".join(
                struct.pack("<HHII", tag, 4 if tag in (256, 257, 273, 279) else 3, 1, value)
                for tag, value in tags
            )
            content = (
                b"II*\0"
                + struct.pack("<I", offset)
                + packed.tobytes()
                + struct.pack("<H", len(tags))
                + entries
                + bytes(4)
            )
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{number}.tif").write_bytes(content)
    assert read(tmp_path, 1)[:, 0, 4, 4].tolist() == [0, 255, 128, 19]


@pytest.mark.parametrize(
    ("dtype", "content"),
    [(np.int32, "integers of 32 bits, of unknown range"), (np.float32, "floating-point values")],
)
def test_values_of_unknown_range_are_refused(dtype, content, tmp_path):
    for name in "ab":
        save(tmp_path / name / "0.tiff", Image.fromarray(np.zeros((32, 32), dtype)))
    with pytest.raises(
        UsageError, match=rf"0.tiff: an unreadable picture \({content}.*expected 8 or 16 bits"
    ):
        read(tmp_path, 1)


# files that are no pictures, or claim to be large ones


def png_of(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes that claims width x height pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    start = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", start)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [9460, 12000, 100_000])
def test_a_small_file_that_claims_many_pixels_is_refused(side, tmp_path):
    for name in "ab":
        picture(tmp_path / name / "0.png")
    (tmp_path / "a" / "1.png").write_bytes(png_of(side, side))
    with (
        pytest.raises(
            UsageError, match=r"1.png: an unreadable picture .*more pixels than the limit of 89,478,485"
        ),
    ):
        read(tmp_path)


def test_a_gzip_of_zeros_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(gzip, "decompress", lambda content: pytest.fail("unpacked"))
    row = DATASETS["mnist"]
    for files in row.layouts[1].files.values():
        for path in files:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(gzip.compress(bytes(10**7)))
    with pytest.raises(UsageError, match=r"ubyte.gz: truncated or altered: found MD5 \w+, expected \w+"):
        load_data("mnist", tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n",
        b"",
        b"GIF89a",
        b"\x89PNG\r\n\x1a\n",
        b"II*\0" + b"\xff" * 40,
    ],
)
def test_what_is_no_picture_is_named(content, tmp_path):
    """PostScript among them, which Pillow would hand to a program."""
    for name in "ab":
        picture(tmp_path / name / "0.png")
    (tmp_path / "b" / "1.png").write_bytes(content)
    with pytest.raises(UsageError, match=r"1.png: an unreadable picture") as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_links_to_nothing_pipes_and_folders_are_no_pictures(tmp_path):
    for name in "ab":
        picture(tmp_path / name / "0.png")
    odd = tmp_path / "a" / "1.png"
    for make in (lambda: odd.symlink_to(tmp_path / "none"), lambda: os.mkfifo(odd), odd.mkdir):
        make()
        with pytest.raises(
            UsageError, match=r"1.png: an unreadable picture \(no such file, or none of the regular kind\)"
        ):
            read(tmp_path)
        odd.rmdir() if odd.is_dir() else odd.unlink()


def test_damaged_pictures_are_named(tmp_path):
    buffers = []
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM"):
        noise.save(file := io.BytesIO(), kind)
        buffers.append(file.getvalue())
    for name in "ab":
        picture(tmp_path / name / "0.png")
    for _ in range(300):
        content = bytearray(buffers[rng.integers(len(buffers))])
        for place in rng.integers(0, min(len(content), 200), 4):
            content[place] = rng.integers(256)
        (tmp_path / "b" / "1.png").write_bytes(content)
        with contextlib.suppress(UsageError):  # nothing else is raised
            read(tmp_path)


# the folder of the test pictures, and the names of classes


def test_another_folder_may_hold_the_test_pictures(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            picture(tmp_path / split / name / "0.png")
    with pytest.raises(
        UsageError, match=r"test: no such folder, .*; found .*val, which --test-folder val names"
    ):
        load_data("folder", tmp_path)
    assert len(load_data("folder", tmp_path, test_folder="val").test) == 2
    for name, message in (
        ("train", "is the folder of the training pictures"),
        ("../x", "expected the name of a folder"),
        ("none", "no such folder"),
    ):
        with pytest.raises(UsageError, match=message):
            load_data("folder", tmp_path, test_folder=name)
    with pytest.raises(UsageError, match="--test-folder val: digits is no folder of pictures"):
        load_data("digits", "", test_folder="val")


def test_messages_about_unbalanced_sets_name_the_class(tmp_path):
    for split in ("train", "test"):
        for name, n in (("cat", 5), ("dog", 2)):
            for number in range(n):
                picture(tmp_path / split / name / f"{number}.png")
    with pytest.raises(UsageError, match="--val-size 4: asks for 2 of the 2 training images of class dog"):
        load_data("folder", tmp_path, val_size=4)
    loaded = load_data("folder", tmp_path)
    with pytest.raises(UsageError, match="--match-batch 3: class dog has 2 training images"):
        next(class_batches(loaded.train.labels, 3, 2, 0, class_names=loaded.info.class_names))
