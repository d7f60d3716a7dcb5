"""The three stages on CUDA, eager and as CUDA graphs: `pytest -m gpu`."""

import copy
import itertools
import statistics
import subprocess
import sys
import warnings

import pytest
import torch
from conftest import ROOT, continual_flags, gan_flags, match_flags, run, same, validate_flags
from torch import nn

import continual
import gen_condense
import pool_match
import validate
from data import DATASETS, ImageSet, load_data
from engine.run_folder import RunFolder
from engine.runtime import Runtime, make_runtime
from engine.tensors import to_host
from gen_condense import train_gan
from models import GANS, NETWORKS, build_gan, deploy, load_generator
from models.deploy import Filtered
from models.gan import GAN, Generator, estimate_statistics
from models.pool import Pool
from replay.continual import Continual
from replay.methods import METHODS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default"),  # cuDNN warns of plans that it tries and leaves
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


PLAIN = ["--no-amp", "--no-channels-last"]


@pytest.fixture(autouse=True)
def default_stream(monkeypatch):
    """--graphs moves the process to a stream of its own: here each test begins on the default one, and sums
    in one order."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    with torch.cuda.stream(torch.cuda.default_stream()):
        yield


@pytest.mark.parametrize("gan", GANS)
@pytest.mark.parametrize("graphs", [[], ["--graphs"]], ids=["eager", "graphs"])
@pytest.mark.parametrize("precision", [[], PLAIN], ids=["amp", "float32"])
def test_three_stages(tmp_path, precision, graphs, gan):
    cuda = ["--device", "cuda", *precision, *graphs]
    found = run(gen_condense, gan_flags(tmp_path, *cuda, "--gan", gan))
    assert all(torch.isfinite(torch.tensor(list(line.values()))).all() for line in found.lines)
    found = run(
        pool_match, match_flags(tmp_path, found.best_path, *cuda, "--pool", "convnet_w32", "resnet10")
    )
    rows = run(validate, validate_flags(tmp_path, "--pretrain-weight", str(found.best_path), *cuda))
    assert [row["n"] for row in rows] == [2, 2, 2]
    assert load_generator(found.best_path).sample(torch.arange(3)).device.type == "cpu"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("graphs", [[], ["--graphs"]], ids=["eager", "graphs"])
def test_continual(tmp_path, method, graphs):
    flags = continual_flags(
        tmp_path, method, *graphs, "--pool", "convnet_w32", "resnet18_w64", "--dsa-strategy", "crop_flip"
    )
    flags[flags.index("--device") + 1] = "cuda"
    results = run(continual, flags)
    assert results["finished"]
    assert set(results["networks"]) == {"convnet_w32", "resnet18_w64", "ensemble"}


CONTROLS = {
    "budget": ("dgr", "--memory-bytes 400000 --restat 2"),
    "retrain": ("condensed", "--retrain --retrain-steps 5 --fill-real"),
    "replay-loss": ("dim", "--replay-loss er"),
    "jpeg": ("er", "--codec jpeg"),
    "png": ("der++", "--codec png"),
    "webp": ("gdumb", "--codec webp"),
    "energy": (
        "dim",
        "--gan-steps 0 --match-steps 10 --match-batch 4 --rehearse-steps 3",
    ),
    "condensed": ("condensed", "--condense-match grad --condense-steps 6 --codec jpeg"),
    "densenet": ("er", "--pool densenet"),
}


def on_cuda(results, method: str, *extra: str) -> list[str]:
    flags = continual_flags(results, method, *extra)
    flags[flags.index("--device") + 1] = "cuda"
    return flags


@pytest.mark.parametrize(
    "control", [pytest.param(name, marks=[pytest.mark.slow] * (name == "densenet")) for name in CONTROLS]
)
@pytest.mark.parametrize("graphs", [[], ["--graphs"]], ids=["eager", "graphs"])
def test_continual_controls(tmp_path, control, graphs):
    method, extra = CONTROLS[control]
    flags = on_cuda(
        tmp_path, method, *PLAIN, *graphs, "--num-tasks", "2", "--pool", "mlp_w100", *extra.split()
    )
    if "--memory-bytes" in flags:
        del flags[flags.index("--width") : flags.index("--width") + 2]
    assert run(continual, flags)["finished"]


@pytest.mark.parametrize("method", ["er", "dim"])
def test_a_continual_checkpoint_goes_through_every_way_of_executing(tmp_path, monkeypatch, method):
    """Stopped every nine steps, each start executes in another way."""
    operations, starts = (
        Continual._operations,
        itertools.cycle(
            (["--device", "cpu"], ["--device", "cuda", *PLAIN], ["--device", "cuda", "--graphs"])
        ),
    )
    calls = itertools.count(1)

    def stop(*args):
        if next(calls) % 9 == 0:
            raise KeyboardInterrupt
        return operations(*args)

    monkeypatch.setattr(Continual, "_operations", stop)
    for start in itertools.islice(starts, 12):
        try:
            results = run(
                continual,
                [*continual_flags(tmp_path, method, "--save-interval", "4", "--pool", "mlp_w100"), *start],
            )
            break
        except SystemExit as stopped:
            assert stopped.code != 1  # noqa: PT017
    assert results["finished"]


class Waits(list):
    """What made the host wait in a block, as torch tells of it."""

    def __enter__(self):
        self.caught = warnings.catch_warnings(record=True)
        self.found = self.caught.__enter__()
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *error):
        torch.cuda.set_sync_debug_mode("default")
        self.caught.__exit__(*error)
        self += [
            str(warning.message) for warning in self.found if "called a synchronizing" in str(warning.message)
        ]


@pytest.mark.parametrize("graphs", [[], ["--graphs"]], ids=["eager", "graphs"])
@pytest.mark.parametrize(
    ("method", "pool"), [("er", ["mlp_w100"]), ("der++", ["mlp_w100", "mlp_w400"]), ("dim", ["mlp_w100"])]
)
def test_the_host_does_not_wait_in_the_stream(tmp_path, monkeypatch, method, pool, graphs):
    """But at the first step of a task."""
    stream, waits = Continual.stream_steps, {}

    def watched(self, task, done):
        steps = stream(self, task, done)
        for i in itertools.count():
            with Waits() as found:
                losses = next(steps, None)
            if losses is None:
                return
            waits[task, i] = list(found)
            yield losses

    monkeypatch.setattr(Continual, "stream_steps", watched)
    run(
        continual,
        on_cuda(tmp_path, method, *PLAIN, *graphs, "--pool", *pool, "--num-tasks", "2", "--epochs", "2"),
    )
    assert len(waits) > 20
    assert {key: found for key, found in waits.items() if found and key[1] > 0} == {}


def test_a_save_waits_for_a_few_copies(tmp_path, monkeypatch):
    save, waits = RunFolder.save, []

    def watched(self, *args):
        with Waits() as found:
            save(self, *args)
        waits.append(len(found))

    monkeypatch.setattr(RunFolder, "save", watched)
    run(gen_condense, gan_flags(tmp_path, "--device", "cuda", *PLAIN, "--ema", "0.9", "--epochs", "1"))
    run(continual, on_cuda(tmp_path, "dim", *PLAIN, "--num-tasks", "2", "--pool", "mlp_w100", "mlp_w400"))
    assert len(waits) == 5
    assert max(waits) <= 12


def test_tensors_come_to_the_host_together():
    values = [
        torch.randn(3, 4, 5, 5, device="cuda").to(memory_format=torch.channels_last),
        torch.tensor(2.5, device="cuda"),
    ]
    values += [
        torch.arange(7, device="cuda"),
        torch.rand(4, device="cuda") < 0.5,
        torch.empty(0, 3, device="cuda"),
    ]
    state = {"values": values, "again": (values[0], "text", None), "here": torch.ones(2)}
    with Waits() as waits:
        copy = to_host(state)
    assert len(waits) == 3  # types
    assert [value.device.type for value in copy["values"]] == ["cpu"] * 5
    assert same(
        copy,
        {
            "values": [value.cpu() for value in values],
            "again": (values[0].cpu(), "text", None),
            "here": torch.ones(2),
        },
    )
    assert copy["again"][0] is copy["values"][0]
    assert same(to_host(state, chunk_bytes=100), copy)


def test_statistics_are_estimated_without_a_wait():
    runtime = make_runtime("cuda", False, False)
    generator = runtime.place(
        build_gan({"num_classes": 10, "channels": 1, "image_size": 28, "width": 4, "z_dim": 100})[0]
    )
    with Waits() as waits:
        estimate_statistics(generator, 3, 8, 0, runtime)
    assert waits == []
    assert not torch.equal(generator.bn0.running_mean, torch.zeros_like(generator.bn0.running_mean))


class Latents(nn.Module):
    """A generator whose images are its latents; it notes the sizes of its batches."""

    num_classes, z_dim = 10, 784

    def __init__(self):
        super().__init__()
        self.made = []

    def forward(self, z, y):
        self.made.append(len(z))
        return z.view(-1, 1, 28, 28)

    sample = Generator.sample


def test_redrawn_images_are_made_in_a_few_batch_sizes(monkeypatch):
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(784, 10, bias=False)).eval().cuda()
    with torch.no_grad():
        teacher[1].weight.copy_(
            torch.randn(10, 784, generator=torch.Generator().manual_seed(0))
        )  # sure of a class, whichever
    y = torch.arange(10, device="cuda").repeat(7)

    def sample():
        generator = Latents().eval()
        images = Filtered(generator, teacher, 0.5).sample(y, torch.Generator("cuda").manual_seed(0))
        return images, set(generator.made[1:])

    padded, sizes = sample()
    assert sizes <= {16, 32, 64, 128}
    monkeypatch.setattr(deploy, "padded_size", lambda n: n)
    plain, sizes = sample()
    assert torch.equal(padded, plain)
    assert len(sizes) > 4


@pytest.mark.parametrize("method", ["er", "der++", "dim"])
def test_continual_graphs_compute_what_eager_steps_do(tmp_path, method):
    def last(*extra):
        run(continual, on_cuda(tmp_path / str(len(extra)), method, *PLAIN, "--epochs", "4", *extra))
        return torch.load(tmp_path / str(len(extra)) / method / "last.pth", map_location="cpu")["learners"][
            "convnet_w32"
        ]["model"]

    eager, graphs = last(), last("--graphs")
    for name, value in eager.items():
        assert torch.allclose(value, graphs[name], rtol=1e-3, atol=1e-4), name


def test_a_cpu_run_continues_on_cuda_and_back(tmp_path):
    for i, device in enumerate(("cpu", "cuda", "cpu"), start=1):
        found = run(gen_condense, gan_flags(tmp_path, "--device", device, "--epochs", str(i)))
        assert len(found.lines) == i


def test_resume_inside_an_epoch_goes_on_from_the_saved_step(tmp_path, monkeypatch):
    step, calls = gen_condense.discriminator_step, []

    def stop(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(*args)

    flags = gan_flags(tmp_path, "--device", "cuda", "--save-interval", "2")
    with monkeypatch.context() as patch:
        patch.setattr(gen_condense, "discriminator_step", stop)
        with pytest.raises(SystemExit):
            run(gen_condense, flags)
    assert len(run(gen_condense, flags).lines) == 2


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphs"])
def test_a_pool_update_of_every_network(name, graphs):
    runtime = make_runtime("cuda", None, None, graphs)
    pool = Pool([name], DATASETS["cifar10"].info, 0.01, "color_crop", 0, runtime)
    pool.select(0, 1)
    images = ImageSet(torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8)).to(
        runtime.device
    )
    for _ in range(5 if graphs else 1):  # three as they are, a recording and its replays
        pool.train_step(images, torch.arange(8, device=runtime.device), torch.Generator())
    assert all(torch.isfinite(p).all() for p in pool.model.parameters())


def test_cuda_and_cpu_agree_on_a_step(tmp_path):
    losses = {}
    for device in ("cpu", "cuda"):
        flags = gan_flags(tmp_path / device, "--device", device, "--no-amp", "--epochs", "1")
        losses[device] = run(gen_condense, flags).lines[0]["loss_d"]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.05)


def test_deployment(tmp_path):
    """Two generators, filtered and in half precision, and a classifier kept."""
    cuda = ["--device", "cuda"]
    paths = [
        str(run(gen_condense, gan_flags(tmp_path / seed, *cuda, "--gan", "resnet", "--seed", seed)).best_path)
        for seed in "01"
    ]
    run(
        validate,
        validate_flags(
            tmp_path / "teacher", "--data", "digits", "--source", "real", "--save-classifiers", *cuda
        ),
    )
    teacher = next((tmp_path / "teacher" / "test" / "classifiers").iterdir())
    flags = [
        "--source",
        "generator",
        "--pretrain-weight",
        *paths,
        "--filter",
        "0.5",
        "--teacher",
        str(teacher),
        "--storage",
        "fp16",
    ]
    rows = run(validate, validate_flags(tmp_path, *flags, *cuda))
    assert [row["n"] for row in rows] == [2, 2]


@pytest.mark.parametrize("graphs", [[], ["--graphs"]], ids=["eager", "graphs"])
def test_every_source_of_the_referee(tmp_path, trained, graphs):
    cuda = ["--device", "cuda", *graphs]
    run(
        validate,
        validate_flags(
            tmp_path / "teacher", "--data", "digits", "--source", "real", "--save-classifiers", *cuda
        ),
    )
    teacher = next((tmp_path / "teacher" / "test" / "classifiers").iterdir())
    weight = [
        "--pretrain-weight",
        str(trained / "gan" / "last.pth"),
        "--storage",
        "int8",
        "--budget",
        "fixed",
        "stream",
        "--curve",
        "2",
    ]
    sources = [
        "--source",
        "generator",
        "random-real",
        "herding",
        "real",
        "condensed",
        "--match-bytes",
        "--herding-epochs",
        "1",
    ]
    sources += ["--condense-steps", "6", "--condense-batch", "8"]
    soft = ["--labels", "hard", "soft", "--teacher", str(teacher), "--recipe", "strong", "--epochs-eval", "9"]
    rows = run(
        validate, validate_flags(tmp_path, *weight, *sources, *soft, "--export", str(tmp_path / "out"), *cuda)
    )
    assert len(rows) == 2 * 2 * 9
    assert all(row["n"] == 2 and len(row["curve_accs"][0]) == 2 for row in rows)
    assert rows[0]["samples"]["images"] != rows[0]["samples"]["real"]
    flags = [
        "--source",
        "file",
        "--file",
        str(tmp_path / "out" / "ipc3.pt"),
        "--data",
        "digits",
        "--budget",
        "fixed",
        "--recipe",
        "strong",
    ]
    (back,) = run(validate, validate_flags(tmp_path, *flags, "--epochs-eval", "9", *cuda))
    assert back["accs"] == pytest.approx(rows[0]["accs"], abs=3)


def weights(path) -> dict:
    return torch.load(path, weights_only=True)


def agree(a: dict, b: dict, tolerance: float) -> bool:
    """Whether two networks' weights are the same within a part of their norm."""
    return all(
        (a[name].double() - b[name].double()).norm() <= tolerance * (1 + b[name].double().norm())
        for name in a
    )


