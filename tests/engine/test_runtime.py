"""How steps are executed: recordings, precision, memory, and several ranks; never what is computed."""

import copy
import functools
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

import pytest
import torch
from conftest import ROOT, gan_flags, match_flags, run, same, validate_flags

import gen_condense
import models
import pool_match
import validate
from data import ImageSet, load_data
from engine.environment import keep_freed_memory
from engine.files import locked
from engine.graphs import Graphed
from engine.optim import load_optimizer, make_adam, set_rate
from engine.precision import allow_tf32, multiplies_bf16
from engine.runtime import Runtime, make_runtime
from engine.seeds import derive_seed
from engine.steps import LossMeter, Step
from engine.streams import Lanes, Stopwatch
from gen_condense import train_gan
from losses import discriminator_loss, generator_loss, gradient_penalty
from models import build_gan
from models.gan import GAN
from models.matching import Matching
from models.pool import Pool
from pool_match import train_match
from utils import UsageError

CPU = Runtime(torch.device("cpu"))
CONFIG = {"num_classes": 10, "channels": 1, "image_size": 28, "width": 4, "z_dim": 20}


# recordings, with a recorder that runs the work again on the same memory in place of a CUDA graph


class Recorder:
    """Records as a CUDA graph does: what the work returned keeps its memory, and replaying writes there."""

    def __init__(self):
        self.recorded = 0

    def __call__(self, work):
        self.recorded += 1
        outputs = {}

        def replay():
            for name, value in work().items():
                outputs.setdefault(name, torch.empty_like(value)).copy_(value.detach())

        return outputs, replay


WEIGHT = torch.zeros(3)


def step(x, scale):
    """A step with an effect, random numbers and an output."""
    WEIGHT.add_(x * scale + torch.rand(3))
    return {"sum": WEIGHT.sum()}


def take_steps(call) -> tuple[list, torch.Tensor]:
    torch.manual_seed(0)
    WEIGHT.zero_()
    losses = [call(torch.full((3,), float(i)), scale=2.0 if i < 7 else 3.0) for i in range(12)]
    return losses, WEIGHT.clone()


def test_a_recorded_step_does_what_the_step_does():
    recorder = Recorder()
    expected, weight = take_steps(step)
    actual, recorded_weight = take_steps(Graphed(step, recorder))
    assert recorder.recorded == 2  # one for each scale
    assert torch.equal(weight, recorded_weight)
    assert [loss["sum"].item() for loss in actual] == [
        loss["sum"].item() for loss in expected
    ]  # each kept its own value


def test_another_shape_or_setting_is_another_recording():
    recorder = Recorder()
    graphed = Graphed(lambda x, name: {"mean": x.mean()}, recorder)
    for size in (4, 6, 4):
        for name in ("a", "b"):
            for value in range(5):
                assert graphed(torch.full((size,), float(value)), name=name)["mean"].item() == value
    assert recorder.recorded == 4


def test_the_first_calls_are_run_as_they_are():
    recorder, calls = Recorder(), []
    graphed = Graphed(lambda x: calls.append(1) or {}, recorder)
    for _ in range(Graphed.WARMUP):
        graphed(torch.zeros(1))
    assert (len(calls), recorder.recorded) == (Graphed.WARMUP, 0)


def test_the_stages_are_the_same_when_recorded(tmp_path, monkeypatch, trained):
    monkeypatch.setattr(Runtime, "graphed", lambda self, step, rng=None: Graphed(step, Recorder()))
    actual = run(gen_condense, gan_flags(tmp_path))
    run(pool_match, match_flags(tmp_path, actual.best_path))
    rows = run(validate, validate_flags(tmp_path, "--pretrain-weight", str(tmp_path / "match" / "last.pth")))
    monkeypatch.undo()
    for stage in ("gan", "match"):
        recorded, plain = (
            torch.load(folder / stage / "last.pth", weights_only=True) for folder in (tmp_path, trained)
        )
        recorded["seconds"] = plain["seconds"]
        assert same(recorded, plain)
    plain = run(
        validate,
        validate_flags(tmp_path / "plain", "--pretrain-weight", str(tmp_path / "match" / "last.pth")),
    )
    assert [row["accs"] for row in rows] == [row["accs"] for row in plain]


# precision: bf16 and the channels-last layout against plain float32, on the same weights and random numbers


