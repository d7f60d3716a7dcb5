"""The benchmark times what it says, keeps what it has, and counts operations as one would by hand."""

import importlib.util
import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TOOLS, run

from benchmarks import ddranking_check, parts, profile, speed, timing
from data import DATASETS, Data, ImageSet
from engine.runtime import Runtime

TINY = (
    "--device cpu --threads 1 --width 2 --batch-size 4 --pairs 2 --seconds 0.01 --network convnet_w32 "
    "--data-dir nowhere"
    " --no-loader --no-compile"
).split()


@pytest.mark.parametrize(
    "tool", [pytest.param(name, marks=[pytest.mark.slow] * (name != "benchmarks/speed")) for name in TOOLS]
)
def test_a_tool_runs_as_a_command(tool, tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / f"{tool}.py"), "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


def test_operations_are_counted():
    a, x, w = (
        torch.ones(3, 4),
        torch.ones(2, 5, 8, 8, requires_grad=True),
        torch.ones(7, 5, 3, 3, requires_grad=True),
    )
    with timing.CountFlops() as counter:
        a @ torch.ones(4, 6)
    assert counter.total == 2 * 3 * 4 * 6
    one = 2 * (2 * 7 * 6 * 6) * (5 * 3 * 3)
    with timing.CountFlops() as counter:
        (gradient,) = torch.autograd.grad(F.conv2d(x, w).square().sum(), x, create_graph=True)
    assert counter.total == 2 * one
    with timing.CountFlops() as counter:
        gradient.sum().backward()  # a gradient of a gradient
    assert counter.total >= 3 * one


def test_the_rate_of_products_is_found_although_the_first_product_takes_long(monkeypatch):
    """On CUDA the first one loads its libraries."""
    convolve, sizes = F.conv2d, []

    def slow_at_first(picture, kernel):
        if not sizes:
            time.sleep(1.0)
        sizes.append(len(kernel))
        return convolve(picture, kernel)

    monkeypatch.setattr(F, "conv2d", slow_at_first)
    assert timing.product_rate("cpu", torch.float32, 1, 0.5) > 0
    assert len(set(sizes)) > 1


@pytest.mark.parametrize("part", parts.ROWS)
@pytest.mark.parametrize("variant", ["ours", "eager", "loader"])
def test_a_unit_of_every_row_works(part, variant, monkeypatch):
    if variant == "loader" and not part.startswith("stage"):
        pytest.skip("the loader is a baseline of the steps")
    images_on = parts.images_on
    monkeypatch.setattr(
        parts, "images_on", lambda device, count=500: images_on(device, count)
    )  # the noise takes longer than the unit
    sizes = {"epochs": 1, "ipc": 1, "tests": 10} if part == "validation, n = 5" else {}
    unit = parts.ROWS[part](variant, Runtime(torch.device("cpu")), 4, 2, "convnet_w32", **sizes)
    done = unit()
    if sizes:
        assert len(done) == 5


def test_a_table_is_kept_and_gone_on_with(tmp_path, capsys):
    out = tmp_path / "speed.json"
    flags = [*TINY, "--parts", "stage-1 step", "generation", "--out", str(out)]
    record = run(speed, flags)
    assert json.loads(out.read_text()) == record
    assert [row["part"] for row in record["rows"]] == ["stage-1 step", "generation"]
    first, second = record["rows"]
    assert set(first["seconds"]) == set(second["seconds"]) == {"ours", "eager"}
    for row in record["rows"]:
        assert row["ratio"]["eager"]["min"] <= row["ratio"]["eager"]["median"] <= row["ratio"]["eager"]["max"]
        assert row["flops"] > 0
        assert row["memory"]["ours"] > 10**7
    printed = capsys.readouterr()
    assert "reading CIFAR-10 is not timed" in printed.err
    assert "| stage-1 step | 4 | 2 |" in printed.out
    again = run(speed, [*flags, "--batch-size", "4", "8"])
    assert [row["batch_size"] for row in again["rows"]] == [4, 500, 8]
    assert again["rows"][:2] == record["rows"]  # not timed again
    capsys.readouterr()
    run(speed, ["--table", str(out)])
    assert "| stage-1 step | 8 | 2 |" in capsys.readouterr().out


@pytest.mark.slow
def test_compiling_is_timed_apart(capsys):
    flags = [flag for flag in TINY if flag != "--no-compile"]
    generation, step = run(speed, [*flags, "--parts", "generation", "ten stage-4 steps"])["rows"]
    assert "compiled" not in generation["seconds"]
    assert set(step["seconds"]) == {"ours", "compiled", "eager"}
    assert step["ratio"]["compiled"]["min"] > 0
    assert step["compile_seconds"]["cold"] > step["compile_seconds"]["warm"] > 0
    assert set(step["pays_from_units"]) == {"cold", "warm"}
    (line,) = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("| ten stage-4 steps")
    ]
    assert "%" in line


