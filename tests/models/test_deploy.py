"""Generators as they are deployed: stored, shipped, several as one, filtered."""

import json

import pytest
import torch
from conftest import ROOT, run, validate_flags
from inputs import reference_checkpoint
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import pool_match
import validate
from data import DATASETS, load_data
from engine.runtime import Runtime
from models import (
    GANS,
    build_classifier,
    build_gan,
    decode,
    load_generator,
    read_classifier,
    read_gan,
    save_classifier,
)
from models.deploy import Filtered
from scoring import evaluation
from scoring.results import describe
from scoring.sources import generate
from scoring.storage import encode, num_bytes, store
from utils import UsageError

CPU = Runtime(torch.device("cpu"))
INFO = DATASETS["digits"].info


class Constant(nn.Module):
    """Images whose first pixels are the class, this generator's number and the number of calls."""

    num_classes = 3

    def __init__(self, number: float):
        super().__init__()
        self.number, self.calls = number, 0

    def sample(self, y, rng=None):
        images = torch.zeros(len(y), 1, 1, 4)
        images[:, 0, 0, 0], images[:, 0, 0, 1], images[:, 0, 0, 2] = y.float(), self.number, self.calls
        self.calls += 1
        return images


# filtered


class Teacher(nn.Module):
    """Sure of what the second call and later ones make, but for class 0, of which it is never sure."""

    def forward(self, images):
        logits = torch.zeros(len(images), 3)
        labels = images[:, 0, 0, 0].long()
        sure = (images[:, 0, 0, 2] >= 1) & (labels > 0)
        logits[torch.arange(len(images)), labels] = torch.where(sure, 20.0, 0.01 * images[:, 0, 0, 2])
        return logits


def test_images_are_drawn_again_until_the_teacher_is_sure_and_classes_stay_balanced():
    generator, y = Constant(0), torch.arange(3).repeat_interleave(4)
    images = Filtered(generator, Teacher(), 0.9, redraws=5).sample(y)
    assert torch.equal(images[:, 0, 0, 0], y.float())
    assert images[4:, 0, 0, 2].tolist() == [1.0] * 8  # the second draw
    assert images[:4, 0, 0, 2].tolist() == [5.0] * 4  # never sure enough: the surest of six
    assert generator.calls == 6
    easy = Constant(0)
    Filtered(easy, Teacher(), 0.1).sample(y)
    assert easy.calls == 1


def test_a_row_of_filtered_images(trained, tmp_path, capsys):
    weight = ["--source", "generator", "--pretrain-weight", str(trained / "match" / "last.pth")]
    taught = validate_flags(
        tmp_path / "teacher",
        "--data",
        "digits",
        "--source",
        "real",
        "--save-classifiers",
        "--val-size",
        "100",
        "--seed",
        "7",
    )
    run(validate, taught)
    saved = sorted((tmp_path / "teacher" / "test" / "classifiers").iterdir())
    assert len(saved) == 2
    assert saved[0].name.startswith("convnet_w32_real_stream_ipc3_")
    run(validate, [*taught, "--epochs-eval", "3"])  # classifiers of another row lie beside them
    assert len(list(saved[0].parent.iterdir())) == 4
    assert saved[0].stat().st_mtime_ns < max(path.stat().st_mtime_ns for path in saved[0].parent.iterdir())
    plain, filtered = (
        run(validate, validate_flags(tmp_path, *weight, *extra))[0]
        for extra in ([], ["--filter", "0.5", "--teacher", str(saved[0])])
    )
    teacher = read_classifier(saved[0])
    assert filtered["num_bytes"] == plain["num_bytes"] + num_bytes(teacher.classifier)
    assert (filtered["filter"], filtered["teacher"]) == (0.5, "convnet_w32")
    assert filtered["accs"] != plain["accs"]
    capsys.readouterr()
    run(
        validate,
        validate_flags(tmp_path, *weight, "--filter", "0.5", "--teacher", str(saved[0]), "--val-size", "200"),
    )
    assert (
        f"{saved[0]} was trained with --val-size 100: it has seen images held out now"
        in capsys.readouterr().err
    )


def test_classifiers_are_kept_where_the_rows_were_there_before(tmp_path):
    flags = validate_flags(tmp_path, "--data", "digits", "--source", "real", "--repeats", "1")
    plain, kept = run(validate, flags), run(validate, [*flags, "--save-classifiers"])
    assert len(list((tmp_path / "test" / "classifiers").iterdir())) == 1
    assert kept[0]["accs"] == plain[0]["accs"]


def test_the_table_says_what_is_stored(trained, tmp_path, capsys):
    weight = ["--pretrain-weight", str(trained / "gan" / "last.pth")]
    rows = run(validate, validate_flags(tmp_path, "--source", "generator", "--storage", "fp16", *weight))
    assert f"  {rows[0]['num_bytes'] / 1e6:.2f} MB, fp16  " in capsys.readouterr().out
    assert describe(rows[0] | {"filter": 0.5}).endswith(" MB, fp16, filter 0.5")


