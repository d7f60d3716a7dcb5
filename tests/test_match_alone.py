"""Stage 2 by matching alone: no GAN, batches of its own, fresh networks."""

import itertools
import json
import signal

import pytest
import torch
from conftest import match_flags, run, same, validate_flags

import models.matching
import pool_match
import validate
from data import DATASETS, load_data
from engine.runtime import Runtime
from models import GanCheckpoint, build_classifier, build_generator, load_generator, read_classifier, read_gan
from models.gan import GAN
from models.matching import MATCH_RECIPES, Matching, Teachers
from models.pool import Pool
from scoring.storage import export_generator
from utils import UsageError

ALONE = "--recipe-match energy --match-batch 8 --epochs 2 --batch-size 1600 --teacher-weight 0".split()
ALONE += (
    "--pool-data real --pool-steps 0 --pool-size 1 --pool-age 1 --match-fresh 0".split()
)  # the GAN's batch size is not used
CPU = Runtime(torch.device("cpu"))
STEPS = 3  # of a pass over 120 digits in batches of 8 images of 5 classes


def flags(folder, weight, *extra: str) -> list[str]:
    tiny = [*match_flags(folder, weight), *ALONE, "--match-classes", "5", "--val-size", "1380", *extra]
    return [flag for flag in tiny if flag != "--match-aug"]


def alone(folder, weight, *extra: str):
    return run(pool_match, flags(folder, weight, *extra))


def state(run_folder) -> dict:
    return torch.load(run_folder.folder / "last.pth", weights_only=True)


@pytest.fixture(scope="module")
def matched(trained, tmp_path_factory):
    return alone(tmp_path_factory.mktemp("alone"), trained / "gan" / "last.pth")