@functools.lru_cache
def trained_a_little(size: int) -> tuple[dict, ImageSet]:
    """A pair after 60 steps, and the images that it saw.

    To a fresh one the places of an image look alike, so that rounding decides what its max-pool chooses.
    """
    train = load_data("digits", "").train
    if size == 32:
        train = ImageSet(torch.nn.functional.pad(train.images, (2, 2, 2, 2)).repeat(1, 3, 1, 1), train.labels)
    torch.manual_seed(0)
    gan = GAN(
        *build_gan(
            CONFIG | {"width": 16, "z_dim": 100, "image_size": size, "channels": train.images.shape[1]}
        ),
        1e-3,
    )
    list(
        itertools.islice(
            train_gan(gan, train, epochs=10, batch_size=32, gp_weight=10, seed=0, runtime=CPU), 60
        )
    )
    return gan.state_dict(), train


def one_step(size: int, runtime: Runtime, seed: int) -> list[tuple[float, torch.Tensor]]:
    """(loss, its gradient) of the generator and of the discriminator at a step of stage 1."""
    state, train = trained_a_little(size)
    channels = train.images.shape[1]
    players = build_gan(CONFIG | {"width": 16, "z_dim": 100, "image_size": size, "channels": channels})
    gan = GAN(*(runtime.place(player) for player in players), 1e-4)
    gan.load_state_dict(copy.deepcopy(state))
    grads, update = [], Runtime.update

    def keep(self, optimizer):
        grads.append(
            torch.cat(
                [p.grad.flatten().double().cpu() for group in optimizer.param_groups for p in group["params"]]
            )
        )
        update(self, optimizer)

    torch.manual_seed(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runtime, "update", keep)
        steps = train_gan(
            gan, train.to(runtime.device), epochs=1, batch_size=64, gp_weight=10, seed=seed, runtime=runtime
        )
        losses = next(steps).losses
    return list(zip((losses["loss_g"].item(), losses["loss_d"].item()), grads, strict=True))


SEEDS = 3


@functools.lru_cache
def plain_steps(size: int) -> list[list[tuple[float, torch.Tensor]]]:
    """one_step in plain float32 from each seed."""
    return [one_step(size, CPU, seed) for seed in range(SEEDS)]


def compare(size: int, **execution) -> list[tuple[float, float, float]]:
    """For both players: relative difference of losses and of gradients, and the cosine of the gradients.

    They are medians of the seeds, because an activation within rounding of a kink (ReLU, max-pool) falls on
    its other side now and then and takes its whole gradient along.
    """
    actual = [[], []]
    for seed, plain in enumerate(plain_steps(size)):
        other_step = one_step(size, Runtime(CPU.device, **execution), seed)
        for player, ((loss, grad), (other_loss, other)) in enumerate(zip(plain, other_step, strict=True)):
            relative = ((grad - other).norm() / grad.norm()).item()
            actual[player].append(
                (
                    abs(loss - other_loss) / abs(loss),
                    relative,
                    torch.cosine_similarity(grad, other, dim=0).item(),
                )
            )
    return [tuple(map(statistics.median, zip(*rows, strict=True))) for rows in actual]


@pytest.mark.parametrize("variant", [28, 32])
def test_channels_last_agrees_with_plain_float32(variant):
    for loss, _, cosine in compare(variant, channels_last=True):
        assert loss < 1e-3
        assert 1 - cosine < 1e-4


@pytest.mark.parametrize("size", [28, 32])
def test_the_layouts_compute_the_same_but_for_rounding(size):
    """Losses, penalty and gradients of both players in float64, where no activation is near a kink."""
    torch.manual_seed(0)
    channels = 1 if size == 28 else 3
    players = [
        p.double() for p in build_gan(CONFIG | {"width": 16, "image_size": size, "channels": channels})
    ]
    real, z, y = (
        torch.rand(8, channels, size, size).double() * 2 - 1,
        torch.randn(8, 20).double(),
        torch.arange(8),
    )
    actual = []
    for layout in (torch.contiguous_format, torch.channels_last):
        generator, discriminator = (copy.deepcopy(p).to(memory_format=layout) for p in players)
        fake = generator(z, y).double()
        torch.manual_seed(1)
        penalty = gradient_penalty(discriminator, real, fake.detach())
        loss = (
            generator_loss(*discriminator(fake), y)
            + penalty
            + discriminator_loss(*discriminator(real), y, *discriminator(fake), y)
        )
        parameters = [*generator.parameters(), *discriminator.parameters()]
        actual.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    assert (actual[0] - actual[1]).norm() / actual[0].norm() < 1e-6


