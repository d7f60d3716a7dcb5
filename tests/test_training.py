"""Stages 1 and 2: what they write, that they resume to the bit, and what they survive."""

import errno
import json
import os
import random
import signal
import time

import pytest
import torch
from conftest import gan_flags, match_flags, run, same
from inputs import reference_checkpoint
from PIL import Image

import gen_condense
import models.gan
import pool_match
import utils
from augment import draw_operations
from data import DATASETS, ImageSet, load_data
from engine import environment, run_folder
from engine.files import file_hash
from engine.runtime import Runtime
from engine.steps import LossMeter, Position, Step
from gen_condense import train_gan
from losses import LOSSES, METRICS, Loss, View, per_layer, pooled
from models import NETWORKS, build_classifier, build_gan
from models.gan import GAN
from models.matching import Matching
from utils import FailedRun, Stopped, UsageError

CPU = Runtime(torch.device("cpu"))
STEPS = 5  # of an epoch of the tiny runs


def weights(path) -> dict:
    """What a checkpoint holds but for the time that it took, for `same`."""
    return {name: part for name, part in torch.load(path, weights_only=True).items() if name != "seconds"}


def metrics(folder) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line.pop("seconds") >= 0 for line in lines)
    return lines


def test_what_a_run_leaves(trained):
    for stage, losses in (("gan", {"loss_d", "loss_g"}), ("match", {"loss_d", "loss_g", "loss_match"})):
        folder = trained / stage
        args = json.loads((folder / "args.json").read_text())
        assert {"flags", "fixed", "commit", "torch", "device", "earlier"} <= set(args)
        assert [(line["epoch"], line["step"]) for line in metrics(folder)] == [(1, STEPS), (2, 2 * STEPS)]
        assert set(metrics(folder)[0]) == {"epoch", "step"} | losses
        pictures = sorted((folder / "outputs").iterdir())
        assert [p.name for p in pictures] == ["img_0001.png", "img_0002.png"]
        with Image.open(pictures[0]) as picture:
            assert picture.size == (300, 300)
        assert list(folder.glob("events.out.tfevents.*"))
        assert (folder / "last.pth").exists()
        assert not (folder / "best.pth").exists()


def test_tensorboard_events_hold_losses_and_pictures(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "match"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss/d", "loss/g", "loss/match"}
    assert events.Tags()["images"] == ["samples"]
    assert [event.step for event in events.Scalars("loss/d")] == [1, 2]


def test_the_last_line_is_the_checkpoint_and_a_finished_run_answers_at_once(
    trained, tmp_path, capsys, monkeypatch
):
    flags = gan_flags(trained)
    before = file_hash(trained / "gan" / "last.pth")
    monkeypatch.setattr(gen_condense, "discriminator_step", None)  # a step would fail
    run(gen_condense, flags)
    assert capsys.readouterr().out.splitlines()[-1] == str(trained / "gan" / "last.pth")
    assert file_hash(trained / "gan" / "last.pth") == before


def test_more_epochs_continue_a_finished_run(trained, tmp_path):
    short = run(gen_condense, gan_flags(tmp_path, "--epochs", "1"))
    assert short.position == Position(1, 0)
    run(gen_condense, gan_flags(tmp_path))
    assert same(weights(tmp_path / "gan" / "last.pth"), weights(trained / "gan" / "last.pth"))
    assert metrics(tmp_path / "gan") == metrics(trained / "gan")


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(trained, tmp_path):
    run(gen_condense, gan_flags(tmp_path))
    assert same(weights(tmp_path / "gan" / "last.pth"), weights(trained / "gan" / "last.pth"))
    run(gen_condense, gan_flags(tmp_path / "other", "--seed", "1"))
    assert not same(
        weights(tmp_path / "other" / "gan" / "last.pth")["generator"],
        weights(trained / "gan" / "last.pth")["generator"],
    )


def test_evaluating_more_often_does_not_change_training(trained, tmp_path):
    evaluated = ["--eval-interval", "1", "--eval-model", "convnet_w32", "--ipc", "2", "--epochs-eval", "1"]
    run(gen_condense, gan_flags(tmp_path, *evaluated))
    found, expected = weights(tmp_path / "gan" / "last.pth"), weights(trained / "gan" / "last.pth")
    assert same(found["generator"], expected["generator"])
    assert same(found["rng"], expected["rng"])
    assert all("val_accuracy" in line for line in metrics(tmp_path / "gan"))


def test_nothing_is_chosen_by_the_test_set(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(
        gen_condense,
        "evaluate_generator",
        lambda gan, data, *args: seen.append(data.evaluation_split) or {"test_accuracy": 50.0},
    )
    flags = ["--val-size", "0", "--batch-size", "750", "--eval-interval", "1", "--epochs", "1"]
    run(gen_condense, gan_flags(tmp_path, *flags))
    assert seen[0][0] == "test"
    assert len(seen[0][1]) == 297
    assert metrics(tmp_path / "gan")[0]["test_accuracy"] == 50.0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "gan" / "last.pth")
    assert not (tmp_path / "gan" / "best.pth").exists()


def test_a_held_out_split_chooses_best_pth(tmp_path, monkeypatch, capsys):
    scores = iter([50.0, 70.0, 60.0])
    monkeypatch.setattr(gen_condense, "evaluate_generator", lambda *args: {"val_accuracy": next(scores)})
    found = run(gen_condense, gan_flags(tmp_path, "--epochs", "3", "--eval-interval", "1"))
    assert (found.best["epoch"], found.best["name"], found.best["value"]) == (2, "val_accuracy", 70.0)
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "gan" / "best.pth")
    assert weights(tmp_path / "gan" / "best.pth")["position"] == {"epoch": 2, "step": 0}


