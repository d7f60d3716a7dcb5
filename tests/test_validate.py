"""Stage 3: its trainer, its budgets, its rows, and that it cannot flatter."""

import json
import math
import shutil
import statistics

import pytest
import torch
from conftest import gan_flags, run, validate_flags
from inputs import picture, reference_checkpoint

import gen_condense
import validate
from data import DATASETS, Data, ImageSet, load_data
from engine.files import file_hash
from engine.run_folder import RunFolder
from engine.runtime import Runtime
from engine.seeds import RandomStreams
from models import build_classifier, build_gan, read_gan
from scoring import evaluation, trainer
from scoring.evaluation import validate_group
from scoring.recipes import RECIPES, Recipe
from scoring.results import Cost, Outcome
from scoring.sources import Generated, Real
from scoring.trainer import train_steps, train_together

CPU = Runtime(torch.device("cpu"))
FEW = Recipe(3, 8, 0.01, "none", "none", "dim", -1.0)


def train_on_real(classifier, recipe: Recipe, ipc: int, data: Data) -> Cost:
    """Train one classifier on the stream of real images."""
    streams = RandomStreams.seeded(0, CPU.device)
    epochs = Real(data.train, ipc, 10).open(0, streams).epochs
    return train_together([train_steps(classifier, epochs, recipe, streams, CPU)], recipe.epochs, CPU)[0]


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", "")


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return build_gan({"num_classes": 10, "channels": 1, "image_size": 28, "width": 8, "z_dim": 100})[0]


def rows(results) -> list[dict]:
    return json.loads((results / "test" / "results.json").read_text())


def test_table_and_rows(trained, tmp_path, capsys):
    weight = trained / "match" / "last.pth"
    run(
        validate,
        validate_flags(
            tmp_path,
            "--pretrain-weight",
            str(weight),
            "--eval-model",
            "convnet_w32",
            "mlp_w100",
            "--ipc",
            "2",
            "3",
        ),
    )
    out = capsys.readouterr().out
    found = rows(tmp_path)
    sources = ("generator", "random-real", "real")
    assert [(r["classifier"], r["ipc"], r["source"]) for r in found] == [
        (network, ipc, source)
        for network in ("convnet_w32", "mlp_w100")
        for ipc in (2, 3)
        for source in sources
    ]
    row = found[0]
    assert (row["dataset"], row["split"], row["budget"], row["recipe"], row["n"]) == (
        "digits",
        "test",
        "stream",
        "dim",
        2,
    )
    assert (row["images_seen"], row["steps"]) == (4 * 20, 4)
    assert row["mean"] == statistics.mean(row["accs"])
    assert row["std"] == statistics.stdev(row["accs"])
    assert row["checkpoint_sha256"] == file_hash(weight)
    parameters = sum(p.numel() for p in read_gan(weight).generator().parameters())
    assert row["generator_parameters"] == parameters
    assert row["generator_bytes"] == 4 * (parameters + 2 * (4 * 4 * 4 + 7 * 4))  # and the running statistics
    assert {"seconds_generate", "seconds_train", "commit", "torch", "device"} <= set(row)
    assert found[1]["checkpoint_sha256"] is None
    for row in found:
        assert f"{row['mean']:.2f} ± {row['std']:.2f}" in out
    assert "provisional, n < 5" in out


def test_a_finished_table_is_printed_again_and_more_repeats_are_added(tmp_path, monkeypatch):
    flags = validate_flags(tmp_path, "--source", "real", "--data", "digits")
    first = run(validate, flags)
    calls = []
    group = validate.validate_group
    monkeypatch.setattr(validate, "validate_group", lambda *args: calls.append(1) or group(*args))
    assert run(validate, flags) == first
    assert not calls
    run(validate, [*flags, "--repeats", "3"])
    assert len(calls) == 1
    assert rows(tmp_path)[0]["accs"][:2] == first[0]["accs"]
    run(validate, [*flags, "--seed", "1"])
    assert [row["n"] for row in rows(tmp_path)] == [3, 2]


def test_a_stopped_table_goes_on_with_the_classifier_it_was_at(tmp_path, monkeypatch, capsys):
    import os
    import signal

    flags = validate_flags(tmp_path, "--source", "random-real", "real", "--data", "digits")
    whole = run(
        validate, validate_flags(tmp_path / "whole", "--source", "random-real", "real", "--data", "digits")
    )
    group, calls = validate.validate_group, []

    def stop(*args):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return group(*args)

    monkeypatch.setattr(validate, "validate_group", stop)
    with pytest.raises(SystemExit) as error:
        run(validate, flags)
    assert error.value.code == 143
    assert [row["n"] for row in rows(tmp_path)] == [2, 1]
    run(validate, flags)
    assert len(calls) == 5
    assert [row["accs"] for row in rows(tmp_path)] == [row["accs"] for row in whole]