@pytest.mark.parametrize(
    ("variant", "channels_last"),
    [
        (28, False),
        (32, True),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in ((28, True), (32, False))),
    ],
)
def test_bf16_agrees_in_the_losses_and_in_the_direction_of_the_gradients(variant, channels_last):
    """bf16 moves one activation in some hundred over its kink.

    Gradients therefore differ by several percent in norm, whatever is done in float32 around them; their
    direction must not differ.
    """
    for loss, _, cosine in compare(variant, amp=True, channels_last=channels_last):
        assert loss < 1e-2
        # torch 2.6 emulates bf16 in another way (0.989), and bf16 instructions round in another (0.987 with
        # torch 2.14)
        assert cosine > (
            0.98 if torch.__version__.startswith("2.6.") or multiplies_bf16(CPU.device) else 0.99
        )


@pytest.mark.slow
def test_200_steps_end_within_the_spread_of_three_seeds():
    train = load_data("digits", "").train

    def last_losses(seed: int, **execution) -> torch.Tensor:
        """Mean (loss_d, loss_g) of steps 151 to 200."""
        runtime = Runtime(CPU.device, **execution)
        torch.manual_seed(seed)
        gan = GAN(
            *(runtime.place(player) for player in build_gan(CONFIG | {"width": 16, "z_dim": 100})), 1e-3
        )
        steps = train_gan(gan, train, epochs=100, batch_size=64, gp_weight=10, seed=seed, runtime=runtime)
        return torch.stack(
            [torch.stack(list(at.losses.values())).detach() for at in itertools.islice(steps, 150, 200)]
        ).mean(0)

    plain = torch.stack([last_losses(seed) for seed in range(3)])
    spread = plain.amax(0) - plain.amin(0)
    for execution in ({"amp": True}, {"channels_last": True}):
        assert (last_losses(0, **execution) - plain[0]).abs().less_equal(spread).all(), execution


# memory


def test_a_lack_of_memory_is_one_line(tmp_path, monkeypatch, capsys):
    def cuda(*args):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 8 GiB"
        )

    for lack in (cuda, lambda *args: torch.empty(10**15)):
        monkeypatch.setattr(gen_condense, "discriminator_step", lack)
        with pytest.raises(SystemExit) as stop:
            run(gen_condense, gan_flags(tmp_path))
        assert stop.value.code == 1
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("gen_condense.py: out of memory (")
        assert "allocate" in line
        assert "--batch-size" in line