def test_the_epochs_line_is_printed(tmp_path, capsys):
    run(gen_condense, gan_flags(tmp_path, "--epochs", "1"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("epoch 1/1  loss_d ")
    assert len(lines) == 2


def test_pool_steps_are_taken_on_real_batches_in_shuffled_passes():
    batches = pool_match.shuffled_batches(10, 3, torch.device("cpu"), 0, 0, skip=0)
    first = [next(batches) for _ in range(8)]
    assert all(len(set(torch.cat(first[i : i + 3]).tolist())) == 9 for i in (0, 3))
    skipped = pool_match.shuffled_batches(10, 3, torch.device("cpu"), 0, 0, skip=4)
    assert torch.equal(next(skipped), first[4])


def test_the_pool_is_drawn_anew_each_epoch_from_the_seed_alone():
    def names(seed: int) -> list[str]:
        pool = pool_match.Pool(
            ["convnet_w32", "resnet10", "resnet10_ap"], DATASETS["digits"].info, 0.01, "none", seed, CPU
        )
        return [(pool.select(epoch, 1), pool.key[1])[1] for epoch in range(12)]

    torch.manual_seed(5)
    assert names(0) == names(0)
    assert names(0) != names(1)
    assert set(names(0)) == {"convnet_w32", "resnet10", "resnet10_ap"}


def test_a_network_drawn_again_is_fresh_and_stays_where_it_was():
    data = load_data("digits", "").train
    used, new = (
        pool_match.Pool(["convnet_w32"], DATASETS["digits"].info, 0.01, "color_crop", 0, CPU)
        for _ in range(2)
    )

    def step(pool) -> None:
        torch.manual_seed(7)
        pool.train_step(data, torch.arange(8), torch.Generator())

    torch.manual_seed(3)
    state = torch.get_rng_state()
    used.select(0, 1)
    assert torch.equal(torch.get_rng_state(), state)  # the surrounding random numbers are left alone
    places = [p.data_ptr() for p in used.model.parameters()]
    step(used)
    momentum = next(iter(used.optim.state.values()))["momentum_buffer"]
    for pool in (used, new):
        pool.select(1, 1)
    assert not momentum.any()
    assert same(used.model.state_dict(), new.model.state_dict())
    for pool in (used, new):
        step(pool)
    assert same(used.model.state_dict(), new.model.state_dict())
    assert [p.data_ptr() for p in used.model.parameters()] == places
    assert next(iter(used.optim.state.values()))["momentum_buffer"] is momentum


@pytest.mark.parametrize("metric", [None, *METRICS])
@pytest.mark.parametrize("match", [name for name, loss in LOSSES.items() if "metric" in loss.options])
@pytest.mark.parametrize("network", ["convnet_w32", "resnet10"])
def test_matching_pulls_generated_images_alone(match, metric, network):
    torch.manual_seed(0)
    info = DATASETS["digits"].info
    model = build_classifier(network, info).train()
    real, y = torch.rand(6, 1, 28, 28) * 2 - 1, torch.arange(6)
    fake = (torch.rand(6, 1, 28, 28) * 2 - 1).requires_grad_(True)
    augment = draw_operations(("color", "crop", "cutout"), 1, 28, CPU.device)
    loss = Matching(match, metric=metric, bias=True, fc=True).loss(model, real, fake, y, augment, CPU)
    loss.backward()
    assert loss > 0
    assert fake.grad.abs().sum() > 0
    # without biases: those before a norm have no gradient but rounding, of any direction
    equal = Matching(match, metric=metric, fc=True).loss(
        model, real, real.clone().requires_grad_(True), y, augment, CPU
    )
    assert equal < 1e-2 * loss
    if match != "grad":
        assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "extra",
    ["--match feat", "--match grad --bias --fc", "--match dist --pool-size 2", "--ema 0.9", "--match none"],
)
def test_every_match_runs(trained, tmp_path, extra):
    run(pool_match, match_flags(tmp_path, trained / "gan" / "last.pth", "--epochs", "1", *extra.split()))
    assert (metrics(tmp_path / "match")[0]["loss_match"] == 0) == extra.endswith("none")


@pytest.mark.parametrize("network", ["convnet_w32", "resnet10"])
def test_matching_distributions_pulls_generated_images_alone(network):
    torch.manual_seed(0)
    model = build_classifier(network, DATASETS["digits"].info).train()
    real, y = torch.rand(8, 1, 28, 28) * 0.5, torch.arange(8) % 2
    fake = (torch.rand(8, 1, 28, 28) * 0.5 - 1).requires_grad_(True)
    augment = draw_operations(("color", "crop", "cutout"), 1, 28, CPU.device)
    dist = Matching("dist")
    loss = dist.loss(model, real, fake, y, augment, CPU)
    loss.backward()
    assert loss > 1
    assert fake.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.parameters())
    assert dist.loss(model, real, real.clone(), y, augment, CPU) <= 1e-6
    others = dist.loss(model, real, real, y.flip(0), augment, CPU)
    assert dist.loss(model, real, fake, torch.arange(8), augment, CPU) == 0  # no pairs
    assert others <= 1e-6