def test_matching_alone_trains_the_generator_and_keeps_no_discriminator(trained, matched):
    lines = [json.loads(line) for line in (matched.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [STEPS, 2 * STEPS]
    assert all(set(line) == {"epoch", "step", "seconds", "loss_match"} for line in lines)
    kept = state(matched)
    assert kept["discriminator"] is kept["optim_d"] is None
    before = torch.load(trained / "gan" / "last.pth", weights_only=True)["generator"]
    assert not same(kept["generator"], before)
    flags = json.loads((matched.folder / "args.json").read_text())["flags"]
    assert (flags["match"], flags["gan_weight"], flags["match_batch"], flags["betas"]) == (
        "dist",
        0.0,
        8,
        [0.5, 0.99],
    )
    assert load_generator(matched.folder / "last.pth").sample(torch.arange(10)).shape == (10, 1, 28, 28)


def test_flags_override_the_recipe_and_the_recipe_the_defaults():
    given = ["--weight", "x"]
    paper, energy = pool_match.parse_args(given), pool_match.parse_args([*given, "--recipe-match", "energy"])
    assert (paper.match, paper.gan_weight, paper.lr) == ("logit", 1.0, 5e-6)
    assert (energy.match, energy.gan_weight, energy.pool_data) == ("dist", 0.0, "generated")
    assert pool_match.parse_args([*given, "--lr", "0.5", "--recipe-match", "energy"]).lr == 0.5
    for recipe in MATCH_RECIPES.values():
        assert set(recipe) <= set(vars(paper))
    with pytest.raises(SystemExit):
        pool_match.parse_args([*given, "--recipe-match", "none"])


def test_a_file_without_a_discriminator_can_be_matched_and_not_trained_as_a_gan(matched, tmp_path, capsys):
    found = alone(tmp_path, matched.folder / "last.pth", "--epochs", "1")
    assert not same(state(found)["generator"], state(matched)["generator"])
    exported = [
        "--pretrain-weight",
        str(found.folder / "last.pth"),
        "--storage",
        "fp16",
        "--export",
        str(tmp_path / "out"),
    ]
    run(validate, validate_flags(tmp_path, "--source", "generator", *exported))
    alone(tmp_path / "again", tmp_path / "out" / "generator.safetensors", "--epochs", "1")
    with pytest.raises(
        UsageError, match=r"last.pth: holds a generator without its discriminator.*--gan-weight 0"
    ):
        read_gan(found.folder / "last.pth").players()
    with pytest.raises(SystemExit) as error:
        run(pool_match, match_flags(tmp_path / "gan", found.folder / "last.pth"))
    assert error.value.code == 2
    assert not (tmp_path / "gan").exists()


@pytest.mark.parametrize("at", [1, STEPS, STEPS + 2])
def test_stopped_anywhere_the_same_command_ends_with_the_same_bits(trained, tmp_path, monkeypatch, at):
    extra = [
        "--pool-steps",
        "1",
        "--pool-size",
        "2",
        "--pool-age",
        "4",
        "--batch-size",
        "16",
        "--pool-data",
        "generated",
    ]
    extra += ["--match-fresh", "0.5"]
    weight = trained / "gan" / "last.pth"
    whole = alone(tmp_path / "whole", weight, *extra)
    loss, calls = models.matching.Matching.loss, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2 * at:  # each step matches in two networks
            signal.raise_signal(signal.SIGINT)
        return loss(*args)

    with monkeypatch.context() as patch:
        patch.setattr(models.matching.Matching, "loss", interrupted)
        with pytest.raises(SystemExit) as error:
            alone(tmp_path / "stopped", weight, *extra)
    assert error.value.code == 130
    assert len(calls) == 2 * at
    rest = alone(tmp_path / "stopped", weight, *extra)
    for name in ("generator", "generator_ema", "optim_g", "pool"):
        assert same(state(rest)[name], state(whole)[name])


def test_an_untrained_network_of_each_step_adds_its_share(trained, monkeypatch):
    info, train = DATASETS["digits"].info, load_data("digits", "").train
    gan = GAN(read_gan(trained / "gan" / "last.pth").trainee(), None, 0.0)
    pool = Pool(["convnet_w32"], info, 0.01, "none", 0, CPU)
    seen, loss = [], Matching.loss
    monkeypatch.setattr(
        Matching,
        "loss",
        lambda self, model, *args: seen.append((model, loss(self, model, *args))) or seen[-1][1],
    )
    matching = Matching("dist", batch=4, classes=5, fresh=0.25)
    settings = {
        "epochs": 1,
        "batch_size": 9,
        "gp_weight": 0,
        "seed": 0,
        "runtime": CPU,
        "gan_weight": 0.0,
    }
    weights = []
    for at in itertools.islice(pool_match.train_match(gan, pool, train, matching=matching, **settings), 3):
        (model, own), (fresh, other) = seen
        seen.clear()
        assert model is pool.model
        assert at.losses["loss_match"].item() == pytest.approx((own + 0.25 * other).item(), rel=1e-5)
        weights.append(fresh.network.classifier.weight.detach().clone())
        assert not torch.equal(weights[-1], model.network.classifier.weight)
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(weights))


def test_the_pool_can_be_trained_on_generated_images(trained, monkeypatch):
    info, train = DATASETS["digits"].info, load_data("digits", "").train
    generator = read_gan(trained / "gan" / "last.pth").trainee()
    pools = [Pool(["mlp_w100"], info, 0.1, "none", 0, CPU, 1, source) for source in (None, generator)]
    made = []
    sample = generator.sample
    monkeypatch.setattr(generator, "sample", lambda y: made.append((sample(y), y)) or made[-1][0])
    for pool in pools:
        pool.select(0, 1)
        pool.train_step(train, torch.arange(8), torch.Generator())
    ((images, y),) = made
    assert torch.equal(y, train.labels[:8])
    assert not images.requires_grad
    by_hand = Pool(["mlp_w100"], info, 0.1, "none", 0, CPU)
    by_hand.select(0, 1)
    by_hand._update(images, y, by_hand.key, ())
    assert same(pools[1].model.state_dict(), by_hand.model.state_dict())
    assert not same(pools[0].model.state_dict(), by_hand.model.state_dict())


def test_a_network_is_drawn_anew_after_pool_age_steps(trained, tmp_path, monkeypatch):
    loss, seen = models.matching.Matching.loss, []

    def spy(self, model, *args):
        seen.append(model.network.classifier.weight.detach().clone())
        return loss(self, model, *args)

    monkeypatch.setattr(models.matching.Matching, "loss", spy)
    alone(tmp_path / "1", trained / "gan" / "last.pth")
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(seen))
    seen.clear()
    alone(tmp_path / "2", trained / "gan" / "last.pth", "--pool-age", "2")
    assert [torch.equal(a, b) for a, b in itertools.pairwise(seen)] == [True, False, True, False, True]


@pytest.mark.parametrize(
    "match",
    [
        "mean",
        "mean-last",
        "standardized",
        "attention",
        "grad --metric cos",
        "dist --gan-weight 0.1 --batch-size 16",
    ],
)
def test_every_distance_trains_in_batches_of_its_own(trained, tmp_path, match):
    found = alone(tmp_path, trained / "gan" / "last.pth", "--epochs", "1", "--match", *match.split())
    assert ("loss_d" in json.loads((found.folder / "metrics.jsonl").read_text())) == ("gan-weight" in match)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            "--match none",
            "--gan-weight 0 is of matching alone, in batches of its own: expected --match and "
            "--match-batch, found none",
        ),
        ("--match-batch 0", "--match-classes 5 is of --match-batch"),
        ("--match-batch 1", "--match-batch 1: expected"),
        ("--match-batch 100", "--match-batch 100: class 0 has 13 training images"),
        ("--pool-age 2 --pool-size 3", "--pool-age 2: expected a turn or more for each of the 3 networks"),
        (
            "--match none --match-fresh 1 --gan-weight 1",
            "--match-fresh 1: expected a distance to go with, found --match none",
        ),
        (
            "--match none --teacher-weight 2 --gan-weight 1",
            "--teacher-weight 2: expected a distance to go with",
        ),
        ("--pool-steps 1", "--batch-size 1600: larger than the training set, which has 120"),
        ("--betas 0.5 1.0", "--betas: "),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_line(trained, tmp_path, capsys, extra, message):
    with pytest.raises(SystemExit) as error:
        alone(tmp_path, trained / "gan" / "last.pth", *extra.split())
    assert error.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "match").exists()