def test_budgets(digits, generator):
    def epochs(source: str, budget: str) -> list:
        made = (
            Generated(generator, 4, budget == "fixed", 0, CPU)
            if source == "generator"
            else Real(digits.train, 4, 10, source != "real")
        )
        source_epochs = made.open(0, RandomStreams.seeded(0, CPU.device)).epochs
        return [next(source_epochs) for _ in range(3)]

    for source, budget, fresh in (
        ("generator", "stream", True),
        ("generator", "fixed", False),
        ("random-real", "stream", False),
        ("random-real", "fixed", False),
        ("real", "stream", True),
        ("real", "fixed", True),
    ):
        drawn = epochs(source, budget)
        for images, labels in drawn:
            assert images.shape == (40, 1, 28, 28)
            assert torch.bincount(labels).tolist() == [4] * 10
            assert images.min() >= -1
            assert images.max() <= 1
        assert torch.equal(drawn[0][0], drawn[1][0]) != fresh
        assert torch.equal(drawn[1][0], drawn[2][0]) != fresh


def test_the_last_partial_batch_is_used_and_small_sets_make_small_batches(digits):
    sizes = []

    class Spy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(28 * 28, 10)

        def forward(self, images, augment):
            sizes.append(len(images))
            return self.layer(augment(images).flatten(1))

    cost = train_on_real(Spy(), FEW, 2, digits)
    assert sizes == [8, 8, 4] * 3
    assert (cost.steps, cost.images_seen) == (9, 60)
    sizes.clear()
    train_on_real(Spy(), Recipe(1, 128, 0.01, "none", "none", "dim", -1.0), 2, digits)
    assert sizes == [20]


def test_zero_steps_raise(digits):
    classifier = build_classifier("convnet_w32", digits.info)
    nothing = iter([(torch.zeros(0, 1, 28, 28), torch.zeros(0, dtype=torch.long))])
    with pytest.raises(ValueError, match="zero steps"):
        list(
            train_steps(
                classifier,
                nothing,
                Recipe(0, 8, 0.01, "none", "none", "dim", -1.0),
                RandomStreams.seeded(0, CPU.device),
                CPU,
            )
        )


def test_recipe_dc_lowers_its_rate_at_half(digits, monkeypatch):
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD,
        "step",
        lambda self, *args: rates.append(self.param_groups[0]["lr"]) or step(self, *args),
    )
    assert RECIPES["dc"] == Recipe(1000, 256, 0.01, "half", "color_crop_cutout_flip_scale_rotate", "dc", -1.0)
    recipe = Recipe(5, 256, 0.01, "half", "none", "dc", -1.0)
    train_on_real(build_classifier("convnet_w32", digits.info), recipe, 1, digits)
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.001])


def test_cutmix_is_drawn_with_its_probability(digits, monkeypatch):
    def mixes(p: float) -> int:
        calls = []
        draw = trainer.draw_cutmix
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "draw_cutmix", lambda *args: calls.append(1) or draw(*args))
            recipe = Recipe(20, 20, 0.01, "none", "crop", "dim", p)
            train_on_real(build_classifier("convnet_w32", digits.info), recipe, 1, digits)
        return len(calls)

    torch.manual_seed(0)
    assert mixes(-1.0) == mixes(0.0) == 0
    assert mixes(1.0) == 20
    assert 3 < mixes(0.5) < 17


def test_accuracy_is_counted_in_eval_mode(digits):
    classifier = build_classifier("densenet", digits.info).train()
    images = ImageSet(digits.test.images[:40], digits.test.labels[:40])
    state = {k: v.clone() for k, v in classifier.state_dict().items()}
    found = evaluation.accuracy(evaluation.confusion_matrix(classifier, images, 10, batch_size=7))
    assert all(torch.equal(v, state[k]) for k, v in classifier.state_dict().items())  # BatchNorm saw nothing
    assert classifier.training
    with torch.no_grad():
        classifier.eval()
        right = (classifier(images.batch(torch.arange(40))[0]).argmax(1) == images.labels).float().mean()
    assert found == pytest.approx(100 * right.item())