@pytest.mark.parametrize("info", [DATASETS[name].info for name in ("digits", "cifar10")], ids=["28", "32"])
@pytest.mark.parametrize("network", NETWORKS)
def test_features_of_every_network_can_be_pooled(network, info):
    model = build_classifier(network, info)
    features = model.logits_and_features(torch.rand(2, info.channels, info.image_size, info.image_size))[1]
    for f in features:
        side = min(4, f.shape[-1])
        assert pooled(f).shape == (2, f.shape[1] * side * side)
    assert torch.allclose(pooled(features[0]).mean(), features[0].mean(), atol=0.1)


@pytest.mark.parametrize("script", ["gen_condense", "pool_match"])
def test_diffaug_reaches_the_generator_s_step_of_both_stages(script, trained, tmp_path, monkeypatch):
    seen, module = [], {"gen_condense": gen_condense, "pool_match": pool_match}[script]
    augment = models.gan.differentiable_augment
    monkeypatch.setattr(
        module, "differentiable_augment", lambda images, names: seen.append(names) or augment(images, names)
    )
    flags = ["--diffaug", "color_crop", "--epochs", "1"]
    run(
        module,
        gan_flags(tmp_path, *flags)
        if script == "gen_condense"
        else match_flags(tmp_path, trained / "gan" / "last.pth", *flags),
    )
    assert seen == [("color", "crop")] * STEPS


def test_networks_of_a_pool_take_turns_and_are_born_evenly_over_an_epoch():
    pool = pool_match.Pool(["convnet_w32"], DATASETS["digits"].info, 0.01, "none", 0, CPU, size=3)
    born, weights = {}, {}
    for place in range(36):  # three epochs of twelve steps
        pool.select(place, 12)
        assert pool.slot == place % 12 % 3
        weight = pool.model.network.classifier.weight
        if pool.slot not in weights or not torch.equal(weights[pool.slot], weight):
            born.setdefault(pool.slot, []).append(place)
            weights[pool.slot] = weight.detach().clone()
    assert born == {0: [0, 12, 24], 1: [1, 4, 16, 28], 2: [2, 8, 20, 32]}
    assert len({float(weight.sum()) for weight in weights.values()}) == 3


