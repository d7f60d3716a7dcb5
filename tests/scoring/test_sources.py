"""What is trained on: each source is what its row says, its bytes are the bytes, and what is exported is what
was scored."""

import base64
import io
import json
import math
import statistics

import numpy as np
import pytest
import torch
from conftest import run, validate_flags
from PIL import Image

import validate
from data import ImageSet, load_data, to_float
from engine.runtime import Runtime
from engine.seeds import RandomStreams, seeded
from models import build_classifier, build_gan, load_generator, read_classifier
from scoring import trainer
from scoring.evaluation import curve_epochs, validate_group
from scoring.herding import herding_order
from scoring.recipes import RECIPES, Recipe, make_recipe
from scoring.results import over_trainings
from scoring.samples import make_samples
from scoring.sources import Fixed, Generated, Labelled, Real, Teacher, WithinBytes, draw_fixed
from scoring.storage import encode_images, make_codec, num_bytes
from utils import UsageError

CPU = Runtime(torch.device("cpu"))
DRAWS = RandomStreams.seeded(0, CPU.device)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", "")


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return build_gan({"num_classes": 10, "channels": 1, "image_size": 28, "width": 8, "z_dim": 100})[0]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The file of a classifier of digits."""
    folder = tmp_path_factory.mktemp("teacher")
    flags = [
        "--data",
        "digits",
        "--source",
        "real",
        "--save-classifiers",
        "--ipc",
        "20",
        "--repeats",
        "1",
        "--seed",
        "7",
    ]
    run(validate, validate_flags(folder, *flags))
    return next((folder / "test" / "classifiers").iterdir())


# bytes


@pytest.mark.parametrize("codec", ["raw", "webp", "jpeg", "jpeg-scan"])
@pytest.mark.parametrize("item_bytes", [0, 40])
def test_as_many_real_images_as_fit(codec, item_bytes, digits):
    source = WithinBytes(digits.train, 4, digits.info, 40_000, codec, 75, item_bytes)
    stored, size = source.choose(0)
    coder = make_codec(codec, 75, digits.info)
    counts = torch.bincount(stored.labels, minlength=10)
    assert 40_000 - 10 * 1500 < size + item_bytes * len(stored) <= 40_000
    if codec == "raw":
        assert counts.tolist() == [4000 // (784 + item_bytes)] * 10
        assert size == len(stored) * 784
        assert all((digits.train.images == image).flatten(1).all(1).any() for image in stored.images[:5])
    elif codec == "webp":  # lossless: decoded they are the real ones, and encoded again as large as it says
        assert counts.sum() > 10 * (4000 // (784 + item_bytes))
        assert size == sum(len(code) + 2 for code in encode_images(coder, stored.images))
        assert all((digits.train.images == image).flatten(1).all(1).any() for image in stored.images[:5])
    else:  # decoded as stored, so no longer what it was
        assert not any((digits.train.images == image).flatten(1).all(1).any() for image in stored.images[:5])
    assert torch.equal(source.choose(0)[0].images, stored.images)
    assert not torch.equal(source.choose(1)[0].images[:3], stored.images[:3])
    opened = source.open(0, DRAWS)
    images, labels = next(opened.epochs)
    assert (images.shape, opened.num_images, opened.num_bytes) == ((40, 1, 28, 28), len(stored), size)
    assert torch.bincount(labels).tolist() == [4] * 10


def test_room_for_less_than_one_of_each_class_is_refused(digits):
    with pytest.raises(
        UsageError, match="--match-bytes: 700 bytes for class 0 hold no image, expected 784 or more"
    ):
        WithinBytes(digits.train, 4, digits.info, 7000, "raw", 75).choose(0)


def test_rows_of_as_many_bytes(trained, tmp_path):
    weight = [
        "--pretrain-weight",
        str(trained / "gan" / "last.pth"),
        "--source",
        "generator",
        "--match-bytes",
    ]
    rows = run(validate, validate_flags(tmp_path, *weight, "--samples", "0"))
    assert [row["source"] for row in rows] == [
        "generator",
        "random-real-raw",
        "random-real-lossless",
        "random-real-jpeg",
        "random-real-jpeg-scan",
    ]
    size = rows[0]["num_bytes"]
    assert size == rows[0]["generator_bytes"] == num_bytes(load_generator(trained / "gan" / "last.pth"))
    assert rows[1]["num_bytes"] == size // 10 // 784 * 784 * 10
    for row in rows[1:]:
        assert row["match_bytes"] == size
        assert size * 0.8 < row["num_bytes"] <= size
        assert row["bits_per_class"] == pytest.approx(8 * row["num_bytes"] / 10)
        assert (row["steps"], row["images_seen"]) == (rows[0]["steps"], rows[0]["images_seen"])
    assert rows[1]["num_images"] < rows[2]["num_images"]
    assert [row["quality"] for row in rows] == [None, None, None, 75, 75]


# fixed sets


def test_a_fixed_set_is_uint8_and_drawn_from_its_seed(generator):
    images, labels = draw_fixed(generator, 3, 5, CPU)
    assert (images.dtype, images.shape) == (torch.uint8, (30, 1, 28, 28))
    assert torch.equal(labels, torch.arange(10).repeat_interleave(3))
    assert torch.equal(images, draw_fixed(generator, 3, 5, CPU)[0])
    assert not torch.equal(images, draw_fixed(generator, 3, 6, CPU)[0])
    own, shared = Generated(generator, 3, True, 9, CPU), Generated(generator, 3, True, 9, CPU, 5)
    assert torch.equal(next(shared.open(1, DRAWS).epochs)[0], to_float(images))
    assert torch.equal(next(own.open(5, DRAWS).epochs)[0], to_float(images))
    assert not torch.equal(next(own.open(1, DRAWS).epochs)[0], to_float(images))
    opened = own.open(1, DRAWS)
    assert (opened.num_images, opened.num_bytes) == (None, 9)
    assert next(opened.epochs)[0] is next(opened.epochs)[0]


@pytest.mark.parametrize("storage", ["fp32", "int8"])
def test_an_export_reads_back_to_the_same_accuracy(storage, trained, teacher, tmp_path):
    weight = [
        "--pretrain-weight",
        str(trained / "match" / "last.pth"),
        "--source",
        "generator",
        "--storage",
        storage,
    ]
    soft = ["--labels", "hard", "soft", "--teacher", str(teacher), "--temperature", "2"]
    common = ["--budget", "fixed", "--epochs-eval", "8", "--data", "digits", "--ipc", "3", "5"]
    rows = run(validate, validate_flags(tmp_path, *weight, *soft, *common, "--export", str(tmp_path / "out")))
    scored = {(row["ipc"], row["labels"]): row["accs"] for row in rows}
    assert len(scored) == 4
    assert all(row["drawn"] == "exported" for row in rows)
    names = {(ipc, "hard"): [f"ipc{ipc}.pt", f"ipc{ipc}"] for ipc in (3, 5)} | {
        (ipc, "soft"): [f"ipc{ipc}_soft.pt"] for ipc in (3, 5)
    }
    for key, files in names.items():
        for name in files:
            flags = ["--source", "file", "--file", str(tmp_path / "out" / name), *common[:-2]]
            (row,) = run(validate, validate_flags(tmp_path / f"back_{name}", *flags, str(key[0])))[:1]
            assert row["accs"] == scored[key], name
            assert row["labels"] == key[1]
            assert row["num_bytes"] == 10 * key[0] * (784 + (40 if key[1] == "soft" else 0))
    assert len(set(map(tuple, scored.values()))) == 4


def exported(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_export_replaces_an_earlier_one_as_a_whole(trained, tmp_path, monkeypatch):
    out = tmp_path / "out"
    flags = [
        "--pretrain-weight",
        str(trained / "gan" / "last.pth"),
        "--source",
        "generator",
        "--repeats",
        "1",
        "--export",
        str(out),
    ]
    out.mkdir()
    (out / "notes.txt").write_text("mine")  # no part of an export: stays
    run(validate, validate_flags(tmp_path, *flags, "--ipc", "3", "5"))
    assert exported(out) == ["generator.safetensors", "ipc3", "ipc3.pt", "ipc5", "ipc5.pt", "notes.txt"]
    first = (out / "ipc3.pt").read_bytes()
    other = ["--pretrain-weight", str(trained / "match" / "last.pth"), *flags[2:]]
    run(validate, validate_flags(tmp_path, *other, "--ipc", "2", "3"))
    assert exported(out) == ["generator.safetensors", "ipc2", "ipc2.pt", "ipc3", "ipc3.pt", "notes.txt"]
    assert (out / "ipc3.pt").read_bytes() != first
    second = (out / "ipc2.pt").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device", str(out))

    monkeypatch.setattr(
        "scoring.exporting.write_distilled", full
    )  # stopped half-way: the earlier one is whole
    with pytest.raises(SystemExit):
        run(validate, validate_flags(tmp_path, *flags, "--ipc", "4"))
    assert exported(out) == ["generator.safetensors", "ipc2", "ipc2.pt", "ipc3", "ipc3.pt", "notes.txt"]
    assert (out / "ipc2.pt").read_bytes() == second


def test_an_export_deletes_no_file_of_the_users(trained, tmp_path, capsys):
    (tmp_path / "out" / "ipc3" / "0").mkdir(parents=True)
    (tmp_path / "out" / "ipc3" / "0" / "holiday.png").write_text("")
    before = sorted(tmp_path.rglob("*"))
    flags = [
        "--pretrain-weight",
        str(trained / "gan" / "last.pth"),
        "--source",
        "generator",
        "--export",
        str(tmp_path / "out"),
    ]
    with pytest.raises(SystemExit) as stop:
        run(validate, validate_flags(tmp_path, *flags))
    assert stop.value.code == 2
    assert "holiday.png is no part of an earlier export" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


# chosen


def test_herding_follows_the_mean_of_its_class():
    class Features(torch.nn.Module):
        def logits_and_features(self, images):
            return None, [images.flatten(1)]

    # of one class unit vectors at 0, 2, 4 and 90 degrees, of another at 180, 190, 200
    angles = torch.tensor([0.0, 2.0, 4.0, 90.0, 180.0, 190.0, 200.0]).deg2rad()
    points = torch.stack([angles.cos(), angles.sin()], 1).view(7, 1, 1, 2)

    class Set(ImageSet):
        def batch(self, index):
            return self.images[index], self.labels[index]

    order = herding_order(Features(), Set(3 * points, torch.tensor([0, 0, 0, 0, 1, 1, 1])), 3, 2)
    assert order[0].tolist() == [
        2,
        1,
        3,
    ]  # with two at 3 degrees, the one at 90 brings their mean closest, though it is the farthest
    assert order[1][0] == 5
    assert sorted(order[1].tolist()) == [4, 5, 6]


def test_a_row_of_herding_keeps_its_network_and_beats_chance(tmp_path):
    flags = validate_flags(
        tmp_path, "--data", "digits", "--source", "herding", "--herding-epochs", "1", "--epochs-eval", "30"
    )
    (row,) = run(validate, flags)
    (path,) = (tmp_path / "test" / "classifiers").iterdir()
    assert row["chosen_by"] == f"convnet_w32, 1 epochs, {path.stem}"
    assert (row["num_images"], row["num_bytes"]) == (30, 30 * 784)
    written = path.stat().st_mtime_ns
    more = run(validate, [*flags, "--ipc", "1", "3"])
    assert more[1]["accs"] == row["accs"]
    assert path.stat().st_mtime_ns == written
    assert row["mean"] > 25


# labels


def test_a_teachers_labels(digits, generator):
    torch.manual_seed(0)
    classifier = build_classifier("convnet_w32", digits.info)
    sharp, soft = (Teacher(classifier, 1000, temperature, {}) for temperature in (1.0, 4.0))
    images = digits.train.batch(torch.arange(30))[0]
    expected = (classifier.eval()(images) / 4).softmax(1)
    assert torch.allclose(soft.labels(images), expected, atol=1e-6)
    assert soft.labels(images).max(1)[0].mean() < sharp.labels(images).max(1)[0].mean()
    fixed = Labelled(Fixed(images, digits.train.labels[:30]), soft, 10, 1000).open(0, DRAWS)
    found, labels = next(fixed.epochs)
    assert found is images
    assert torch.allclose(labels, expected, atol=1e-6)
    assert next(fixed.epochs)[1] is labels  # not asked again
    assert (fixed.num_images, fixed.num_bytes) == (30, 30 * 784 + 30 * 40)  # labels lie beside stored images
    stream = Labelled(Generated(generator, 2, False, 500, CPU), soft, 10, 1000).open(0, DRAWS)
    assert stream.num_bytes == 1500  # a generator needs its teacher
    (a, labels), (b, others) = next(stream.epochs), next(stream.epochs)
    assert not torch.equal(a, b)
    assert not torch.equal(labels, others)


def test_rows_of_soft_labels_are_their_own(trained, teacher, tmp_path):
    flags = [
        "--pretrain-weight",
        str(trained / "gan" / "last.pth"),
        "--source",
        "generator",
        "random-real",
        "--match-bytes",
    ]
    rows = run(
        validate,
        validate_flags(
            tmp_path, *flags, "--labels", "soft", "hard", "--teacher", str(teacher), "--temperature", "4"
        ),
    )
    assert [row["labels"] for row in rows] == ["hard"] * 6 + ["soft"] * 6
    hard, soft = rows[:6], rows[6:]
    saved = read_classifier(teacher)
    assert soft[0]["num_bytes"] == hard[0]["num_bytes"] + num_bytes(saved.classifier)
    assert soft[1]["num_bytes"] == hard[1]["num_bytes"] + 30 * 40
    assert soft[2]["match_bytes"] == hard[2]["match_bytes"]
    assert soft[2]["num_images"] < hard[2]["num_images"]
    assert soft[2]["num_bytes"] <= soft[2]["match_bytes"]
    assert (soft[0]["temperature"], soft[0]["teacher"], hard[0]["teacher"]) == (4.0, "convnet_w32", None)
    assert all(a["accs"] != b["accs"] for a, b in zip(hard[:2], soft[:2], strict=True))


# recipes


def test_strong_decays_by_cosine_flips_where_the_class_survives_mixes_and_averages():
    strong = make_recipe("strong", "cifar10", epochs=4)
    assert (strong.mix_p, strong.ema, strong.dsa_strategy) == (0.5, 0.99, "flip_color_crop")
    assert [strong.rate(epoch) for epoch in range(4)] == pytest.approx(
        [strong.lr * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    )
    for name, flips in (
        ("fashion", True),
        ("cifar100", True),
        ("digits", False),
        ("svhn", False),
        ("mnist", False),
        ("folder", False),
    ):
        assert ("flip" in make_recipe("strong", name).dsa_strategy) == flips
    assert make_recipe("strong", "svhn", dsa_strategy="flip").dsa_strategy == "flip"  # who names it has it
    assert make_recipe("dc", "svhn") == RECIPES["dc"]
    assert make_recipe("dim", "svhn", mix_p=-1.0, epochs=None) == RECIPES["dim"]


def test_the_averaged_weights_are_those_that_are_tested(digits):
    def trained(ema: float) -> tuple[dict, float]:
        recipe, kept = Recipe(6, 20, 0.01, "none", "none", "dim", -1.0, ema), []
        outcome = validate_group(
            "convnet_w32", Real(digits.train, 2, 10), digits, recipe, [3], CPU, lambda c, seed: kept.append(c)
        )[0]
        images = kept[0].eval()(digits.test.batch(torch.arange(297))[0]).argmax(1)
        assert outcome.accuracy == pytest.approx(
            100 * float((images == digits.test.labels).float().mean()), abs=1e-3
        )
        return kept[0].state_dict()

    states = []

    plain, averaged = trained(0.0), trained(0.5)
    recipe = Recipe(6, 20, 0.01, "none", "none", "dim", -1.0)
    with seeded(CPU.device, 3, "init"):
        classifier = build_classifier("convnet_w32", digits.info)
    expected = {name: value.clone() for name, value in classifier.state_dict().items()}
    streams = RandomStreams.seeded(3, CPU.device)
    epochs = Real(digits.train, 2, 10).open(3, streams).epochs
    for _ in trainer.train_steps(classifier, epochs, recipe, streams, CPU):
        states.append({name: value.clone() for name, value in classifier.state_dict().items()})
    for t, state in enumerate(states):
        decay = min(0.5, (1 + t) / (10 + t))
        expected = {name: decay * value + (1 - decay) * state[name] for name, value in expected.items()}
    assert all(torch.allclose(averaged[name], value, atol=1e-5) for name, value in expected.items())
    assert all(torch.equal(plain[name], value) for name, value in states[-1].items())
    assert not all(torch.allclose(averaged[name], value, atol=1e-5) for name, value in states[-1].items())


# what a row keeps


def test_curves_are_tested_on_the_way_and_change_nothing(tmp_path):
    flags = ["--data", "digits", "--source", "real", "--epochs-eval", "9", "--recipe", "strong"]
    (plain,), (curved,) = (
        run(validate, validate_flags(tmp_path, *flags, *more)) for more in ([], ["--curve", "3"])
    )
    assert curved["accs"] == plain["accs"]
    assert curved["curve_images_seen"] == [30 * epochs for epochs in curve_epochs(9, 3)]
    assert [points[-1] for points in curved["curve_accs"]] == curved["accs"]
    assert len(curved["curve_accs"]) == 2
    assert "curve_accs" not in plain
    assert curve_epochs(9, 3) == [2, 4, 9]
    assert curve_epochs(1, 5) == [1]
    assert curve_epochs(1000, 4)[-1] == 1000
    short = [
        "--data",
        "digits",
        "--source",
        "real",
        "--epochs-eval",
        "4",
    ]  # the constant rate: a point is what a shorter run reports
    (point,) = run(validate, validate_flags(tmp_path, *short))
    (longer,) = run(validate, validate_flags(tmp_path, *short[:-1], "9", "--curve", "3"))
    assert [points[1] for points in longer["curve_accs"]] == point["accs"]


def test_confusions_add_up(tmp_path):
    (row,) = run(validate, validate_flags(tmp_path, "--data", "digits", "--source", "real"))
    confusion = np.array([list(map(int, line.split())) for line in row["confusion"]])
    assert confusion.sum(1).tolist() == [
        2 * n for n in torch.bincount(load_data("digits", "").test.labels).tolist()
    ]
    assert 100 * confusion.trace() / confusion.sum() == pytest.approx(row["mean"], abs=1e-3)


def test_samples_are_a_picture_beside_real_images(digits):
    fresh = make_samples(*digits.test.batch(torch.arange(200)), digits, 3)
    assert fresh["images"] != fresh["real"]
    picture = Image.open(io.BytesIO(base64.b64decode(fresh["images"])))
    assert picture.size == (3 * 28, 10 * 28)
    first = (digits.test.labels[:200] == 0).nonzero()[0]
    assert np.array_equal(np.asarray(picture)[:28, :28], digits.test.images[first][0, 0].numpy())


def test_samples_are_kept_once_for_each_generator(trained, tmp_path):
    weights = [
        "--pretrain-weight",
        str(trained / "gan" / "last.pth"),
        str(trained / "match" / "last.pth"),
        "--source",
        "generator",
        "real",
    ]
    rows = run(validate, validate_flags(tmp_path, *weights, "--ipc", "2", "3", "--samples", "2"))
    assert [(row["source"], row["ipc"]) for row in rows if "samples" in row] == [
        ("generator", 2),
        ("generator", 2),
    ]
    assert rows[0]["samples"]["per_class"] == 2
    assert rows[0]["samples"]["images"] != rows[1]["samples"]["images"]


# trainings


def test_the_spread_over_several_trainings(trained, tmp_path, capsys):
    weights = [
        "--pretrain-weight",
        str(trained / "gan" / "last.pth"),
        str(trained / "match" / "last.pth"),
        "--source",
        "generator",
    ]
    rows = run(validate, validate_flags(tmp_path, *weights))
    assert len(rows) == 2
    assert rows[0]["checkpoint_sha256"] != rows[1]["checkpoint_sha256"]
    assert over_trainings(rows) == [rows]
    means = [row["mean"] for row in rows]
    spread = f"{statistics.mean(means):.2f} ± {statistics.stdev(means):.2f}"
    assert f"convnet_w32, generator, stream, ipc 3: {spread} over 2 trainings" in capsys.readouterr().out
    assert over_trainings(rows[:1]) == []


@pytest.mark.parametrize(
    ("ipc", "more", "message"),
    [
        (["5"], [], "--ipc 5: {file} holds 1 image of each class, expected --ipc 1 or no --ipc"),
        (["1", "5"], [], "--ipc 5: there is no such set in --file, and no other source but it"),
        (["5"], ["--source", "file", "random-real"], "--ipc 5: {file} holds 1 image"),
        (["1", "2"], ["--source", "file", "random-real"], None),
    ],
)
def test_the_ipc_of_a_file_is_its_own(ipc, more, message, tmp_path, capsys):
    file = tmp_path / "set.pt"
    torch.save((torch.randint(0, 256, (10, 1, 28, 28), dtype=torch.uint8), torch.arange(10)), file)
    flags = [flag for flag in validate_flags(tmp_path, "--data", "digits") if flag not in ("--ipc", "3")]
    flags += [
        "--source",
        "file",
        "--budget",
        "fixed",
        "--repeats",
        "1",
        "--file",
        str(file),
        *more,
        "--ipc",
        *ipc,
    ]
    if message is None:
        rows = run(validate, flags)
        assert [(row["source"], row["ipc"]) for row in rows] == [
            ("file", 1),
            ("random-real", 1),
            ("random-real", 2),
        ]
        return
    with pytest.raises(SystemExit) as stop:
        run(validate, flags)
    assert stop.value.code == 2
    assert message.format(file=file) in capsys.readouterr().err


# the table


def test_real_is_always_there_unless_it_is_refused(tmp_path):
    flags = [
        flag
        for flag in validate_flags(tmp_path, "--data", "digits", "--source", "random-real")
        if flag != "--no-real"
    ]
    assert [row["source"] for row in run(validate, flags)] == ["random-real", "real"]
    assert [row["source"] for row in run(validate, [*flags, "--no-real"])] == ["random-real"]


def test_what_is_named_twice_is_scored_once(trained, tmp_path):
    weight = [
        "--pretrain-weight",
        *[str(trained / "gan" / "last.pth")] * 2,
        "--source",
        "generator",
        "--repeats",
        "1",
    ]
    (row,) = run(validate, validate_flags(tmp_path, *weight))
    assert row["n"] == 1


def test_several_budgets(trained, tmp_path, monkeypatch):
    calls, group = [], validate.validate_group
    monkeypatch.setattr(validate, "validate_group", lambda *args: calls.append(1) or group(*args))
    weight = [
        "--pretrain-weight",
        str(trained / "gan" / "last.pth"),
        "--source",
        "generator",
        "real",
        "--budget",
        "stream",
        "fixed",
    ]
    rows = run(validate, validate_flags(tmp_path, *weight))
    assert [(row["budget"], row["source"]) for row in rows] == [
        (b, s) for b in ("stream", "fixed") for s in ("generator", "real")
    ]
    assert rows[0]["accs"] != rows[2]["accs"]
    assert rows[1]["accs"] == rows[3]["accs"]
    assert len(calls) == 3 * 2  # real is the same on both, and trained once
    kept = json.loads((tmp_path / "test" / "results.json").read_text())
    assert [row["n"] for row in kept] == [2] * 4
    apart = run(validate, validate_flags(tmp_path / "apart", *weight[:-2], "fixed"))
    assert apart[1]["accs"] == rows[3]["accs"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--source", "file"],
            "--source file and --file need each other: a source, and its files; found none",
        ),
        (
            ["--source", "real", "--file", "x.pt"],
            "--source file and --file need each other: a source, and its files; found --source real",
        ),
        (
            ["--source", "file", "--file", "missing.pt"],
            "missing.pt: no such file, expected images and labels",
        ),
        (["--source", "real", "--labels", "soft"], "--labels soft needs --teacher"),
        (
            ["--source", "real", "--labels", "soft", "--teacher", "nothing.pth"],
            "nothing.pth: no such file, expected a checkpoint",
        ),
        (
            ["--source", "file", "--file", "{soft}", "--labels", "hard"],
            "--labels hard: {soft} holds soft labels",
        ),
        (["--source", "condensed", "--condense-network", "vgg"], "unknown network 'vgg'"),
        (
            ["--source", "condensed", "--ipc", "200"],
            "--ipc 200: class 8, the smallest of digits, has 146 training images for condensed",
        ),
        (
            ["--source", "condensed", "--condense-match", "logit"],
            "argument --condense-match: invalid choice: 'logit'",
        ),
        (
            ["--source", "herding", "--ipc", "200"],
            "--ipc 200: class 8, the smallest of digits, has 146 training images for herding",
        ),
        (
            ["--source", "real", "--temperature", "0"],
            "argument --temperature: found 0, expected a number > 0",
        ),
        (["--source", "real", "--quality", "96"], "argument --quality: found 96"),
        (["--source", "real", "--herding-epochs", "0"], "argument --herding-epochs: found 0"),
        (["--source", "real", "--curve", "-1"], "argument --curve: found -1"),
        (["--source", "real", "--samples", "-1"], "argument --samples: found -1"),
    ],
)
def test_flags_that_contradict_each_other(flags, message, teacher, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soft = tmp_path / "soft.pt"
    torch.save((torch.arange(7840).view(10, 1, 28, 28).byte(), torch.full((10, 10), 0.1)), soft)
    names = {"teacher": teacher, "soft": soft}
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        run(validate, validate_flags(tmp_path, "--data", "digits", *(flag.format(**names) for flag in flags)))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message.format(**names) in line
    assert sorted(tmp_path.rglob("*")) == before
