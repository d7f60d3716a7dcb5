"""Stage 4 through its main, on tiny parts of the digits: every method, resuming, what earlier data can reach,
refusals."""

import json
import os
import re
import shutil
import signal
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import continual_flags, run, same
from PIL import Image

import continual
from data import DATASETS, Data, ImageSet, load_data
from figs.rows import read_runs, rows_of
from models import NETWORKS, STORAGES
from models.condense import Condensed
from models.convnet import ConvNet
from replay import results as replay_results
from replay.continual import Continual
from replay.generation import Replay
from replay.learner import joined
from replay.methods import METHODS, Flag, Method
from replay.plan import listed_classes, split_classes
from scoring.storage import CODECS, LOSSY, make_codec
from utils import UsageError

# Methods and variants of ours, by the flags that make them.
VARIANTS = {
    **{name: (name,) for name in METHODS},
    "fp16": ("dim", "--memory-bytes", "120000", "--storage", "fp16", "--gan", "resnet"),
    "matched": (
        *("dim", "--gan-steps", "0", "--match-batch", "4", "--match-steps", "3", "--rehearse-steps", "4"),
    ),
    "no average": ("dgr", "--restat", "0", "--ema", "0", "--storage", "fp32", "--match-steps", "0"),
    "as er-ace": ("dim", "--replay-loss", "er-ace"),
    "as cls-er": ("dim", "--replay-loss", "cls-er", "--rehearse-steps", "3"),
    "rehearsed": ("der++", "--rehearse-steps", "4", "--rehearse-decay", "linear"),
    "jpeg": ("der++", "--codec", "jpeg", "--dsa-strategy", "crop_flip"),
    "condensed in jpeg": (
        *("condensed", "--buffer-size", "40", "--codec", "jpeg", "--condense-init", "noise"),
        *("--condense-match", "dist"),
    ),
    "condensed, filled": ("condensed", "--fill-real", "--codec", "webp", "--buffer-size", "31"),
    "condensed, filled in jpeg": (
        *("condensed", "--fill-real", "--codec", "jpeg", "--buffer-size", "34", "--rehearse-steps", "3"),
    ),
    "condensed, filled, retrain": ("condensed", "--fill-real", "--retrain", "--retrain-steps", "4"),
    "condensed, as cls-er": ("condensed", "--replay-loss", "cls-er", "--rehearse-steps", "3"),
    "condensed, retrain": ("condensed", "--retrain", "--retrain-steps", "4", "--condense-match", "grad"),
}


def flags(results, variant, *extra):
    method, *more = VARIANTS[variant]
    return continual_flags(results, method, *more, *extra)


def state_of(folder) -> dict:
    """What of a finished run must be equal, bit for bit."""
    state = torch.load(folder / "last.pth", weights_only=True)
    return {name: state[name] for name in ("learners", "memory", "acc", "counters", "position", "rng")}


