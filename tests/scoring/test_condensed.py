"""--source condensed: sets that are made once, survive a stop, hold their bytes, and teach more than the
images they start from."""

from functools import partial

import pytest
import torch
from conftest import run, validate_flags

import validate
from data import ImageSet, load_data
from engine.runtime import Runtime
from models import NETWORKS
from models.condense import Condensed, Condensing
from models.convnet import ConvNet
from scoring import condensed as sets
from scoring.condensed import CondensedSets
from scoring.storage import CODECS, LOSSY, encode_images, make_codec

CPU = Runtime(torch.device("cpu"))
FLAGS = "--data digits --source condensed --condense-steps 5 --condense-batch 8 --samples 2".split()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(NETWORKS, "convnet_w32", partial(ConvNet, width=8))


def made(results):
    (path,) = (results / "test" / "condensed").iterdir()
    return path, torch.load(path, weights_only=True)


def test_a_row_of_condensed_images(tmp_path, monkeypatch, capsys):
    rows = run(validate, validate_flags(tmp_path, *FLAGS, "--budget", "stream", "fixed"))
    assert [(row["source"], row["budget"], row["num_bytes"], row["num_images"]) for row in rows] == [
        ("condensed", budget, 30 * 784, 30) for budget in ("stream", "fixed")
    ]
    assert "condensed, mean, 5 steps" in capsys.readouterr().out
    assert rows[0]["accs"] == rows[1]["accs"]  # a fixed set under both budgets
    assert rows[0]["condensing"]["steps"] == 5
    assert rows[0]["drawn_from"] is not None
    assert rows[0]["samples"]["images"] != rows[0]["samples"]["real"]
    path, (images, labels) = made(tmp_path)
    assert (images.dtype, images.shape) == (torch.uint8, (30, 1, 28, 28))
    assert torch.equal(labels, torch.arange(10).repeat_interleave(3))
    back = run(
        validate,
        validate_flags(tmp_path / "back", "--data", "digits", "--source", "file", "--file", str(path)),
    )
    assert back[0]["accs"] == rows[0]["accs"]

    monkeypatch.setattr(Condensed, "_step", None)  # the file is found again
    more = run(validate, validate_flags(tmp_path, *FLAGS, "--budget", "fixed", "--repeats", "3"))
    assert more[0]["accs"][:2] == rows[1]["accs"]
    with pytest.raises(TypeError):
        run(validate, validate_flags(tmp_path, *FLAGS, "--seed", "1"))


def test_stopped_anywhere_the_set_is_the_same_to_the_bit(tmp_path, monkeypatch):
    flags = [*FLAGS, "--epochs-eval", "1", "--repeats", "1", "--samples", "0"]
    run(validate, validate_flags(tmp_path / "whole", *flags))
    monkeypatch.setattr(sets, "SAVE_SECONDS", 0)
    step, calls = Condensed._step, []

    def stopping(self, *args, **kwargs):
        calls.append(None)
        if len(calls) in (2, 4):  # the first steps of the later starts are those that were broken off
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Condensed, "_step", stopping)
    for _ in range(2):
        with pytest.raises(SystemExit):
            run(validate, validate_flags(tmp_path / "stopped", *flags))
        torch.manual_seed(99)
    run(validate, validate_flags(tmp_path / "stopped", *flags))
    assert len(calls) == 5 + 2
    (path, whole), (again, stopped) = made(tmp_path / "whole"), made(tmp_path / "stopped")
    assert path.name == again.name
    assert torch.equal(whole[0], stopped[0])


@pytest.mark.parametrize("codec", CODECS)
def test_bytes_are_those_of_the_codec_and_a_budget_is_held(codec, tmp_path):
    data = load_data("digits", "")
    how = Condensing.of({"condense_steps": 3, "condense_batch": 8})
    found = CondensedSets(data, how, codec, 50, tmp_path, 0, "", CPU)
    source, coder = found.fixed(2), make_codec(codec, 50, data.info)
    assert len(source.labels) == 20
    if codec == "raw":
        assert source.num_bytes == 20 * 784
    else:
        assert (
            source.num_bytes
            == sum(len(code) + 2 for code in encode_images(coder, found.images(2).images)) + coder.shared
        )
    loss = (source.images - (found.images(2).images.float() / 127.5 - 1)).abs().mean()
    assert (loss > 0) == (codec in LOSSY)
    stored, num_bytes = found.within(2, 20_000, 40).choose(0)
    assert num_bytes + 40 * len(stored) <= 20_000
    assert torch.bincount(stored.labels).min() >= 1


def test_rows_of_as_many_bytes_as_a_generator(trained, tmp_path, capsys):
    weight = [
        "--pretrain-weight",
        str(trained / "gan" / "last.pth"),
        "--source",
        "generator",
        "condensed",
        "--match-bytes",
    ]
    flags = [*FLAGS[:2], *FLAGS[4:], *weight, "--repeats", "1", "--codec", "jpeg", "--quality", "60"]
    rows = run(validate, validate_flags(tmp_path, *flags))
    assert "images in jpeg" in capsys.readouterr().out
    assert [row["source"] for row in rows] == [
        "generator",
        "condensed",
        "random-real-raw",
        "random-real-lossless",
        "random-real-jpeg",
        "random-real-jpeg-scan",
        "condensed-jpeg",
    ]
    size, row = rows[0]["num_bytes"], rows[-1]
    assert 0.5 * size < row["num_bytes"] <= size
    assert (row["match_bytes"], row["quality"], row["codec"]) == (size, 60, "jpeg")
    assert (row["steps"], row["images_seen"]) == (rows[0]["steps"], rows[0]["images_seen"])
    assert rows[1]["num_bytes"] < 30 * 784


def test_condensed_images_teach_more_than_those_they_start_from(tmp_path):
    """One image a class of the digits, matched for 80 steps by mean features of narrow networks."""
    flags = [
        "--data",
        "digits",
        "--source",
        "condensed",
        "--condense-batch",
        "16",
        "--budget",
        "fixed",
        "--ipc",
        "1",
        "--epochs-eval",
        "60",
    ]
    before, after = (
        run(
            validate,
            validate_flags(
                tmp_path, *flags, "--repeats", "3", "--condense-lr", lr, "--condense-steps", steps
            ),
        )[0]["mean"]
        for lr, steps in (("1e-9", "1"), ("2", "80"))
    )
    assert after > before + 4


def test_permuted_labels_of_condensed_images_give_chance(tmp_path, monkeypatch):
    contents, flags = Condensed.contents, [*FLAGS, "--epochs-eval", "40", "--repeats", "3"]
    (right,) = run(validate, validate_flags(tmp_path / "right", *flags))

    def permuted(self):
        found = contents(self)
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(3))
        return ImageSet(found.images[order], found.labels)

    monkeypatch.setattr(Condensed, "contents", permuted)
    (wrong,) = run(validate, validate_flags(tmp_path / "wrong", *flags))
    assert wrong["mean"] == pytest.approx(10, abs=8)
    assert right["mean"] > 50