INGREDIENTS = "--ema 0.9 --lr-decay linear --lr-d 1e-3 --diffaug color_crop_cutout --restat 2".split()


@pytest.mark.parametrize(("gan", "extra"), [("dim", []), ("resnet", INGREDIENTS)])
def test_graphs_take_the_steps_that_eager_takes(tmp_path, gan, extra):
    """Ten steps of each stage: three run as they are, seven are replays; an evaluation lies between the two
    epochs."""
    evaluated = [
        "--device",
        "cuda",
        *PLAIN,
        "--eval-interval",
        "1",
        "--eval-model",
        "convnet_w32",
        "--ipc",
        "2",
        "--epochs-eval",
        "2",
    ]
    for folder, graphs in (("eager", []), ("graphs", ["--graphs"])):
        found = run(gen_condense, gan_flags(tmp_path / folder, "--gan", gan, *evaluated, *extra, *graphs))
        pool = [
            "--pool",
            "convnet_w32",
            *(["--match", "dist", "--pool-size", "2"] if extra else ["resnet10"]),
        ]
        run(
            pool_match,
            match_flags(tmp_path / folder, found.folder / "last.pth", *evaluated, *extra, *graphs, *pool),
        )
    for stage in ("gan", "match"):
        eager, graphs = (weights(tmp_path / folder / stage / "last.pth") for folder in ("eager", "graphs"))
        for player in ("generator", "discriminator"):
            assert agree(graphs[player], eager[player], 1e-3)
        assert torch.equal(graphs["rng"]["cuda"], eager["rng"]["cuda"])  # the same random numbers were drawn