def test_a_teacher_is_trained_once_and_makes_classes_clearer(trained, tmp_path, capsys):
    extra = [
        "--teacher-weight",
        "1",
        "--teachers",
        "convnet_w32",
        "mlp_w100",
        "--teacher-epochs",
        "2",
        "--lr-decay",
        "none",
        "--epochs",
        "1",
    ]
    found = alone(tmp_path, trained / "gan" / "last.pth", *extra)
    kept = sorted((found.folder / "classifiers").glob("teacher_*.pth"))
    assert sorted(read_classifier(path).network for path in kept) == ["convnet_w32", "mlp_w100"]
    assert not any(p.requires_grad for path in kept for p in read_classifier(path).classifier.parameters())
    (line,) = (json.loads(line) for line in (found.folder / "metrics.jsonl").read_text().splitlines())
    assert line["loss_teacher"] > 0
    times = [path.stat().st_mtime_ns for path in kept]
    again = alone(tmp_path, trained / "gan" / "last.pth", *extra[:-1], "2")
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert len(again.folder.joinpath("metrics.jsonl").read_text().splitlines()) == 2


def test_the_teacher_s_term_is_its_cross_entropy_under_the_matching_s_augmentation(trained, monkeypatch):
    info = DATASETS["digits"].info
    teachers = [
        build_classifier(name, info).eval().requires_grad_(False) for name in ("mlp_w100", "convnet_w32")
    ]
    gan = GAN(read_gan(trained / "gan" / "last.pth").trainee(), None, 0.0)
    pool = Pool(["convnet_w32"], info, 0.01, "none", 0, CPU)
    settings = {
        "epochs": 1,
        "batch_size": 9,
        "gp_weight": 0,
        "seed": 0,
        "runtime": CPU,
        "gan_weight": 0.0,
    }
    matching = Matching("dist", batch=4, strategy="color", classes=5)
    seen = []
    sample = gan.generator.sample
    monkeypatch.setattr(gan.generator, "sample", lambda y: seen.append((sample(y), y)) or seen[-1][0])
    draw = pool_match.draw_operations
    monkeypatch.setattr(pool_match, "draw_operations", lambda *args: seen.append(draw(*args)) or seen[-1])
    steps = pool_match.train_match(
        gan,
        pool,
        load_data("digits", "").train,
        matching=matching,
        teachers=Teachers(teachers, 3.0),
        **settings,
    )
    for number, at in enumerate(itertools.islice(steps, 4)):
        (fake, y), augment = seen
        seen.clear()
        expected = 3 * torch.nn.functional.cross_entropy(teachers[number % 2](fake, augment), y)
        assert at.losses["loss_teacher"].item() == pytest.approx(expected.item(), rel=1e-4)
        assert set(at.losses) == {"loss_match", "loss_teacher"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_matching_alone_from_an_untrained_generator_teaches_the_digits(tmp_path):
    torch.manual_seed(0)
    info = DATASETS["digits"].info
    config = {"num_classes": 10, "channels": 1, "image_size": 28, "width": 32, "z_dim": 100}
    untrained = GanCheckpoint(
        tmp_path / "untrained", config, info, 0, {"generator": build_generator(config).state_dict()}
    )
    export_generator(tmp_path / "untrained.safetensors", untrained, "fp32")
    recipe = "--recipe-match energy --epochs 30 --teacher-epochs 40 --device cpu --no-amp --results-dir"
    found = run(
        pool_match, ["--weight", str(tmp_path / "untrained.safetensors"), *recipe.split(), str(tmp_path)]
    )
    scored = "--source generator --ipc 10 --epochs-eval 200 --repeats 1 --eval-model convnet_w32 --device cpu"
    scored += f" --results-dir {tmp_path}"
    rows = {}
    for name, weight in (("matched", found.best_path), ("untrained", tmp_path / "untrained.safetensors")):
        flags = [*scored.split(), "--no-real", "--no-amp", "--tag", name, "--pretrain-weight", str(weight)]
        (row,) = run(validate, flags)
        rows[name] = row["mean"]
    assert rows["matched"] >= 80
    assert rows["untrained"] < 40