def test_stage_2_starts_from_the_weights_and_names_its_data(trained, tmp_path):
    found = run(pool_match, match_flags(tmp_path, trained / "gan" / "last.pth", "--lr", "1e-12"))
    first, last = weights(trained / "gan" / "last.pth"), weights(tmp_path / "match" / "last.pth")
    assert torch.allclose(first["generator"]["fc1.weight"], last["generator"]["fc1.weight"], atol=1e-6)
    assert (last["stage"], last["info"]["name"], last["config"]) == ("match", "digits", first["config"])
    assert found.position == Position(2, 0)


def test_matching_reaches_the_generator(trained, tmp_path):
    for name, weight in (("a", "0"), ("b", "5")):
        run(
            pool_match,
            match_flags(
                tmp_path / name, trained / "gan" / "last.pth", "--match-weight", weight, "--epochs", "1"
            ),
        )
    a, b = (weights(tmp_path / name / "match" / "last.pth")["generator"] for name in "ab")
    assert not same(a, b)


def test_stage_2_takes_reference_checkpoints(tmp_path):
    reference_checkpoint(tmp_path / "official.pth", channels=1, size=28, width=4)
    found = run(
        pool_match, match_flags(tmp_path, tmp_path / "official.pth", "--data", "digits", "--epochs", "1")
    )
    assert weights(found.best_path)["info"]["name"] == "digits"


def test_amp_is_bf16_but_for_the_penalty_losses_and_optimisers(monkeypatch):
    seen, penalty = {}, models.gan.gradient_penalty

    def spy(discriminator, real, fake):
        seen["penalty"] = (torch.is_autocast_enabled("cpu"), real.dtype, fake.dtype)
        return penalty(discriminator, real, fake)

    monkeypatch.setattr(models.gan, "gradient_penalty", spy)
    gan = GAN(*build_gan({"num_classes": 10, "channels": 1, "image_size": 28, "width": 4, "z_dim": 20}), 1e-3)
    outputs = []
    gan.discriminator.conv1.register_forward_hook(lambda module, inputs, output: outputs.append(output.dtype))
    gan.generator.conv1.register_forward_hook(lambda module, inputs, output: outputs.append(output.dtype))
    train = ImageSet(torch.zeros(8, 1, 28, 28, dtype=torch.uint8), torch.arange(8))
    runtime = Runtime(torch.device("cpu"), amp=True)
    at = next(train_gan(gan, train, epochs=1, batch_size=8, gp_weight=10, seed=0, runtime=runtime))
    assert outputs == [torch.bfloat16] * 4 + [torch.float32]  # G, D; G, D; the penalty's D
    assert seen["penalty"] == (False, torch.float32, torch.float32)
    assert all(loss.dtype == torch.float32 for loss in at.losses.values())
    assert all(state["exp_avg"].dtype == torch.float32 for state in gan.optim_d.state.values())


def test_amp_and_channels_last_stay_close(trained, tmp_path):
    run(gen_condense, gan_flags(tmp_path, "--amp", "--channels-last", "--epochs", "1"))
    run(
        pool_match,
        match_flags(tmp_path, tmp_path / "gan" / "last.pth", "--amp", "--channels-last", "--epochs", "1"),
    )
    for stage in ("gan", "match"):
        assert metrics(tmp_path / stage)[0]["loss_d"] == pytest.approx(
            metrics(trained / stage)[0]["loss_d"], rel=0.05
        )


def test_a_control_takes_no_pool_steps_and_matching_leaves_the_pool_to_its_own_steps(
    monkeypatch, trained, tmp_path
):
    calls, grads = [], []
    step = pool_match.Pool.train_step

    def counted(pool, *batch):
        calls.append(1)
        grads.append([p.grad is None or not p.grad.any() for p in pool.model.parameters()])
        pool.optim.zero_grad()
        step(pool, *batch)
        pool.optim.zero_grad()

    monkeypatch.setattr(pool_match.Pool, "train_step", counted)
    for match, expected in (("none", 0), ("grad", STEPS * 3)):
        calls.clear()
        flags = ["--epochs", "1", "--pool-steps", "3", "--match", match]
        run(pool_match, match_flags(tmp_path / match, trained / "gan" / "last.pth", *flags))
        assert len(calls) == expected
    assert all(map(all, grads))