def test_matching_alone_takes_as_graphs_the_steps_that_eager_takes(tmp_path, trained):
    alone = "--device cuda --recipe-match energy --match-batch 4 --match-composition dim".split()
    alone += "--match-strategy color --epochs 2".split()
    alone += [
        "--val-size",
        "1380",
        "--teacher-epochs",
        "1",
        "--batch-size",
        "16",
        "--pool-size",
        "2",
        "--pool-age",
        "4",
        *PLAIN,
    ]
    for folder, graphs in (("eager", []), ("graphs", ["--graphs"])):
        run(pool_match, match_flags(tmp_path / folder, trained / "gan" / "last.pth", *alone, *graphs))
    eager, graphs = (weights(tmp_path / folder / "match" / "last.pth") for folder in ("eager", "graphs"))
    assert agree(graphs["generator"], eager["generator"], 1e-3)
    assert torch.equal(graphs["rng"]["cuda"], eager["rng"]["cuda"])


def steps_of(runtime: Runtime, batch_sizes: list[int], steps: int, width: int = 16) -> tuple[GAN, list]:
    """A pair after some steps with each batch size in turn, and the losses."""
    torch.manual_seed(0)
    config = {"num_classes": 10, "channels": 1, "image_size": 28, "width": width, "z_dim": 100}
    gan = GAN(*(runtime.place(player) for player in build_gan(config)), 1e-4)
    train = load_data("digits", "").train.to(runtime.device)
    losses = []
    for batch_size in batch_sizes:
        loop = train_gan(gan, train, epochs=100, batch_size=batch_size, gp_weight=10, seed=0, runtime=runtime)
        losses += [
            {name: loss.item() for name, loss in at.losses.items()} for at in itertools.islice(loop, steps)
        ]
    return gan, losses