# Three convolutions, their norms, a linear layer, and the images' mean and standard deviation.
CONVNET_BYTES = 4 * (8 * 9 + 8 + 2 * (8 * 8 * 9 + 8) + 3 * 2 * 8 + 8 * 4 * 4 * 10 + 10 + 2)
FEW = 60  # held-out images that are tested on, some of each class


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A narrow network, tested on few images: what --val-size holds out, and the other widths, would take
    most of the time."""
    load = continual.load_data

    def trimmed(*args, **kwargs):
        data = load(*args, **kwargs)
        return replace(data, val=None if data.val is None else data.val[torch.arange(FEW)])

    monkeypatch.setattr(continual, "load_data", trimmed)
    monkeypatch.setitem(NETWORKS, "convnet_w32", partial(ConvNet, width=8))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(results of a variant run once, its folder), made when asked for."""
    cache = {}

    def get(variant):
        if variant not in cache:
            results = tmp_path_factory.mktemp("finished")
            cache[variant] = run(continual, flags(results, variant)), results / VARIANTS[variant][0]
        return cache[variant]

    return get


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_method_runs_and_says_what_it_keeps(variant, finished, capsys):
    results, folder = finished(variant)
    assert json.loads((folder / "results.json").read_text())["networks"] == results["networks"]
    rows = 1 if variant == "joint" else 5
    for setting in ("class-il", "task-il"):
        found = results["networks"]["convnet_w32"][setting]
        assert [len(row) for row in found["acc"]] == [5] * rows
        assert len(found["initial"]) == 5
        assert found["average_accuracy"] == pytest.approx(sum(found["acc"][-1]) / 5)
        assert results["mean"][setting]["average_accuracy"] == found["average_accuracy"]
    kept = results["num_bytes"]
    assert kept["total"] == sum(size for name, size in kept.items() if name != "total")
    assert (kept["total"] > 0) == (variant not in ("finetune", "joint"))
    assert (results["images_generated"] > 0) == (METHODS[results["method"]].memory == "generator")
    assert len(list((folder / "outputs").glob("*.png"))) == (0 if variant in ("finetune", "joint") else 5)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["task"] for line in metrics] == list(range(1, rows + 1))


def test_what_is_kept_is_what_was_asked_for(finished):
    assert finished("er")[0]["num_bytes"] == {"images": 20 * 784, "labels": 20, "total": 20 * 785}
    assert finished("der++")[0]["num_bytes"] == {
        "images": 20 * 784,
        "labels": 20,
        "logits": 20 * 40,
        "total": 20 * 825,
    }
    assert finished("unlimited")[0]["buffer_images"] == 120
    assert finished("cls-er")[0]["num_bytes"]["copies"] == 2 * CONVNET_BYTES
    assert finished("as cls-er")[0]["num_bytes"]["copies"] == 2 * CONVNET_BYTES
    assert finished("fp16")[0]["num_bytes"]["total"] <= 120_000
    assert set(finished("fp16")[0]["num_bytes"]) == {"weights", "total"}


def test_condensed_images_are_of_each_class_and_not_the_real_ones(finished):
    results, folder = finished("condensed")
    assert results["num_bytes"] == {"images": 20 * 784, "labels": 20, "total": 20 * 785}
    memory = torch.load(folder / "last.pth", weights_only=True)["memory"]["buffer"]
    assert torch.bincount(memory["labels"], minlength=10).tolist() == [2] * 10
    real = {image.numpy().tobytes() for image in load_data("digits", "", val_size=1380).train.images}
    assert not any(image.numpy().tobytes() in real for image in memory["images"])
    assert torch.load(folder / "last.pth", weights_only=True)["condensed"] is None  # their training is over


@pytest.mark.parametrize("codec", CODECS)
def test_condensed_images_hold_the_budget_with_their_codec(codec, tmp_path):
    command = flags(tmp_path, "condensed", "--memory-bytes", "24000", "--codec", codec, "--num-tasks", "2")
    del command[command.index("--buffer-size") : command.index("--buffer-size") + 2]
    results = run(continual, command)
    assert 12_000 < results["num_bytes"]["total"] <= 24_000
    kept = torch.load(tmp_path / "condensed" / "last.pth", weights_only=True)["memory"]["buffer"]
    pixels = 784 * len(kept["labels"]) if codec == "raw" else sum(len(code) + 2 for code in kept["codes"])
    tables = make_codec(codec, 75, DATASETS["digits"].info).shared if codec in LOSSY else 0
    assert results["num_bytes"]["total"] == pixels + tables + len(kept["labels"])
    assert results["buffer_images"] == len(kept["labels"]) >= 30