def test_a_stage_does_not_choose_by_images_that_an_earlier_one_has_seen(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pool_match, "evaluate_generator", lambda *args: {"val_accuracy": 50.0})
    found = run(
        gen_condense, gan_flags(tmp_path, "--val-size", "100", "--batch-size", "700", "--epochs", "1")
    )
    evaluate = ["--eval-interval", "1", "--epochs", "1"]
    seen = run(pool_match, match_flags(tmp_path / "seen", found.best_path, *evaluate))
    assert "warning: --val-size 1180" in capsys.readouterr().err
    assert seen.best_path.name == "last.pth"
    assert weights(seen.best_path)["val_size"] == 100
    fair = match_flags(
        tmp_path / "fair", found.best_path, *evaluate, "--val-size", "100", "--batch-size", "700"
    )
    assert run(pool_match, fair).best_path.name == "best.pth"


def test_best_pth_is_not_compared_across_evaluations(tmp_path, monkeypatch):
    scores = iter([90.0, 20.0, 10.0])
    monkeypatch.setattr(gen_condense, "evaluate_generator", lambda *args: {"val_accuracy": next(scores)})
    flags = gan_flags(tmp_path, "--eval-interval", "1")
    assert run(gen_condense, [*flags, "--epochs", "1", "--ipc", "50"]).best["value"] == 90.0
    found = run(gen_condense, [*flags, "--epochs", "3", "--ipc", "1"])
    assert (found.best["epoch"], found.best["value"]) == (2, 20.0)


def test_a_finished_run_keeps_the_account_of_how_it_was_made(trained, tmp_path, monkeypatch):
    run(gen_condense, gan_flags(tmp_path, "--epochs", "1"))
    first = json.loads((tmp_path / "gan" / "args.json").read_text())
    monkeypatch.setattr(environment, "commit", lambda: "another")
    run(gen_condense, gan_flags(tmp_path, "--epochs", "1"))
    assert json.loads((tmp_path / "gan" / "args.json").read_text()) == first
    run(gen_condense, gan_flags(tmp_path))
    last = json.loads((tmp_path / "gan" / "args.json").read_text())
    assert last["commit"] == "another"
    assert last["earlier"] == [{name: first[name] for name in ("flags", "commit", "torch", "device")}]


def test_other_flags_in_the_same_folder_are_refused(trained, tmp_path, capsys):
    for extra, message in (
        (["--width", "5"], "--width 4, found --width 5"),
        (["--lr", "0.1"], "--lr 0.0001, found --lr 0.1"),
        (["--data", "folder", "--data-dir", str(tmp_path)], "train: no such folder"),
    ):
        with pytest.raises(SystemExit) as error:
            run(gen_condense, gan_flags(trained, *extra))
        assert error.value.code == 2
        assert message in capsys.readouterr().err
    run(
        gen_condense,
        gan_flags(
            trained,
            "--print-freq",
            "3",
            "--save-interval",
            "1",
            "--data-dir",
            "x",
            "--ipc",
            "7",
            "--mix-p",
            "0.5",
        ),
    )


# stops, kills and full disks


class Interrupt:
    """Calls `action` once, at the given discriminator step of this process."""

    def __init__(self, monkeypatch, script, at: int, action):
        step, self.calls = models.gan.discriminator_step, 0

        def wrapped(*args):
            self.calls += 1
            if self.calls == at:
                action()
            return step(*args)

        monkeypatch.setattr(script, "discriminator_step", wrapped)


STOPS = [
    (signal.SIGINT, 130, 1),
    (signal.SIGTERM, 143, 3),
    (signal.SIGINT, 130, STEPS),
    (signal.SIGTERM, 143, STEPS + 2),
]