def test_graphs_with_a_changed_batch_size():
    eager, eager_losses = steps_of(make_runtime("cuda", False, False), [64, 32, 64], 6)
    graphs, losses = steps_of(make_runtime("cuda", False, False, True), [64, 32, 64], 6)
    for a, b in zip(losses, eager_losses, strict=True):
        assert a == pytest.approx(b, rel=1e-2)
    assert agree(graphs.generator.state_dict(), eager.generator.state_dict(), 1e-3)


def test_a_step_recorded_for_two_shapes_keeps_them_apart():
    runtime = make_runtime("cuda", False, False, True)
    total = torch.zeros(1, device="cuda")

    def add(x, scale):
        total.add_(scale * x.sum() + 0 * torch.rand(1, device="cuda"))
        return {"total": total[0]}

    step, expected = runtime.graphed(add), 0.0
    for i in range(12):
        x = torch.full((3 + i % 2,), float(i), device="cuda")
        expected += 2.0 * i * (3 + i % 2)
        assert step(x, scale=2.0)["total"].item() == pytest.approx(expected)


def test_gradients_of_one_step_agree_with_the_cpu(monkeypatch):
    """After 60 steps; the latent codes and the penalty's places are drawn on the CPU for both, so that the
    step is the same.

    Medians of five seeds: see compare() in test_runtime.py.
    """
    config = {"num_classes": 10, "channels": 1, "image_size": 28, "width": 16, "z_dim": 100}
    train = load_data("digits", "").train
    torch.manual_seed(0)  # else the pair and its 60 steps depend on the tests before this one
    gan = GAN(*build_gan(config), 1e-3)
    list(
        itertools.islice(
            train_gan(
                gan,
                train,
                epochs=10,
                batch_size=32,
                gp_weight=10,
                seed=0,
                runtime=Runtime(torch.device("cpu")),
            ),
            60,
        )
    )
    state = gan.state_dict()
    for name in ("rand", "randn", "randint"):
        draw = getattr(torch, name)
        monkeypatch.setattr(
            torch, name, lambda *a, draw=draw, device="cpu", generator=None, **k: draw(*a, **k).to(device)
        )

    def gradients(runtime: Runtime, seed: int) -> list[torch.Tensor]:
        other, grads, update = (
            GAN(*(runtime.place(player) for player in build_gan(config)), 1e-4),
            [],
            Runtime.update,
        )
        other.load_state_dict(copy.deepcopy(state))

        def keep(self, optimizer):
            grads.append(
                torch.cat(
                    [
                        p.grad.flatten().double().cpu()
                        for group in optimizer.param_groups
                        for p in group["params"]
                    ]
                )
            )
            update(self, optimizer)

        torch.manual_seed(seed)
        with monkeypatch.context() as patch:
            patch.setattr(Runtime, "update", keep)
            next(
                train_gan(
                    other,
                    train.to(runtime.device),
                    epochs=1,
                    batch_size=128,
                    gp_weight=10,
                    seed=seed,
                    runtime=runtime,
                )
            )
        return grads

    plain = [gradients(Runtime(torch.device("cpu")), seed) for seed in range(5)]
    for way, least in (((False, False), 0.999), ((False, True), 0.999), ((True, True), 0.98)):
        runtime = make_runtime("cuda", *way)
        found = [gradients(runtime, seed) for seed in range(5)]
        for player in range(2):
            cosines = [
                torch.cosine_similarity(a[player], b[player], dim=0).item()
                for a, b in zip(plain, found, strict=True)
            ]
            assert statistics.median(cosines) > least, (way, player)