def test_freed_memory_is_kept():
    """A child that lets a large tensor go still holds its pages."""
    program = """
import resource, sys, torch
from engine.environment import keep_freed_memory
sys.argv[1] == "keep" and keep_freed_memory()
for _ in range(3):
    [torch.ones(9_000_000) for _ in range(5)]
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
for _ in range(5):
    [torch.ones(9_000_000) for _ in range(5)]
print(faults() - before)
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("malloc keeps other ways elsewhere")
    kept, given_back = (
        int(
            subprocess.run(
                [sys.executable, "-c", program, mode], capture_output=True, text=True, check=True, cwd=ROOT
            ).stdout
        )
        for mode in ("keep", "plain")
    )
    assert kept < given_back / 5
    keep_freed_memory()  # and again is nothing


# optimisers


def test_an_optimiser_keeps_its_ways_when_it_loads_another_s_state():
    weights = [torch.nn.Parameter(torch.ones(2))]
    saved, loading = torch.optim.Adam(weights, lr=0.5, fused=True), torch.optim.Adam(weights, lr=0.1)
    weights[0].grad = torch.ones(2)
    saved.step()
    load_optimizer(loading, copy.deepcopy(saved.state_dict()))
    group = loading.param_groups[0]
    assert (group["lr"], bool(group["fused"]), group["capturable"]) == (0.1, False, False)
    assert loading.state[weights[0]]["step"] == 1
    loading.step()


def test_an_optimiser_s_state_takes_the_layout_of_its_weights():
    convs = [torch.nn.Conv2d(3, 4, 3) for _ in range(2)]
    convs[1].to(memory_format=torch.channels_last)
    saved, loading = (torch.optim.Adam(conv.parameters(), lr=0.1) for conv in convs)
    convs[0](torch.ones(1, 3, 5, 5)).sum().backward()
    saved.step()
    load_optimizer(loading, copy.deepcopy(saved.state_dict()))
    moment, expected = (
        loading.state[convs[1].weight]["exp_avg_sq"],
        saved.state[convs[0].weight]["exp_avg_sq"],
    )
    assert moment.stride() == convs[1].weight.stride() != expected.stride()
    assert torch.equal(moment, expected)
    assert loading.state[convs[1].bias]["step"] == 1


def test_on_the_cpu_adam_is_the_plain_one():
    optimizer = make_adam([torch.nn.Parameter(torch.ones(1))], 0.1)
    (group,) = optimizer.param_groups
    assert (group["fused"], group["capturable"], group["betas"], group["lr"]) == (
        None,
        False,
        (0.0, 0.9),
        0.1,
    )
    set_rate(optimizer, 0.05)
    assert group["lr"] == 0.05


def test_a_rate_on_the_device_is_changed_where_it_lies():
    rate = torch.tensor(0.1)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))], lr=rate, foreach=False)
    set_rate(optimizer, 0.05)
    assert rate == torch.tensor(0.05)
    assert optimizer.param_groups[0]["lr"] is rate


def test_flags_that_the_machine_cannot_do(monkeypatch):
    with pytest.raises(UsageError, match="--graphs: CUDA graphs need a CUDA device, found cpu"):
        make_runtime("cpu", None, None, True)
    with pytest.raises(UsageError, match="--batch-size 7: expected a multiple of the 2 processes"):
        Runtime(CPU.device, world_size=2).check_batch_size(7)
    with pytest.raises(UsageError, match=r"--batch-size 4: .* at least 8"):
        Runtime(CPU.device, world_size=4).check_batch_size(4)
    CPU.check_batch_size(7)


def test_lanes_and_watch_on_the_cpu():
    lanes, watch = Lanes(3, CPU.device), Stopwatch(CPU.device)
    for i in range(3):
        with lanes[i], watch:
            time.sleep(0.01)
    lanes.join()
    assert lanes.overlap == 1
    assert 0.03 <= watch.seconds() < 1


@pytest.fixture
def tf32():
    yield
    allow_tf32(False)
    torch.backends.cudnn.allow_tf32 = True  # torch's default


@pytest.mark.parametrize("on", [True, False])
def test_both_families_of_tf32_settings_agree(tf32, on):
    allow_tf32(not on)
    allow_tf32(on)
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == on
    assert torch.get_float32_matmul_precision() == ("high" if on else "highest")
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        expected = "tf32" if on else "ieee"
        assert (
            torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == expected
        )
    with torch.backends.cudnn.flags(enabled=False):
        assert torch.backends.cudnn.allow_tf32


# ranks


class Turns:
    """Two ranks in one process: threads that alternate at each update, each with its own random numbers."""

    def __init__(self):
        self.mine = [threading.Semaphore(0), threading.Semaphore(0)]
        self.rng, self.grads, self.means = [None, None], [None, None], None

    def begin(self, rank: int) -> None:
        self.mine[rank].acquire()
        if self.rng[rank] is not None:
            torch.set_rng_state(self.rng[rank])

    def pass_on(self, rank: int) -> None:
        self.rng[rank] = torch.get_rng_state()
        self.mine[1 - rank].release()


@dataclass(frozen=True)
class Accumulating(Runtime):
    """Adds up the gradients of the two shards by hand."""

    turns: Turns = field(default_factory=Turns)

    def shard(self, index):
        half = index.shape[-1] // 2
        return index[..., half:] if self.rank else index[..., :half]

    def update(self, optimizer):
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.turns.grads[self.rank] = [p.grad for p in parameters]
        self.turns.pass_on(self.rank)
        self.turns.begin(self.rank)
        if self.rank == 0:  # the other one has brought its gradients
            self.turns.means = [(a + b) / 2 for a, b in zip(*self.turns.grads, strict=True)]
        for p, mean in zip(parameters, self.turns.means, strict=True):
            p.grad = mean.clone()
        optimizer.step()


def accumulate(stage: str, weight) -> dict:
    """What rank 0 holds after an epoch of one process that adds up the gradients of two shards."""
    turns, results = Turns(), [None, None]
    data = load_data("digits", "", val_size=1180)

    def work(rank: int) -> None:
        turns.begin(rank)
        runtime = Accumulating(CPU.device, rank=rank, world_size=2, turns=turns)
        gan = GAN(*models.read_gan(weight).players(), 5e-6 if stage == "match" else 1e-4)
        pool = Pool(["convnet_w32"], data.info, 0.01, "color_crop", 0, runtime)
        torch.manual_seed(runtime.own_seed(0, stage))
        common = {"epochs": 1, "batch_size": 64, "gp_weight": 10.0, "seed": 0, "runtime": runtime}
        pool.steps = 1
        matching = {"matching": Matching(strategy="color_crop_cutout")}
        if stage == "gan":
            list(train_gan(gan, data.train, **common))
        else:
            list(train_match(gan, pool, data.train, **matching, **common))
        results[rank] = gan.state_dict() | pool.state_dict()

    def run_turns(rank: int) -> None:
        try:
            work(rank)
        finally:
            turns.pass_on(rank)

    threads = [threading.Thread(target=run_turns, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    turns.mine[0].release()
    for thread in threads:
        thread.join(120)
    return results[0]


def test_shards_make_up_the_batch():
    index = torch.arange(24).view(2, 12)
    shards = [Runtime(CPU.device, rank=rank, world_size=3).shard(index) for rank in range(3)]
    assert [shard.shape for shard in shards] == [(2, 4)] * 3
    assert torch.equal(torch.cat(shards, dim=1), index)
    assert CPU.shard(index) is index


def rank_flags(stage: str, trained, results, *extra: str) -> tuple[str, list[str]]:
    if stage == "gan":
        return "gen_condense", gan_flags(results, *extra)
    return "pool_match", match_flags(results, trained / "gan" / "last.pth", *extra)


def weights(folder, name: str = "last.pth") -> dict:
    return torch.load(folder / name, weights_only=True)


def close(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], rtol=1e-5, atol=1e-6) for name in a)


@pytest.mark.parametrize("stage", ["gan", "match"])
def test_two_ranks_equal_one_process_that_accumulates(driver, trained, tmp_path, stage):
    script, flags = rank_flags(stage, trained, tmp_path, "--epochs", "1")
    assert driver.call(script, tmp_path / "steps", flags, ranks=2) == [0, 0]
    start = trained / "gan" / "last.pth"
    if stage == "gan":  # the reference starts from the same initial weights
        torch.manual_seed(derive_seed(0, "init"))
        generator, discriminator = build_gan(CONFIG | {"z_dim": 100})
        info = load_data("digits", "").info.to_dict()
        state = {"config": CONFIG | {"z_dim": 100}, "info": info, "val_size": 0}
        start = tmp_path / "start.pth"
        torch.save(
            state | {"generator": generator.state_dict(), "discriminator": discriminator.state_dict()}, start
        )
    expected, actual = accumulate(stage, start), weights(tmp_path / stage)
    before = torch.load(start, weights_only=True)
    for player in ("generator", "discriminator"):
        assert close(actual[player], expected[player])
        assert not close(actual[player], before[player])
    if stage == "match":
        assert close(actual["pool"][0]["model"], expected["pool"][0]["model"])


@pytest.mark.parametrize("stage", ["gan", "match"])
def test_two_ranks_resume_to_the_bit(driver, trained, tmp_path, stage):
    for folder, kills in (("whole", 0), ("killed", 3)):
        script, flags = rank_flags(stage, trained, tmp_path / folder, "--save-interval", "2")
        for write in range(2, 2 + kills):
            statuses = driver.call(script, tmp_path / "steps", flags, kill_after_write=write, ranks=2)
            assert statuses == [-signal.SIGKILL, 1]
        assert driver.call(script, tmp_path / "steps", flags, ranks=2) == [0, 0]
    whole, killed = (weights(tmp_path / folder / stage) for folder in ("whole", "killed"))
    for name in ("generator", "discriminator", "optim_g", "optim_d", "rng", "rng_of_ranks"):
        assert same(whole[name], killed[name]), name
    assert not same(whole["rng"], whole["rng_of_ranks"][0])


def test_a_killed_rank_ends_the_job_with_one_line(driver, tmp_path):
    flags = gan_flags(tmp_path, "--save-interval", "1", "--epochs", "500")
    pids = driver.start("gen_condense", tmp_path / "steps", flags, ranks=2)
    deadline = time.time() + 60
    while not (tmp_path / "gan" / "last.pth").exists() and time.time() < deadline:
        time.sleep(0.01)
    os.kill(pids[1], signal.SIGKILL)
    assert driver.wait() == [1, -signal.SIGKILL]
    error = (tmp_path / "steps.0.err").read_text().strip().splitlines()[-1]
    assert error.startswith("gen_condense.py: another process of this job is gone (")
    assert error.endswith("the same command continues from the last checkpoint")
    reached = weights(tmp_path / "gan")["position"]
    assert reached["epoch"] + reached["step"] > 0
    assert driver.call(
        "gen_condense", tmp_path / "steps", [*flags, "--epochs", str(reached["epoch"] + 1)], ranks=2
    ) == [0, 0]


def test_a_stop_of_one_rank_stops_all_at_the_same_step(driver, tmp_path):
    flags = gan_flags(tmp_path, "--epochs", "500", "--print-freq", "2")
    pids = driver.start("gen_condense", tmp_path / "steps", flags, ranks=2)
    while not (tmp_path / "gan" / "last.pth").exists():
        time.sleep(0.01)
    os.kill(pids[1], signal.SIGTERM)
    assert driver.wait() == [143, 143]
    assert len(weights(tmp_path / "gan")["rng_of_ranks"]) == 1


def test_a_run_goes_on_with_another_number_of_ranks(driver, tmp_path):
    for epochs, ranks in enumerate((2, 1, 2, 4), start=1):
        flags = gan_flags(tmp_path, "--epochs", str(epochs))
        assert driver.call("gen_condense", tmp_path / "steps", flags, ranks=ranks) == [0] * ranks
        assert len(weights(tmp_path / "gan").get("rng_of_ranks", [])) == ranks - 1
    lines = [json.loads(line) for line in (tmp_path / "gan" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert max(abs(a["loss_d"] - b["loss_d"]) for a, b in itertools.pairwise(lines)) < 3


def test_bad_input_is_told_once(driver, tmp_path):
    flags = gan_flags(tmp_path, "--batch-size", "7")
    assert driver.call("gen_condense", tmp_path / "steps", flags, ranks=2) == [2, 2]
    assert "--batch-size 7: expected a multiple of the 2 processes" in (tmp_path / "steps.0.err").read_text()
    assert (tmp_path / "steps.1.err").read_text() == ""
    assert not (tmp_path / "gan").exists()


JOINING = """
import sys, time, pathlib, torch
import torch.distributed as dist
from engine import ranks
rank, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])
join = dist.init_process_group
def joined(*args, **settings):
    join(*args, **settings)
    time.sleep(rank)  # a rank may be slow on its way out
    (folder / str(rank)).touch()