@pytest.mark.parametrize(("number", "code", "at"), STOPS)
@pytest.mark.parametrize("stage", ["gan", "match"])
def test_a_stop_saves_and_the_same_command_ends_with_the_same_bits(
    trained, tmp_path, monkeypatch, capsys, stage, number, code, at
):
    before = signal.getsignal(signal.SIGINT)
    script, flags = gen_condense, gan_flags(tmp_path)
    if stage == "match":
        script, flags = pool_match, match_flags(tmp_path, trained / "gan" / "last.pth")
    with monkeypatch.context() as patch:
        Interrupt(patch, script, at, lambda: os.kill(os.getpid(), number))
        with pytest.raises(SystemExit) as error:
            run(script, flags)
    assert error.value.code == code
    assert "the same command continues" in capsys.readouterr().err
    stopped = weights(tmp_path / stage / "last.pth")["position"]
    assert stopped["epoch"] * STEPS + stopped["step"] == at  # the step was finished and saved
    with monkeypatch.context() as patch:
        rest = Interrupt(patch, script, 0, None)
        run(script, flags)
    assert rest.calls == 2 * STEPS - at
    assert same(weights(tmp_path / stage / "last.pth"), weights(trained / stage / "last.pth"))
    assert metrics(tmp_path / stage) == metrics(trained / stage)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_stop_during_an_evaluation_ends_it_at_once_and_it_is_done_again(tmp_path, monkeypatch):
    calls = []

    def evaluate(*args):
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
            raise AssertionError("the evaluation went on after SIGTERM")
        return {"val_accuracy": 12.0}

    monkeypatch.setattr(gen_condense, "evaluate_generator", evaluate)
    flags = gan_flags(tmp_path, "--eval-interval", "1", "--epochs", "1")
    with pytest.raises(SystemExit) as error:
        run(gen_condense, flags)
    assert error.value.code == 143
    assert not (tmp_path / "gan" / "metrics.jsonl").exists()
    steps = Interrupt(monkeypatch, gen_condense, 0, None)
    run(gen_condense, flags)
    assert steps.calls == 0  # the epoch had been saved before its evaluation
    assert metrics(tmp_path / "gan")[0]["val_accuracy"] == 12.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path, monkeypatch, capsys, bad
):
    step, calls = models.gan.discriminator_step, []

    def poisoned(*args):
        calls.append(1)
        return step(*args) * (bad if len(calls) == STEPS + 2 else 1)

    monkeypatch.setattr(gen_condense, "discriminator_step", poisoned)
    with pytest.raises(SystemExit) as error:
        run(gen_condense, gan_flags(tmp_path, "--print-freq", "4"))
    assert error.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "loss_d is not finite at epoch 2, step 2" in line
    assert "last.pth is the last good checkpoint" in line
    assert weights(tmp_path / "gan" / "last.pth")["position"] == {"epoch": 1, "step": 0}


def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch, capsys):
    step = models.gan.discriminator_step

    def poison(gan, *args):
        loss = step(gan, *args)
        with torch.no_grad():
            gan.generator.conv8.bias.fill_(float("nan"))
        return loss

    monkeypatch.setattr(gen_condense, "discriminator_step", poison)
    with pytest.raises(SystemExit) as error:
        run(gen_condense, gan_flags(tmp_path, "--save-interval", "1"))
    assert error.value.code == 1
    assert "generator.conv8.bias is not finite at epoch 1, step 1; no checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "gan" / "last.pth").exists()


def test_the_states_of_all_parts_are_checked(trained, tmp_path, monkeypatch, capsys):
    """The momentum of a pool network, which the losses of the same step do not show."""
    train_step = pool_match.Pool.train_step

    def poison(self, *args):
        train_step(self, *args)
        next(iter(self.optim.state.values()))["momentum_buffer"].view(-1)[0] = float("inf")

    monkeypatch.setattr(pool_match.Pool, "train_step", poison)
    flags = match_flags(tmp_path, trained / "gan" / "last.pth", "--save-interval", "1", "--pool-steps", "1")
    with pytest.raises(SystemExit) as error:
        run(pool_match, flags)
    assert error.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "pool.0.optim.state.0.momentum_buffer is not finite at epoch 1, step 1; no checkpoint" in line
    assert not (tmp_path / "match" / "last.pth").exists()