@pytest.mark.parametrize(
    ("budget", "codec", "line"),
    [
        (
            8000,
            "jpeg",
            r"no condensed image of class \d fits, expected more in another --tag",
        ),  # those from noise grow
        (1500, "webp", r"the share of a class is \d+ bytes, expected room for an image, about \d+"),
    ],
)
def test_a_class_without_a_condensed_image_is_told(budget, codec, line, tmp_path, capsys):
    quality = ["--quality", "95"] if codec == "jpeg" else []
    command = flags(
        tmp_path,
        "condensed",
        "--memory-bytes",
        str(budget),
        "--codec",
        codec,
        *quality,
        "--condense-init",
        "noise",
    )
    del command[command.index("--buffer-size") : command.index("--buffer-size") + 2]
    with pytest.raises(SystemExit, match="2"):
        run(continual, command)
    assert re.search(f"--memory-bytes {budget}: {line}", capsys.readouterr().err)
    assert (tmp_path / "condensed").exists() == (budget == 8000)


def test_a_memory_of_permuted_labels_gives_chance(tmp_path, monkeypatch):
    """Networks that learn from condensed images alone, with their own labels and with permuted ones."""
    monkeypatch.setattr(sys.modules[__name__], "FEW", 300)
    long = (
        "--val-size 900 --retrain --retrain-steps 150 --lr 0.1 --buffer-size 60 --condense-batch 16".split()
    )
    long += ["--num-tasks", "1"]
    right = run(continual, flags(tmp_path / "right", "condensed", *long))
    contents = Condensed.contents

    def permuted(self):
        images, labels = contents(self).images, contents(self).labels
        return ImageSet(
            images, labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))]
        )

    monkeypatch.setattr(Condensed, "contents", permuted)
    wrong = run(continual, flags(tmp_path / "wrong", "condensed", *long))
    found = [results["mean"]["class-il"]["average_accuracy"] for results in (right, wrong)]
    assert found[0] > 60
    assert found[1] == pytest.approx(10, abs=10)


@pytest.mark.parametrize("method", ["er", "cls-er"])
def test_rehearsal_learns_from_memory_after_the_stream(method, tmp_path):
    states = {}
    for steps in ("0", "5"):
        run(continual, flags(tmp_path / steps, method, "--rehearse-steps", steps, "--num-tasks", "2"))
        states[steps] = torch.load(tmp_path / steps / method / "last.pth", weights_only=True)
    plain, rehearsed = states["0"], states["5"]
    assert same(plain["memory"], rehearsed["memory"])  # no image is offered in it
    for part in ("model", *(["averages"] if method == "cls-er" else [])):
        of = [state["learners"]["convnet_w32"][part] for state in (plain, rehearsed)]
        assert not same(*of)