def test_one_classifier_depends_on_its_seed_alone_and_leaves_the_random_numbers_alone(digits, generator):
    def once(seed: int) -> float:
        return validate_group(
            "convnet_w32", Generated(generator, 2, False, 0, CPU), digits, FEW, [seed], CPU
        )[0].accuracy

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = once(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert once(0) == first
    assert generator.training  # and the generator's mode is as it was


# honest by construction


def test_untrained_generators_give_chance(digits):
    recipe, accs = Recipe(12, 128, 0.01, "none", "color_crop", "dim", -1.0), []
    for seed in range(8):
        torch.manual_seed(seed)
        untrained, _ = build_gan(
            {"num_classes": 10, "channels": 1, "image_size": 28, "width": 8, "z_dim": 100}
        )
        source = Generated(untrained, 3, False, 0, CPU)
        accs.append(validate_group("convnet_w32", source, digits, recipe, [seed], CPU)[0].accuracy)
    assert statistics.mean(accs) == pytest.approx(10, abs=6)


def test_permuted_labels_give_chance_and_right_ones_do_not(digits):
    recipe = Recipe(12, 128, 0.01, "none", "color_crop", "dim", -1.0)
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(0))
    permuted = Data(digits.info, ImageSet(digits.train.images, digits.train.labels[order]), None, digits.test)
    wrong = validate_group("convnet_w32", Real(permuted.train, 10, 10), permuted, recipe, range(3), CPU)
    assert statistics.mean(outcome.accuracy for outcome in wrong) == pytest.approx(10, abs=8)
    assert (
        validate_group("convnet_w32", Real(digits.train, 10, 10), digits, recipe, [0], CPU)[0].accuracy > 50
    )


def test_the_generator_gives_the_same_number_with_the_training_files_deleted(tmp_path):
    for split in ("train", "test"):
        for i, name in enumerate(("cat", "dog")):
            for k in range(6):
                picture(tmp_path / "set" / split / name / f"{k}.png", (200 * i, 20 * k, 90))
    gan = "--tag gan --width 4 --batch-size 4 --epochs 1 --eval-interval 0 --device cpu".split()
    found = run(
        gen_condense,
        [*gan, "--data", "folder", "--data-dir", str(tmp_path / "set"), "--results-dir", str(tmp_path)],
    )
    flags = [
        "--source",
        "generator",
        "--pretrain-weight",
        str(found.best_path),
        "--data-dir",
        str(tmp_path / "set"),
    ]
    before = run(validate, validate_flags(tmp_path / "a", *flags))
    shutil.rmtree(tmp_path / "set" / "train")
    after = run(validate, validate_flags(tmp_path / "b", *flags))
    assert before[0]["accs"] == after[0]["accs"]
    assert before[0]["dataset"] == "folder"


def test_held_out_images_are_tested_on_and_not_trained_on(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        validate, "validate_group", lambda *args: seen.append(args[2]) or [Outcome(50.0, Cost(1, 1), [[1]])]
    )
    found = run(
        validate, validate_flags(tmp_path, "--source", "real", "--data", "digits", "--val-size", "100")
    )
    assert found[0]["split"] == "val"
    assert len(seen[0].evaluation_split[1]) == 100
    assert len(seen[0].train) == 1400


def test_a_split_seen_in_an_earlier_stage_is_warned_about(trained, tmp_path, capsys):
    flags = ["--source", "generator", "--pretrain-weight", str(trained / "gan" / "last.pth")]
    run(validate, validate_flags(tmp_path, *flags, "--val-size", "1190"))
    assert "warning: --val-size 1190: " in capsys.readouterr().err
    run(validate, validate_flags(tmp_path, *flags, "--val-size", "1180"))
    assert "warning" not in capsys.readouterr().err


def test_an_in_training_evaluation_uses_the_same_function(tmp_path, monkeypatch):
    calls = []

    def group(network, source, data, recipe, seeds, runtime):
        calls.append(
            (
                network,
                type(source),
                source.fixed,
                source.ipc,
                recipe.epochs,
                recipe.mix_p,
                data.evaluation_split[0],
            )
        )
        return [Outcome(40.0 + len(calls), Cost(1, 1)) for _ in seeds]

    monkeypatch.setattr(evaluation, "validate_group", group)
    evaluated = "--eval-interval 2 --eval-model convnet_w32 resnet18 --budget fixed --ipc 7 "
    evaluated += "--epochs-eval 9 --mix-p 0.5 --repeats 2"
    found: RunFolder = run(gen_condense, gan_flags(tmp_path, *evaluated.split()))
    assert (
        calls
        == [("convnet_w32", Generated, True, 7, 9, 0.5, "val")] * 2
        + [("resnet18_w32", Generated, True, 7, 9, 0.5, "val")] * 2
    )
    assert found.lines[1]["val_accuracy"] == 42.5
    assert found.lines[1]["val_accuracy_resnet18_w32"] == 43.5
    assert "val_accuracy" not in found.lines[0]