def test_a_new_loss_is_a_function_and_a_line(trained, tmp_path, monkeypatch, capsys):
    def match_variances(real: View, fake: View) -> torch.Tensor:
        def distance(r, f):
            return (f.var((0, 2, 3)) - r.var((0, 2, 3))).square().sum()

        return per_layer(distance, real.features, fake.features).sum()

    monkeypatch.setitem(LOSSES, "variance", Loss(match_variances, 0.25, {"classes"}))
    flags = match_flags(tmp_path, trained / "gan" / "last.pth", "--epochs", "1", "--match", "variance")
    with pytest.raises(SystemExit):
        run(pool_match, flags)
    assert "--match variance compares classes: expected --match-batch" in capsys.readouterr().err
    run(pool_match, [*flags, "--match-batch", "4"])
    assert metrics(tmp_path / "match")[0]["loss_match"] > 0
    with pytest.raises(SystemExit):
        pool_match.parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "attention,variance,none}" in text
    assert "0.25 for variance" in text


def test_an_unknown_metric_is_refused(capsys):
    with pytest.raises(SystemExit):
        pool_match.parse_args(["--weight", "x", "--metric", "l3"])
    assert "argument --metric: invalid choice: 'l3'" in capsys.readouterr().err


def test_the_meter_names_the_first_bad_step():
    meter = LossMeter()
    for step, value in enumerate([1.0, float("inf"), float("nan"), 2.0], start=1):
        meter.update(Step(0, step, {"a": torch.tensor(1.0), "b": torch.tensor(value)}))
    with pytest.raises(FailedRun, match="b is not finite at epoch 7, step 2"):
        meter.means(6)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file"),
    ],
)
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch, capsys, error):
    save, calls = torch.save, []

    def full(state, path):
        calls.append(1)
        save(state, path)
        if len(calls) == 3:
            os.truncate(path, 1000)
            raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SystemExit) as stop:
        run(gen_condense, gan_flags(tmp_path, "--save-interval", "2"))
    assert stop.value.code == 1
    assert "could not be written" in capsys.readouterr().err
    assert weights(tmp_path / "gan" / "last.pth")["position"] == {"epoch": 0, "step": 4}
    assert not list((tmp_path / "gan").glob(".*.tmp"))


def test_a_full_disk_elsewhere_is_one_line_too(tmp_path, monkeypatch, capsys):
    def full(path, image):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(run_folder, "save_picture", full)
    with pytest.raises(SystemExit) as stop:
        run(gen_condense, gan_flags(tmp_path))
    assert stop.value.code == 1
    assert "img_0001.png: No space left on device" in capsys.readouterr().err


def check_whole(folder) -> None:
    """Every file a reader might open is whole."""
    for path in folder.glob("*.pth"):
        weights(path)
    if (folder / "metrics.jsonl").exists():
        metrics(folder)
    if (folder / "args.json").exists():
        json.loads((folder / "args.json").read_text())
    for path in folder.glob("outputs/img_*.png"):
        with Image.open(path) as picture:
            picture.load()


def stage_flags(stage: str, trained, results) -> tuple[str, list[str]]:
    save = ["--save-interval", "2", "--epochs", "4", "--eval-interval", "1"]
    if stage == "gan":
        return "gen_condense", gan_flags(results, *save)
    return "pool_match", match_flags(results, trained / "gan" / "last.pth", *save)


def survive_kills(driver, stage: str, trained, tmp_path, kills: int) -> None:
    rng = random.Random(kills)
    script, flags = stage_flags(stage, trained, tmp_path / "killed")
    counter = tmp_path / "steps"
    counter.touch()
    total, save_interval, survived = 4 * STEPS, 2, 0
    for _ in range(kills):
        (pid,) = driver.start(script, counter, flags)
        target = counter.stat().st_size + rng.randint(0, 2 * total // kills)
        deadline = time.time() + 60
        while counter.stat().st_size < target and is_running(pid) and time.time() < deadline:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.03)
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)
        survived += driver.wait() == [-signal.SIGKILL]
        check_whole(tmp_path / "killed" / stage)
    assert driver.call(script, counter, flags) == [0]
    assert survived > 0
    assert total <= counter.stat().st_size <= total + survived * save_interval
    compare_with_unbroken(driver, stage, trained, tmp_path)