@pytest.mark.slow
@pytest.mark.parametrize(
    "execution",
    [(True, True, False), (True, True, True), (False, False, True)],
    ids=["amp", "amp+graphs", "graphs"],
)
def test_200_steps_end_within_the_spread_of_three_seeds(execution):
    def last_losses(seed: int, runtime: Runtime) -> torch.Tensor:
        torch.manual_seed(seed)
        config = {"num_classes": 10, "channels": 1, "image_size": 28, "width": 16, "z_dim": 100}
        gan = GAN(*(runtime.place(player) for player in build_gan(config)), 1e-3)
        train = load_data("digits", "").train.to(runtime.device)
        steps = train_gan(gan, train, epochs=100, batch_size=64, gp_weight=10, seed=seed, runtime=runtime)
        return (
            torch.stack(
                [torch.stack(list(at.losses.values())).detach() for at in itertools.islice(steps, 150, 200)]
            )
            .mean(0)
            .cpu()
        )

    plain = torch.stack([last_losses(seed, make_runtime("cuda", False, False)) for seed in range(3)])
    spread = plain.amax(0) - plain.amin(0)
    assert (last_losses(0, make_runtime("cuda", *execution)) - plain[0]).abs().less_equal(spread).all()


def test_a_checkpoint_goes_through_every_way_of_executing(tmp_path):
    ways = [
        ["--device", "cpu"],
        ["--device", "cuda", *PLAIN],
        ["--device", "cuda", "--graphs"],
        ["--device", "cuda", *PLAIN, "--graphs"],
    ]
    for i, way in enumerate([*ways, *reversed(ways)], start=1):
        found = run(gen_condense, gan_flags(tmp_path, *way, "--epochs", str(i)))
        assert len(found.lines) == i
    for i, way in enumerate([*ways, *reversed(ways)], start=1):
        assert (
            len(run(pool_match, match_flags(tmp_path, found.best_path, *way, "--epochs", str(i))).lines) == i
        )