def test_a_saved_classifier_is_the_one_that_was_tested(tmp_path):
    row = run(
        validate,
        validate_flags(
            tmp_path, "--data", "digits", "--source", "real", "--save-classifiers", "--repeats", "1"
        ),
    )[0]
    (path,) = (tmp_path / "test" / "classifiers").iterdir()
    saved = read_classifier(path)
    data = load_data("digits", "nowhere")
    assert evaluation.accuracy(evaluation.confusion_matrix(saved.classifier, data.test, 10)) == pytest.approx(
        row["mean"], abs=1e-3
    )
    assert (saved.network, saved.info, saved.val_size) == ("convnet_w32", INFO, 0)
    assert not saved.classifier.training


# stored


@pytest.mark.parametrize("storage", ["fp32", "fp16", "int8"])
def test_an_export_gives_the_same_images_and_the_same_row(storage, trained, tmp_path):
    weight = trained / "match" / "last.pth"
    flags = ["--source", "generator", "--storage", storage]
    row = run(
        validate,
        validate_flags(tmp_path, *flags, "--pretrain-weight", str(weight), "--export", str(tmp_path / "out")),
    )[0]
    path = tmp_path / "out" / "generator.safetensors"
    back = run(
        validate, validate_flags(tmp_path / "back", "--source", "generator", "--pretrain-weight", str(path))
    )[0]
    assert (back["accs"], back["generator_bytes"], back["storage"]) == (
        row["accs"],
        row["generator_bytes"],
        storage,
    )
    expected, actual = store(load_generator(weight), storage), load_generator(path)
    y = torch.arange(10)
    draws = [torch.Generator().manual_seed(0) for _ in range(2)]
    assert torch.equal(expected.sample(y, draws[0]), actual.sample(y, draws[1]))
    assert actual.fc1.weight.dtype == torch.float32
    assert path.stat().st_size == pytest.approx(num_bytes(actual, storage), abs=8192)
    kinds = {
        "fp32": {torch.float32},
        "fp16": {torch.float16},
        "int8": {torch.int8, torch.float16, torch.float32},
    }  # weights, biases, scales
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if "tracked" not in name]  # noqa: SIM118
        assert {file.get_tensor(name).dtype for name in names} == kinds[storage]


@pytest.mark.parametrize("gan", GANS)
def test_int8_keeps_each_output_channel_to_a_254th_of_its_range(gan):
    torch.manual_seed(0)
    generator, _ = build_gan(
        {"gan": gan, "num_classes": 10, "channels": 3, "image_size": 32, "width": 8, "z_dim": 20}
    )
    kept = encode(generator, "int8")
    assert sum(t.numel() * t.element_size() for t in kept.values()) == num_bytes(generator, "int8")
    back, layers = decode(kept), 0
    for path, part in generator.named_modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            layers += 1
            channels = part.weight.transpose(0, 1) if isinstance(part, nn.ConvTranspose2d) else part.weight
            actual = (
                back[f"{path}.weight"].transpose(0, 1)
                if isinstance(part, nn.ConvTranspose2d)
                else back[f"{path}.weight"]
            )
            step = channels.detach().flatten(1).abs().amax(1) / 127  # of each output channel its own
            error = (actual - channels).detach().flatten(1).abs().amax(1)
            assert (error <= step / 2 * 1.001).all(), path
            assert len(step.unique()) > 1 or len(step) == 1
    assert layers > 3
    assert store(generator, "int8") is generator
    assert all(
        torch.equal(value, back[name]) for name, value in generator.state_dict().items() if name in back
    )


def test_int8_of_zeros_is_zeros():
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    assert not decode(encode(layer, "int8"))["weight"].any()


def test_half_the_bytes_and_close_to_the_same_images(trained):
    generator = load_generator(trained / "match" / "last.pth")
    labels = torch.arange(10)
    whole = generate(generator, labels, torch.Generator().manual_seed(0), CPU)
    assert num_bytes(generator, "fp16") * 2 == num_bytes(generator)
    rounded = generate(store(generator, "fp16"), labels, torch.Generator().manual_seed(0), CPU)
    assert 0 < (rounded - whole).abs().max() < 0.02


def test_a_value_that_fp16_cannot_hold_is_refused(trained):
    generator = load_generator(trained / "match" / "last.pth")
    generator.fc1.weight.data[0, 0] = 1e6
    with pytest.raises(UsageError, match="--storage fp16: a value of 1e"):
        store(generator, "fp16")


@pytest.mark.parametrize("path", sorted((ROOT / "weights").iterdir()), ids=lambda path: path.stem)
def test_released_weights(path):
    generator = load_generator(path)
    images = generator.sample(torch.arange(10))
    assert images.shape == (10, generator.channels, generator.image_size, generator.image_size)
    assert images.std(0).mean() > 0.1  # the classes differ
    assert f"weights/{path.name}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "weights").iterdir()), ids=lambda path: path.stem)
def test_released_weights_teach(path, data_dir, tmp_path):
    quick = "--ipc 50 --epochs-eval 15 --repeats 1 --source generator real".split()
    row, real = run(
        validate,
        validate_flags(tmp_path, "--pretrain-weight", str(path), "--data-dir", str(data_dir), *quick),
    )
    assert row["mean"] > 0.55 * real["mean"] > 12  # chance is 10