def is_running(pid: int) -> bool:
    """Whether a process is there; the driver takes in one that ended, so its number may be gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def compare_with_unbroken(driver, stage: str, trained, tmp_path) -> None:
    script, flags = stage_flags(stage, trained, tmp_path / "whole")
    assert driver.call(script, tmp_path / "steps_whole", flags) == [0]
    assert (tmp_path / "steps_whole").stat().st_size == 4 * STEPS
    killed, whole = tmp_path / "killed" / stage, tmp_path / "whole" / stage
    for name in ("last.pth", "best.pth"):
        assert same(weights(killed / name), weights(whole / name))
    assert metrics(killed) == metrics(whole)
    pictures = [p.name for p in sorted((whole / "outputs").iterdir())]
    assert [p.name for p in sorted((killed / "outputs").iterdir())] == pictures
    assert all(
        (killed / "outputs" / name).read_bytes() == (whole / "outputs" / name).read_bytes()
        for name in pictures
    )


@pytest.mark.parametrize("stage", ["gan", "match"])
def test_three_kills_at_random_moments(driver, trained, tmp_path, stage):
    survive_kills(driver, stage, trained, tmp_path, 3)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["gan", "match"])
def test_twenty_kills_at_random_moments(driver, trained, tmp_path, stage):
    survive_kills(driver, stage, trained, tmp_path, 20)


@pytest.mark.parametrize(
    ("stage", "kill"), [("gan", "kill_at_write"), ("match", "kill_at_write"), ("gan", "kill_after_write")]
)
def test_kills_at_writes(driver, trained, tmp_path, stage, kill):
    """The first process dies at its first write, the second at its second, and so on, until one has nothing
    left to write."""
    script, flags = stage_flags(stage, trained, tmp_path / "killed")
    counter = tmp_path / "steps"
    kills = 0
    while (status := driver.call(script, counter, flags, **{kill: kills + 1})) != [0]:
        assert status == [-signal.SIGKILL]
        check_whole(tmp_path / "killed" / stage)
        kills += 1
    assert kills >= 6
    assert counter.stat().st_size <= 4 * STEPS + kills * 2
    compare_with_unbroken(driver, stage, trained, tmp_path)


# loops


def test_a_loop_cannot_run_zero_steps():
    info = DATASETS["digits"].info
    gan = GAN(*build_gan({"num_classes": 10, "channels": 1, "image_size": 28, "width": 2, "z_dim": 20}), 1e-3)
    few = ImageSet(torch.zeros(3, 1, 28, 28, dtype=torch.uint8), torch.zeros(3, dtype=torch.long))
    with pytest.raises(UsageError, match="--batch-size 4: larger than the training set, which has 3"):
        next(train_gan(gan, few, epochs=1, batch_size=4, gp_weight=10, seed=0, runtime=CPU))
    pool = pool_match.Pool(["convnet_w32"], info, 0.01, "none", 0, CPU)
    pool.steps = 1
    settings = {"gp_weight": 10, "matching": Matching(), "seed": 0, "runtime": CPU}
    with pytest.raises(UsageError, match="larger than the training set"):
        next(pool_match.train_match(gan, pool, few, epochs=1, batch_size=4, **settings))


def test_the_generator_step_leaves_the_discriminator_alone(monkeypatch):
    gan = GAN(*build_gan({"num_classes": 10, "channels": 1, "image_size": 28, "width": 2, "z_dim": 20}), 1e-3)
    before = {k: v.clone() for k, v in gan.discriminator.state_dict().items()}
    monkeypatch.setattr(gen_condense, "discriminator_step", lambda *args: torch.zeros(()))
    train = ImageSet(torch.zeros(8, 1, 28, 28, dtype=torch.uint8), torch.arange(8))
    generator_before = gan.generator.fc1.weight.detach().clone()
    next(train_gan(gan, train, epochs=1, batch_size=8, gp_weight=10, seed=0, runtime=CPU))
    assert same(before, gan.discriminator.state_dict())
    assert all(p.grad is None and p.requires_grad for p in gan.discriminator.parameters())
    assert not torch.equal(generator_before, gan.generator.fc1.weight)


def test_signals_leave_other_threads_alone():
    import threading

    failed = []

    def work():
        try:
            with utils.handle_stops(lambda number: None):
                pass
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed


def test_a_signal_is_answered_at_once_where_there_is_nothing_to_save():
    with utils.handle_stops(utils.raise_stopped), pytest.raises(Stopped):
        signal.raise_signal(signal.SIGINT)