def weights_of(
    seeds: list[int], recipe: Recipe, data: Data, generator, steps: int, together: bool
) -> list[dict]:
    classifiers = []
    groups = [seeds] if together else [[seed] for seed in seeds]
    for group in groups:
        trainings = []
        for seed in group:
            torch.manual_seed(seed)
            classifiers.append(build_classifier("resnet10", data.info))
            streams = RandomStreams.seeded(seed, CPU.device)
            epochs = Generated(generator, 2, False, 0, CPU).open(seed, streams).epochs
            trainings.append(train_steps(classifiers[-1], epochs, recipe, streams, CPU))
        assert [cost.steps for cost in train_together(trainings, steps, CPU)] == [steps] * len(group)
    return [classifier.state_dict() for classifier in classifiers]


def test_classifiers_trained_together_equal_those_trained_one_at_a_time(digits, generator):
    recipe = Recipe(5, 12, 0.01, "half", "color_crop_cutout_flip_scale_rotate", "dc", 0.5)
    together, apart = (
        weights_of([3, 4, 5], recipe, digits, generator, 10, together) for together in (True, False)
    )
    for a, b in zip(together, apart, strict=True):
        assert all(torch.allclose(a[name], b[name], rtol=0, atol=1e-6) for name in a)
    assert not torch.equal(together[0]["network.classifier.weight"], together[1]["network.classifier.weight"])


def test_rows_do_not_depend_on_how_many_are_trained_together(tmp_path):
    flags = ["--source", "real", "--data", "digits", "--repeats", "3"]
    apart = run(validate, validate_flags(tmp_path / "a", *flags))
    together = run(validate, validate_flags(tmp_path / "b", *flags, "--together", "2"))
    assert together[0]["accs"] == apart[0]["accs"]
    assert (together[0]["steps"], together[0]["images_seen"]) == (apart[0]["steps"], apart[0]["images_seen"])


def test_reference_checkpoints_are_validated(tmp_path):
    reference_checkpoint(tmp_path / "official.pth", channels=1, size=28, width=4)
    flags = ["--pretrain-weight", str(tmp_path / "official.pth"), "--data", "digits", "--source", "generator"]
    assert run(validate, validate_flags(tmp_path, *flags))[0]["n"] == 2


def test_rows_of_other_images_are_not_taken_for_these(tmp_path):
    for folder, level in (("a", 40), ("b", 90)):
        for split in ("train", "test"):
            for i, name in enumerate(("cat", "dog")):
                for k in range(3):
                    picture(tmp_path / folder / split / name / f"{k}.png", (level * i, 20 * k, 90))
        flags = [
            "--source",
            "real",
            "--data",
            "folder",
            "--data-dir",
            str(tmp_path / folder),
            "--repeats",
            "1",
        ]
        run(validate, validate_flags(tmp_path, *flags))
        run(validate, validate_flags(tmp_path, *flags, "--image-size", "28"))
    assert [row["n"] for row in rows(tmp_path)] == [1, 1, 1, 1]


def test_a_weight_that_is_given_names_the_data_and_is_checked(trained, tmp_path):
    weight = ["--source", "real", "--pretrain-weight", str(trained / "gan" / "last.pth")]
    assert run(validate, validate_flags(tmp_path, *weight))[0]["dataset"] == "digits"
    with pytest.raises(SystemExit):
        run(
            validate,
            validate_flags(tmp_path, "--source", "real", "--data", "digits", "--pretrain-weight", "none.pth"),
        )


@pytest.mark.slow
def test_calibration_random_real_cifar10_gives_the_literatures_number(data_dir, tmp_path):
    """Random, ConvNet-3, IPC 10: 31.0 in the literature's recipe (DC, arXiv:2006.05929, and those after
    it)."""
    flags = "--source random-real --data cifar10 --recipe dc --budget fixed --ipc 10 --eval-model convnet "
    flags = (flags + "--repeats 3 --tag test").split()
    found = run(validate, [*flags, "--data-dir", str(data_dir), "--results-dir", str(tmp_path)])
    assert found[0]["mean"] == pytest.approx(31.0, abs=2.0)


def test_sample_standard_deviation_of_one_is_not_a_number(tmp_path, capsys):
    found = run(validate, validate_flags(tmp_path, "--source", "real", "--data", "digits", "--repeats", "1"))
    assert found[0]["std"] is None
    assert "±" not in capsys.readouterr().out.splitlines()[1]
    assert not math.isnan(found[0]["mean"])


def test_info_of_every_set_fits_its_networks():
    assert all(
        row.info.num_classes == len(row.info.class_names) == len(set(row.info.class_names))
        for row in DATASETS.values()
    )