# faults


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--filter", "0.5"], "--filter needs --teacher, the file of a classifier"),
        (
            ["--filter", "1.5", "--teacher", "x"],
            "argument --filter: found 1.5, expected a number >= 0 and <= 1",
        ),
        (["--filter", "0.5", "--teacher", "missing.pth"], "missing.pth: no such file, expected a checkpoint"),
        (
            ["--filter", "0.5", "--teacher", "{gan}"],
            "not a classifier that validate.py --save-classifiers wrote",
        ),
        (
            ["--filter", "0.5", "--teacher", "{cifar}"],
            "was trained on cifar10, expected a classifier of digits",
        ),
        (
            ["--filter", "0.5", "--teacher", "{mnist}"],
            "was trained on mnist, expected a classifier of digits",
        ),
        (
            ["--pretrain-weight", "{reference}", "--data", "digits", "--export", "out"],
            "names no data set, expected a checkpoint written here",
        ),
        (
            ["--pretrain-weight", "{odd}"],
            "not a generator exported here: its storage int3 is missing or of another kind",
        ),
        (["--pretrain-weight", "{short}"], "not a generator exported here: its 'channels' is missing"),
        (
            ["--pretrain-weight", "{gan}", "missing.safetensors"],
            "missing.safetensors: no such file, expected a generator in safetensors",
        ),
        (
            ["--pretrain-weight", "{torn}"],
            "expected safetensors, found 40 bytes of another kind, or truncated",
        ),
        (["--pretrain-weight", "{strange}"], "not a generator exported here: its 'generator' is missing"),
        (["--pretrain-weight", "{gan}", "{other}"], "was made for num classes 3, found 10"),
        (
            ["--pretrain-weight", "{gan}", "{gan}", "--export", "out"],
            "--export out: expected one --pretrain-weight, found 2",
        ),
        (["--storage", "int3"], "argument --storage: invalid choice"),
    ],
)
def test_bad_input_is_one_line(flags, message, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_classifier(
        tmp_path / "cifar.pth",
        build_classifier("convnet_w32", DATASETS["cifar10"].info),
        "convnet_w32",
        DATASETS["cifar10"].info,
        0,
    )
    mnist = DATASETS["mnist"].info
    save_classifier(tmp_path / "mnist.pth", build_classifier("convnet_w32", mnist), "convnet_w32", mnist, 0)
    config = {"num_classes": 10, "channels": 1, "image_size": 28, "width": 4, "z_dim": 100}
    header = {"config": config, "info": mnist.to_dict(), "val_size": 0, "storage": "int3"}
    save_file({"x": torch.zeros(3)}, tmp_path / "odd.safetensors", {"generator": json.dumps(header)})
    header |= {"storage": "fp16", "config": {"width": 4, "num_classes": 10}}
    save_file({"x": torch.zeros(3)}, tmp_path / "short.safetensors", {"generator": json.dumps(header)})
    reference_checkpoint(tmp_path / "reference.pth", channels=1, size=28)
    exported = tmp_path / "whole.safetensors"
    save_file({"x": torch.zeros(3)}, tmp_path / "strange.safetensors")
    exported.write_bytes((tmp_path / "strange.safetensors").read_bytes()[:40])
    reference_checkpoint(tmp_path / "other.pth", channels=1, size=28, classes=3)
    names = {
        "gan": trained / "gan" / "last.pth",
        "torn": exported,
        "strange": tmp_path / "strange.safetensors",
    }
    names |= {name: tmp_path / f"{name}.safetensors" for name in ("odd", "short")}
    names |= {name: tmp_path / f"{name}.pth" for name in ("mnist", "reference")}
    names |= {"cifar": tmp_path / "cifar.pth", "other": tmp_path / "other.pth"}
    before = sorted(tmp_path.rglob("*"))
    default = [] if "--pretrain-weight" in flags else ["--pretrain-weight", str(trained / "gan" / "last.pth")]
    with pytest.raises(SystemExit) as stop:
        run(
            validate,
            validate_flags(
                tmp_path, "--source", "generator", *default, *(flag.format(**names) for flag in flags)
            ),
        )
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning")]
    assert message in line
    assert sorted(tmp_path.rglob("*")) == before


def test_stage_2_wants_a_discriminator(trained, tmp_path, capsys):
    run(
        validate,
        validate_flags(
            tmp_path,
            "--source",
            "generator",
            "--pretrain-weight",
            str(trained / "gan" / "last.pth"),
            "--export",
            str(tmp_path),
        ),
    )
    path = tmp_path / "generator.safetensors"
    with pytest.raises(SystemExit):
        run(
            pool_match,
            ["--tag", "m", "--results-dir", str(tmp_path), "--weight", str(path), "--device", "cpu"],
        )
    assert (
        "holds a generator without its discriminator, expected a checkpoint of GAN training"
        in capsys.readouterr().err
    )
    assert read_gan(path).info == INFO
