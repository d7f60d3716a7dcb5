"""The benchmark times what it says, keeps what it has, and counts operations as one would by hand."""

import json
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TOOLS, run

from benchmarks import parts, profile, speed, timing
from engine.runtime import Runtime

TINY = (
    "--device cpu --threads 1 --width 2 --batch-size 4 --pairs 2 --seconds 0.01 --network convnet_w32".split()
)


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
    a = torch.ones(3, 4)
    x = torch.ones(2, 5, 8, 8, requires_grad=True)
    w = torch.ones(7, 5, 3, 3, requires_grad=True)
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
    assert timing.product_rate("cpu", torch.float32, 0.5) > 0
    assert len(set(sizes)) > 1


@pytest.mark.parametrize("part", parts.PARTS)
def test_a_unit_of_every_part_works(part, monkeypatch):
    noise = parts.noise  # of 500 images: 50,000 would take longer than the unit
    monkeypatch.setattr(parts, "noise", lambda runtime, count=500: noise(runtime, count))
    sizes = {"epochs": 1, "ipc": 1, "tests": 10} if part == "validation, n = 5" else {}
    unit = parts.PARTS[part](Runtime(torch.device("cpu")), 4, 2, "convnet_w32", **sizes)
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
    assert "| stage-1 step | 4 | 2 |" in capsys.readouterr().out
    again = run(speed, [*flags, "--batch-size", "4", "8"])
    assert [row["batch_size"] for row in again["rows"]] == [4, 500, 8]
    assert again["rows"][:2] == record["rows"]  # not timed again
    capsys.readouterr()
    run(speed, ["--table", str(out)])
    assert "| stage-1 step | 8 | 2 |" in capsys.readouterr().out


@pytest.mark.slow
def test_compiling_is_timed_apart(capsys):
    generation, step = run(speed, [*TINY, "--compile", "--parts", "generation", "ten stage-4 steps"])["rows"]
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
    flags = "--part generation --device cpu --batch-size 4 --width 2 --units 1 --rows 4 --trace".split()
    command = [sys.executable, "benchmarks/profile.py", *flags, str(tmp_path / "trace.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "aten::" in done.stdout
    assert "operators take" in done.stdout
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert profile.parse_args([]).part == "stage-1 step"