dist.init_process_group = joined
ranks.join_job(rank, torch.device("cpu"))
assert {path.name for path in folder.iterdir()} == {"0", "1"}, sorted(folder.iterdir())
"""


def test_no_rank_goes_on_before_all_have_joined(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        job = os.environ | {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free.getsockname()[1]),
        }
    commands = [[sys.executable, "-c", JOINING, str(rank), str(tmp_path)] for rank in range(2)]
    ranks = [subprocess.Popen(command, cwd=ROOT, env=job | {"RANK": command[3]}) for command in commands]
    assert [rank.wait() for rank in ranks] == [0, 0]


def test_a_folder_that_is_held_is_told_once_and_no_rank_waits(driver, tmp_path):
    (tmp_path / "gan" / "outputs").mkdir(parents=True)
    with locked(tmp_path / "gan"):
        assert driver.call("gen_condense", tmp_path / "steps", gan_flags(tmp_path), ranks=2) == [2, 2]
    assert "another process is writing there" in (tmp_path / "steps.0.err").read_text()
    assert (tmp_path / "steps.1.err").read_text() == ""


def test_losses_keep_no_graph():
    meter, weight = LossMeter(), torch.ones(1, requires_grad=True)
    meter.update(Step(0, 1, {"loss": (2 * weight).sum()}))
    assert meter.waiting[0].losses["loss"].grad_fn is None
    assert meter.means(0) == {"loss": 2.0}


def test_torchrun_spreads_classifiers_and_writes_the_same_rows(trained, tmp_path):
    flags = ["--pretrain-weight", str(trained / "gan" / "last.pth"), "--repeats", "3", "--ipc", "1", "2"]
    alone = run(validate, validate_flags(tmp_path / "alone", *flags))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "validate.py", *validate_flags(tmp_path / "spread", *flags)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("classifier ") == 1  # one table
    rows = json.loads((tmp_path / "spread" / "test" / "results.json").read_text())
    assert [row["accs"] for row in rows] == [row["accs"] for row in alone]