def test_the_rate_of_rehearsal_falls_to_zero_and_that_of_the_stream_does_not(tmp_path, monkeypatch):
    rates, update = [], torch.optim.SGD.step

    def watching(self, *args, **kwargs):
        rates.append(float(self.param_groups[0]["lr"]))
        return update(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", watching)
    rehearsal = ["--num-tasks", "2", "--lr", "0.1", "--rehearse-steps", "4"]
    run(continual, flags(tmp_path, "er", *rehearsal, "--rehearse-decay", "linear"))
    stream = len(rates) // 2 - 4
    assert rates == pytest.approx(2 * [*stream * [0.1], 0.1, 0.075, 0.05, 0.025])
    rates.clear()
    run(continual, flags(tmp_path / "constant", "er", *rehearsal))
    assert set(rates) == {0.1}


def test_images_are_counted(finished):
    per_class, earlier, seen = 12, 2 + 4 + 6 + 8, [2, 4, 6, 8, 10]
    assert finished("dim")[0]["images_generated"] == per_class * earlier
    # 3 or 4 steps of 8 images, on passes over 12 images of each class so far
    for variant, steps in (("as cls-er", 3), ("matched", 4)):
        passes = [-(-steps // -(-per_class * classes // 8)) for classes in seen]
        rehearsed = per_class * sum(n * classes for n, classes in zip(passes, seen, strict=True))
        assert finished(variant)[0]["images_generated"] == per_class * earlier + rehearsed


def test_a_run_that_an_older_version_stopped_is_refused_in_one_line(finished, tmp_path, capsys):
    shutil.copytree(finished("er")[1], tmp_path / "er")
    path = tmp_path / "er" / "args.json"
    args = json.loads(path.read_text())
    args["fixed"] |= {"offer": "step", "filter": 0.0}  # flags of that time
    path.write_text(json.dumps(args))
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        run(continual, flags(tmp_path, "er"))
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'er'} holds a run with the offer step" in line


def test_a_run_writes_the_flags_of_its_method_alone(finished):
    results, folder = finished("er")
    written = results["flags"]
    assert written.keys() == json.loads((folder / "args.json").read_text())["flags"].keys()
    assert written.keys() >= {"method", "buffer_size", "codec", "rehearse_steps", "track"}
    for variant, own in (("dim", "gan_steps"), ("condensed", "condense_steps"), ("cls-er", "consistency")):
        assert own in finished(variant)[0]["flags"]
        assert own not in written
    assert "track" not in finished("dim")[0]["flags"]
    assert finished("dim")[0]["track"] == "offline"


def smooth_loss(learner, current, replays, task):
    """Experience replay with label smoothing."""
    batch = joined([current, *replays])
    logits = learner(batch)
    loss = torch.nn.functional.cross_entropy(logits, batch.y, label_smoothing=task.flags.smoothing)
    return loss, logits[: len(current.y)]


def test_a_method_is_a_loss_and_a_row(finished, tmp_path, monkeypatch, capsys):
    """With a flag of its own; without smoothing it is ER, to the bit, also as the loss of another method."""
    smooth = Method("replay with smooth labels", smooth_loss, flags={"smoothing": Flag(0.1, "of the labels")})
    monkeypatch.setitem(METHODS, "er-smooth", smooth)
    for extra, equal in ((["--smoothing", "0"], True), ([], False)):
        command = [*flags(tmp_path, "er"), "--tag", "smooth", *extra]
        results = run(continual, ["er-smooth", *command[1:]])
        assert results["flags"]["smoothing"] == (0 if equal else 0.1)
        assert (
            same(state_of(tmp_path / "smooth")["learners"], state_of(finished("er")[1])["learners"]) == equal
        )
        assert rows_of(read_runs([str(tmp_path / "smooth")]))[0]["method"] == "er-smooth"
        shutil.rmtree(tmp_path / "smooth")
    run(continual, flags(tmp_path, "condensed", "--replay-loss", "er-smooth", "--smoothing", "0"))
    assert same(state_of(tmp_path / "condensed"), state_of(finished("condensed")[1]))
    capsys.readouterr()
    for command in (["--help"], ["er-smooth", "--help"], ["dim", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            continual.parse_args(command)
    text = capsys.readouterr().out
    assert "er-smooth     replay with smooth labels" in text
    assert re.search(r"--smoothing N +of the labels \(default: 0.1\)", text)
    assert "er-smooth: of the labels" in text


REACHES_BACK = ("joint",)  # by what they are


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in REACHES_BACK])
def test_earlier_data_is_reached_through_memory_alone(variant, finished, tmp_path, monkeypatch):
    _, clean = finished(variant)  # made before the poison
    begin, originals = Continual.begin, []

    def poisoned(self, task):
        originals.extend(
            ImageSet(one.images.clone(), one.labels.clone()) for one in self.plan.tasks[len(originals) :]
        )
        for other, (one, original) in enumerate(zip(self.plan.tasks, originals, strict=True)):
            if other == task:
                one.images.copy_(original.images), one.labels.copy_(original.labels)
            else:  # earlier ones and those to come
                one.images.random_(0, 256, generator=torch.Generator().manual_seed(7))
                one.labels.zero_()
        begin(self, task)

    monkeypatch.setattr(Continual, "begin", poisoned)
    run(continual, flags(tmp_path, variant))
    assert same(state_of(tmp_path / VARIANTS[variant][0]), state_of(clean))


def test_the_poison_is_noticed_where_earlier_data_is_used(finished, tmp_path, monkeypatch):
    begin, sample = Continual.begin, Replay.sample

    def poisoned(self, task):
        for earlier in self.plan.tasks[:task]:
            earlier.images.random_(0, 256, generator=torch.Generator().manual_seed(7))
        begin(self, task)

    def peeking(self, task):
        batch = sample(self, task)
        if batch is not None and task:
            batch.images.copy_(self.plan.tasks[0].batch(torch.arange(len(batch.y)))[0])
        return batch

    monkeypatch.setattr(Replay, "sample", peeking)
    run(continual, flags(tmp_path / "clean", "er"))
    monkeypatch.setattr(Continual, "begin", poisoned)
    run(continual, flags(tmp_path / "poisoned", "er"))
    assert not same(
        state_of(tmp_path / "clean" / "er")["learners"], state_of(tmp_path / "poisoned" / "er")["learners"]
    )


# Steps a task: 3 or 4 on the stream; for generators 3 as a GAN and 2 of matching before; retraining 4 in the
# place of the stream.
STOPS = {
    "er": (0, 1, 3, 4, 8),
    "der++": (4,),
    "cls-er": (5,),
    "rehearsed": (4, 6),
    "jpeg": (7,),
    "condensed": (0, 1, 2, 4, 6, 8, 11, 20),
    "condensed in jpeg": (2, 4, 9),
    "condensed, as cls-er": (4, 9, 11),
    "condensed, filled": (1, 3, 5, 7, 12, 20),
    "condensed, filled in jpeg": (4, 8, 9, 13, 14),
    "condensed, filled, retrain": (2, 5, 9),
    "condensed, retrain": (1, 2, 3, 5, 9, 12),
    "gdumb": (2, 3, 5),
    "dgr": (3, 5, 9, 12, 14),
    "fp16": (11, 15),
    "matched": (2, 3, 5, 7, 9, 12),
    "no average": (4, 8),
    "as cls-er": (5, 9, 11),
    "dim": (1, 3, 4, 5, 8, 9, 12, 13, 14, 23, 41),
}


@pytest.mark.parametrize("variant", STOPS)
def test_stopped_anywhere_the_same_command_comes_to_the_same_end(variant, finished, tmp_path, monkeypatch):
    """Stopped in each of these steps, one start after another."""
    train_tasks, stops = continual.train_tasks, list(STOPS[variant])

    def stopping(learner, start):
        for at in train_tasks(learner, start):
            step = sum(sum(learner.plan.lengths(task).values()) for task in range(at.epoch)) + at.step - 1
            if step in stops:
                stops.remove(step)
                os.kill(os.getpid(), signal.SIGINT)  # arrives during the step, which is saved
            yield at

    monkeypatch.setattr(continual, "train_tasks", stopping)
    while stops:
        left = len(stops)
        with pytest.raises(SystemExit) as error:
            run(continual, flags(tmp_path, variant))
        assert error.value.code == 130
        assert len(stops) == left - 1
        torch.manual_seed(99)  # nothing of the process that was stopped is left
    run(continual, flags(tmp_path, variant))
    assert same(state_of(tmp_path / VARIANTS[variant][0]), state_of(finished(variant)[1]))


def test_stopped_while_it_is_tested_nothing_is_counted_twice(finished, tmp_path, monkeypatch):
    accuracies, calls = replay_results.accuracies, []

    def stopping(*args):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return accuracies(*args)

    monkeypatch.setattr(replay_results, "accuracies", stopping)
    with pytest.raises(SystemExit):
        run(continual, flags(tmp_path, "as cls-er"))
    run(continual, flags(tmp_path, "as cls-er"))
    assert same(state_of(tmp_path / "dim"), state_of(finished("as cls-er")[1]))


def test_a_finished_run_says_its_results_again(finished, capsys):
    results, folder = finished("er")
    again = run(continual, flags(folder.parent, "er"))
    assert again["networks"] == results["networks"]
    assert "kept between tasks: 15,700 bytes (15,680 of images, 20 of labels)" in capsys.readouterr().out


def test_the_line_that_people_know(tmp_path, capsys):
    results = run(continual, flags(tmp_path, "finetune", "--num-tasks", "2"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Accuracy for")]
    found = results["networks"]["convnet_w32"]
    last = [sum(found[setting]["acc"][-1]) / 2 for setting in ("class-il", "task-il")]
    assert lines[1] == f"Accuracy for 2 task(s): \t [Class-IL]: {last[0]:.2f} % \t [Task-IL]: {last[1]:.2f} %"


def test_each_network_of_a_pool_learns_as_it_would_alone(finished, tmp_path, capsys):
    results = run(continual, flags(tmp_path, "er", "--pool", "mlp_w100", "convnet_w32"))
    assert (
        results["networks"]["convnet_w32"]["class-il"]
        == finished("er")[0]["networks"]["convnet_w32"]["class-il"]
    )
    assert list(results["networks"]) == ["mlp_w100", "convnet_w32", "ensemble"]
    means = [results["networks"][name]["task-il"]["average_accuracy"] for name in ("mlp_w100", "convnet_w32")]
    assert results["mean"]["task-il"]["average_accuracy"] == pytest.approx(sum(means) / 2)
    lines = capsys.readouterr().out.splitlines()
    heads = min(number for number, line in enumerate(lines) if line.startswith("network "))
    assert [line.split()[0] for line in lines[heads + 1 : heads + 5]] == [
        "mlp_w100",
        "convnet_w32",
        "ensemble",
        "mean",
    ]


def test_a_pool_that_stores_logits_and_copies_pays_for_each(tmp_path):
    pool = ["--pool", "mlp_w100", "convnet_w32", "--num-tasks", "2"]
    assert run(continual, flags(tmp_path, "der++", *pool))["num_bytes"]["logits"] == 20 * 80
    assert run(continual, flags(tmp_path, "cls-er", *pool))["num_bytes"]["copies"] == 2 * (
        CONVNET_BYTES + 358_448
    )


def test_finetune_forgets_and_joint_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "FEW", 300)
    long = "--val-size 900 --epochs 4 --lr 0.1 --batch-size 16".split()
    last = {
        m: run(continual, flags(tmp_path, m, *long))["networks"]["convnet_w32"]["class-il"]
        for m in ("finetune", "joint", "er")
    }
    assert last["finetune"]["average_accuracy"] == pytest.approx(20, abs=3)
    assert last["finetune"]["forgetting"] > 90
    assert last["joint"]["average_accuracy"] > 88
    assert 30 < last["er"]["average_accuracy"] < last["joint"]["average_accuracy"]


def test_classes_are_split_in_natural_or_random_order():
    assert split_classes(10, 5, None) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert [len(part) for part in split_classes(10, 3, None)] == [4, 3, 3]
    mixed = split_classes(10, 5, 1)
    assert sorted(label for part in mixed for label in part) == list(range(10))
    assert mixed != split_classes(10, 5, 2)
    with pytest.raises(UsageError, match="--num-tasks 11: expected at most the 10 classes"):
        split_classes(10, 11, None)


NAMES = ("cat", "dog", "1", "cow")


@pytest.mark.parametrize(
    ("tasks", "classes"),
    [
        (["0,dog,1", "3"], [[0, 1, 2], [3]]),  # "1" is the name of class 2
        (["0,1,2", "3"], "class 1 is listed twice"),  # by its name, and by its number
        (["cow,cat", "dog"], [[3, 0], [1]]),  # not all, and in this order
        (["cat, dog"], [[0, 1]]),
        (["0,cat"], "class cat is listed twice"),
        (["cat", "cat"], "--tasks cat cat: class cat is listed twice, expected each class once"),
        (["cat,,dog"], "--tasks cat,,dog: found '', expected some of cat, dog, 1, cow, or their numbers"),
        (["4"], "found '4', expected some of cat"),
        (["-1"], "found '-1'"),
        (["0-3"], "found '0-3'"),
    ],
)
def test_classes_are_listed_by_name_or_number(tasks, classes):
    if isinstance(classes, str):
        with pytest.raises(UsageError, match=classes):
            listed_classes(tasks, NAMES, None)
    else:
        assert listed_classes(tasks, NAMES, None) == classes
    with pytest.raises(UsageError, match="--class-order 3: --tasks lists the classes"):
        listed_classes(["cat"], NAMES, 3)


@pytest.mark.parametrize("method", ["er", "gdumb", "joint", "dim", "dgr"])
def test_tasks_of_unequal_size_and_of_some_classes(method, tmp_path, capsys):
    tiny = ["--gan-batch-size", "8"] if METHODS[method].memory == "generator" else []
    results = run(continual, continual_flags(tmp_path, method, *tiny, "--tasks", "3,1,0", "7", "2,9"))
    assert results["classes"] == [[3, 1, 0], [7], [2, 9]]
    assert results["num_tasks"] == 3
    acc = results["networks"]["convnet_w32"]["class-il"]["acc"]
    assert [len(row) for row in acc] == [3] * (1 if method == "joint" else 3)
    assert all(0 <= value <= 100 for row in acc for value in row)
    assert results["networks"]["convnet_w32"]["task-il"]["acc"][-1][1] == 100.0  # one class, one answer
    with pytest.raises(SystemExit):  # and the same tasks, to go on
        run(continual, continual_flags(tmp_path, method, *tiny, "--tasks", "3,1,0", "7", "2"))
    assert "holds a run with --tasks ['3,1,0', '7', '2,9']" in capsys.readouterr().err


def test_equal_tasks_that_are_listed_are_those_that_are_counted(tmp_path):
    counted = run(continual, continual_flags(tmp_path / "a", "er", "--num-tasks", "2"))
    listed = run(continual, continual_flags(tmp_path / "b", "er", "--tasks", "0,1,2,3,4", "5,6,7,8,9"))
    assert counted["networks"]["convnet_w32"]["class-il"] == listed["networks"]["convnet_w32"]["class-il"]


def test_tasks_are_counted_or_listed(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run(continual, continual_flags(tmp_path, "er", "--num-tasks", "2", "--tasks", "0,1"))
    assert stop.value.code == 2
    assert "argument --tasks: not allowed with argument --num-tasks" in capsys.readouterr().err


def test_a_random_order_and_uneven_tasks(tmp_path):
    results = run(
        continual,
        flags(tmp_path, "dim", "--class-order", "3", "--num-tasks", "3"),
    )
    assert [len(part) for part in results["classes"]] == [4, 3, 3]
    assert results["classes"] == split_classes(10, 3, 3)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("method", ["dgr", "dim"])
def test_a_budget_sizes_the_generator(storage, method, tmp_path):
    budget = 60_000
    sized = ["--memory-bytes", str(budget), "--storage", storage, "--num-tasks", "2"]
    command = flags(tmp_path, method, *sized)
    del command[command.index("--width") : command.index("--width") + 2]
    results = run(continual, command)
    width = results["generator"]["width"]
    assert 0.75 * budget < results["num_bytes"]["total"] <= budget
    with pytest.raises(SystemExit):
        run(continual, [*command, "--tag", "wider", "--width", str(width + 1)])


def test_a_memory_over_its_budget_is_refused(tmp_path, capsys):
    budget = ["--memory-bytes", "120000"]
    run(continual, flags(tmp_path, "dim", *budget))
    last = tmp_path / "dim" / "last.pth"
    state = torch.load(last, weights_only=True)
    state["memory"]["generators"]["stored"][0]["more"] = torch.zeros(30000)
    torch.save(state, last)
    before = last.read_bytes()
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        run(continual, flags(tmp_path, "dim", *budget))
    assert error.value.code == 2
    assert "bytes, expected at most the 120000 of --memory-bytes" in capsys.readouterr().err
    assert last.read_bytes() == before


@pytest.mark.parametrize("method", ["er", "dim", "dgr"])
def test_a_picture_of_more_than_ten_classes_shows_the_first_that_are_held(method, tmp_path, monkeypatch):
    load = continual.load_data

    def many(*args, **kwargs):  # the digits, called 5 to 14 of 15 classes
        data = load(*args, **kwargs)
        info = replace(data.info, num_classes=15, class_names=tuple(map(str, range(15))))
        splits = [ImageSet(s.images, s.labels + 5) for s in (data.train, data.val, data.test)]
        more = [torch.arange(150) % len(s) for s in splits]
        extra = [
            ImageSet(torch.cat([s.images, s.images[index]]), torch.cat([s.labels, torch.arange(150) % 5]))
            for s, index in zip(splits, more, strict=True)
        ]
        return Data(info, *extra)

    monkeypatch.setattr(continual, "load_data", many)
    monkeypatch.setattr(
        continual, "split_classes", lambda *args: [[14, 13, 12], [11, 10, 9, 8, 7, 6, 5], [0, 1, 2, 3, 4]]
    )
    results = run(
        continual, flags(tmp_path, method, "--num-tasks", "3", *(["--z-dim", "40"] if method != "er" else []))
    )
    assert results["finished"]
    pictures = [np.asarray(Image.open(path)) for path in sorted((tmp_path / method / "outputs").iterdir())]
    lit = [sum(bool((picture[:, 30 * i : 30 * i + 30] > 0).any()) for i in range(10)) for picture in pictures]
    assert lit[0] == 3
    assert lit[2] == 10 or method == "er"


def test_nothing_of_earlier_networks_is_kept_between_tasks(finished):
    for variant in ("dim", "dgr", "matched"):
        learners = torch.load(finished(variant)[1] / "last.pth", weights_only=True)["learners"]
        assert {state["previous"] for state in learners.values()} == {None}


def test_results_before_the_end_claim_no_average(tmp_path, monkeypatch):
    close, found = continual.write_json, []
    monkeypatch.setattr(
        continual, "write_json", lambda path, value: (found.append(value), close(path, value))
    )
    run(continual, flags(tmp_path, "finetune"))
    assert [value["mean"]["class-il"]["average_accuracy"] is None for value in found] == [True] * 4 + [False]
    assert [value["finished"] for value in found] == [False] * 4 + [True]


def test_the_images_of_a_task_are_copies():
    everything = ImageSet(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    (first, _) = continual.split_tasks(everything, [[0], [1]])
    first.images.fill_(9)
    assert everything.images.sum() == 0


@pytest.mark.parametrize("method", ["er", "der++", "er-ace", "cls-er", "unlimited", "gdumb"])
def test_an_image_enters_the_buffer_once_however_often_it_is_seen(method, tmp_path):
    size = [] if method == "unlimited" else ["--buffer-size", "1000"]
    run(continual, continual_flags(tmp_path, method, "--epochs", "3", "--pool", "mlp_w100", *size))
    kept = torch.load(tmp_path / method / "last.pth", weights_only=True)["memory"]["buffer"]["images"]
    assert (
        len(kept) == 120 == len(kept.flatten(1).unique(dim=0))
    )  # 1,500 images but for 1,380 that are held out, no two alike


def test_the_form_of_the_command_before_sub_parsers_is_told(capsys):
    with pytest.raises(SystemExit) as stop:
        continual.parse_args(["--method", "er", "--memory-bytes", "9000"])
    assert stop.value.code == 2
    assert "the method comes first: continual.py er" in capsys.readouterr().err