def test_a_foreign_file_is_one_line(tmp_path, capsys):
    for flag in ("--out", "--table"):
        (tmp_path / "other.json").write_text('{"rows": []}')
        with pytest.raises(SystemExit) as stop:
            run(speed, [*TINY, flag, str(tmp_path / "other.json")])
        assert stop.value.code == 2
        assert "other.json: expected a result of this benchmark" in capsys.readouterr().err
        assert (tmp_path / "other.json").read_text() == '{"rows": []}'


def test_the_profile_names_operators_and_keeps_a_trace(tmp_path):
    command = "benchmarks/profile.py --part generation --device cpu --batch-size 4 --width 2 --units 1 --rows 4 --trace".split()
    done = subprocess.run(
        [sys.executable, *command, str(tmp_path / "trace.json")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "aten::" in done.stdout
    assert "operators take" in done.stdout
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert profile.parse_args([]).part == "stage-1 step"


# ddranking's scores


@pytest.fixture
def tiny_cifar(monkeypatch, tmp_path):
    """CIFAR-10 of noise, four training and two test images a class, and an exported set of one a class, not
    sorted."""
    info, rng = DATASETS["cifar10"].info, torch.Generator().manual_seed(0)

    def images(per_class: int) -> ImageSet:
        labels = torch.arange(10).repeat_interleave(per_class)
        return ImageSet(torch.randint(0, 256, (len(labels), 3, 32, 32), generator=rng).byte(), labels)

    data = Data(info, images(4), None, images(2))
    monkeypatch.setattr(ddranking_check, "load_data", lambda *args: data)
    torch.save((images(1).images, torch.arange(10).flip(0)), tmp_path / "ipc1.pt")
    return data


def test_ddrankings_formulas():
    assert ddranking_check.score(-1) == 0
    assert ddranking_check.score(1) == 1
    assert ddranking_check.score(0) == pytest.approx((1 - math.exp(-1)) / (math.e - math.exp(-1)))
    accs = {"syn": 0.5, "random": 0.3, "syn_plain": 0.45, "random_plain": 0.35}
    found = ddranking_check.scores(accs, 0.8)
    assert found["lrs"] == pytest.approx(ddranking_check.score(0.5 * 0.2 - 0.5 * 0.3))
    assert found["ars"] == pytest.approx(ddranking_check.score(0.5 * 0.2 + 0.5 * 0.1))
    assert ddranking_check.scores(accs, 0.8, 1.0)["lrs"] == pytest.approx(ddranking_check.score(0.2))


def test_ddranking_is_handed_the_images_that_are_there(tiny_cifar):
    class Given(ddranking_check.Binary):
        data = tiny_cifar

    test = Given("", train=False, transform=np.asarray, download=True)
    picture, label = test[3]
    assert (len(Given("")), len(test), label) == (40, 20, 1)
    assert np.array_equal(picture.transpose(2, 0, 1), tiny_cifar.test.images[3].numpy())


def test_ddranking_is_listened_to_and_left_as_it_is():
    class Scorer:
        def _compute_with_aug_metrics_helper(self, lr: float) -> tuple[float, float]:
            return 10 * lr, lr

        def _compute_without_aug_metrics_helper(self, lr: float) -> tuple[float, float]:
            return lr, lr

    scorer, heard = Scorer(), {name: [] for name in ddranking_check.TRAININGS}
    ddranking_check.listen(scorer, heard)
    assert scorer._compute_without_aug_metrics_helper(lr=3) == (3, 3)
    assert [scorer._compute_with_aug_metrics_helper(lr=lr) for lr in (1, 2)] == [(10, 1), (20, 2)]
    names = {ddranking_check.TRAININGS[method]: accs for method, accs in heard.items()}
    assert names == {
        ("syn", "random"): [],
        ("syn_aug", "random_aug"): [10, 20],
        ("syn_plain", "random_plain"): [3],
    }


def test_ddranking_itself_scores_as_its_formula_does(tiny_cifar, tmp_path):
    pytest.importorskip(
        "ddranking", reason="ddranking is not installed: pip install -r benchmarks/requirements-ddranking.txt"
    )
    flags = (
        "--epochs 1 --test-interval 1 --repeats 4 --full-accuracy 10".split()
    )  # with 84.8 any set has -0.1565
    (theirs, _) = run(ddranking_check, ["--set", str(tmp_path / "ipc1.pt"), *flags])
    for values in zip(*theirs["runs"].values(), strict=True):
        found = dict(zip(theirs["runs"], values, strict=True))
        augmented = found | {"syn": found["syn_aug"], "random": found["random_aug"]}
        assert found["lrs"] == pytest.approx(ddranking_check.scores(found, 10)["lrs"])  # of percent
        assert found["ars"] == pytest.approx(ddranking_check.scores(augmented, 10)["ars"])


def test_ddrankings_scores_beside_ours(tiny_cifar, tmp_path, monkeypatch, capsys):
    theirs = {
        "syn": [20.0, 22.0],
        "random": [15.0, 16.0],
        "syn_aug": [21.0, 23.0],
        "random_aug": [15.0, 16.0],
        "lrs": [0.1, 0.2],
    }
    theirs |= {"syn_plain": [18.0, 19.0], "random_plain": [14.0, 17.0]}
    handed = []
    monkeypatch.setattr(
        ddranking_check,
        "package_scores",
        lambda images, data, args: handed.append((images, data)) or theirs | {"ars": [1.0, 3.0]},
    )
    flags = [
        "--set",
        str(tmp_path / "ipc1.pt"),
        "--epochs",
        "2",
        "--test-interval",
        "1",
        "--test-images",
        "15",
        "--repeats",
        "2",
    ]
    rows = run(ddranking_check, [*flags, "--out", str(tmp_path / "out" / "ddr.json")])
    images, data = handed[0]
    assert len(data.test) == 15
    assert torch.equal(images, torch.load(tmp_path / "ipc1.pt")[0].flip(0))  # sorted by class
    ours = rows[1]["runs"]
    runs = [
        {name: ours[name][i] / 100 for name in ("syn", "random", "syn_plain", "random_plain")}
        for i in range(2)
    ]
    assert ours["lrs"] == pytest.approx([ddranking_check.scores(one, 0.848)["lrs"] for one in runs])
    assert rows[1]["scores"]["ars"] == pytest.approx(sum(ours["ars"]) / 2)
    out = capsys.readouterr().out
    lrs = [ddranking_check.score((syn - random - (84.8 - syn)) / 200) for syn, random in ((20, 15), (22, 16))]
    (line,) = [line for line in out.splitlines() if line.startswith("label-robust")]
    assert f"{sum(lrs) / 2:.4g} ± " in line
    assert "0.15 ± " in line
    ars = [ddranking_check.score((6 + 4) / 200), ddranking_check.score((7 + 2) / 200)]
    (line,) = [line for line in out.splitlines() if line.startswith("augmentation-robust")]
    assert f"{sum(ars) / 2:.4g} ± " in line
    assert "all real images: 84.8 % on both sides, given and not trained" in out
    assert all(f"patched: {line}" in out for line in ddranking_check.PATCHED)
    record = json.loads((tmp_path / "out" / "ddr.json").read_text())
    assert [row["scored_by"] for row in record["rows"]] == ["ddranking 0.2.0", "ours"]
    assert record["rows"][1]["accs"] == ours["syn"]
    again = run(ddranking_check, flags)
    assert again[1]["runs"] == ours  # the seeds are fixed


def test_what_ddranking_cannot_score_is_one_line(tiny_cifar, tmp_path, capsys):
    torch.save(
        ((torch.arange(30720) // 7).view(10, 3, 32, 32).byte(), torch.full((10, 10), 0.1)),
        tmp_path / "soft.pt",
    )
    torch.save((torch.zeros(10, 1, 28, 28, dtype=torch.uint8), torch.arange(10)), tmp_path / "gray.pt")
    cases = [
        (["--set", "missing.pt"], "missing.pt: no such file, expected images and labels"),
        (["--set", str(tmp_path / "soft.pt")], "holds soft labels, expected hard ones"),
        (["--set", str(tmp_path / "gray.pt")], "expected (N, 3, 32, 32) for cifar10"),
        (
            ["--set", str(tmp_path / "ipc1.pt"), "--epochs", "5"],
            "--test-interval 20: the package would never test in 5 epochs",
        ),
    ]
    if importlib.util.find_spec("ddranking") is None:
        missing = "pip install -r benchmarks/requirements-ddranking.txt"
        cases.append((["--set", str(tmp_path / "ipc1.pt")], missing))
    for flags, message in cases:
        with pytest.raises(SystemExit) as stop:
            run(ddranking_check, flags)
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