@pytest.mark.parametrize("recipe", ["dim", "strong"])
def test_classifiers_side_by_side_equal_those_one_at_a_time(tmp_path, trained, recipe):
    flags = [
        "--recipe",
        recipe,
        "--pretrain-weight",
        str(trained / "gan" / "last.pth"),
        "--device",
        "cuda",
        *PLAIN,
        "--repeats",
        "3",
        "--epochs-eval",
        "20",
    ]
    apart = run(validate, validate_flags(tmp_path / "apart", *flags))
    for name, more in (("together", ["--together", "3"]), ("graphs", ["--graphs"])):
        rows = run(validate, validate_flags(tmp_path / name, *flags, *more))
        for row, other in zip(rows, apart, strict=True):
            assert row["accs"] == pytest.approx(other["accs"], abs=3)
            assert (row["steps"], row["images_seen"]) == (other["steps"], other["images_seen"])


@pytest.mark.parametrize("graphs", [[], ["--graphs"]], ids=["eager", "graphs"])
def test_a_lack_of_memory_is_one_line(tmp_path, graphs, capsys):
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved() + 200 * 2**20
    torch.cuda.set_per_process_memory_fraction(held / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(SystemExit) as stop:
            run(
                gen_condense,
                gan_flags(
                    tmp_path,
                    "--device",
                    "cuda",
                    "--width",
                    "196",
                    "--val-size",
                    "0",
                    "--batch-size",
                    "750",
                    *graphs,
                ),
            )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert stop.value.code == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("gen_condense.py: out of memory (")
    assert "--batch-size" in line


def test_the_benchmark_runs():
    sizes = "--width 8 --batch-size 16 --pairs 1 --seconds 0.01 --network convnet_w32"
    command = f"benchmarks/speed.py --device cuda --graphs --compile {sizes}".split()
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| stage-1 step |") == 1
