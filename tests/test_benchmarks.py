"""The benchmark times what it says, keeps what it has, and counts operations as one would by hand."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TOOLS, run

from benchmarks import parts, speed
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
        assert row["memory"]["ours"] > 10**7
    assert "| stage-1 step | 4 | 2 |" in capsys.readouterr().out
    again = run(speed, [*flags, "--batch-size", "4", "8"])
    assert [row["batch_size"] for row in again["rows"]] == [4, 500, 8]
    assert again["rows"][:2] == record["rows"]  # not timed again
    capsys.readouterr()
    run(speed, ["--table", str(out)])
    assert "| stage-1 step | 8 | 2 |" in capsys.readouterr().out


@pytest.mark.slow
def test_compiling_is_timed_apart():
    generation, step = run(speed, [*TINY, "--compile", "--parts", "generation", "ten stage-4 steps"])["rows"]
    assert "compiled" not in generation["seconds"]
    assert set(step["seconds"]) == {"ours", "compiled", "eager"}
    assert step["ratio"]["compiled"]["min"] > 0
    assert step["compile_seconds"]["cold"] > step["compile_seconds"]["warm"] > 0
    assert set(step["pays_from_units"]) == {"cold", "warm"}


def test_a_foreign_file_is_one_line(tmp_path, capsys):
    for flag in ("--out", "--table"):
        (tmp_path / "other.json").write_text('{"rows": []}')
        with pytest.raises(SystemExit) as stop:
            run(speed, [*TINY, flag, str(tmp_path / "other.json")])
        assert stop.value.code == 2
        assert "other.json: expected a result of this benchmark" in capsys.readouterr().err
        assert (tmp_path / "other.json").read_text() == '{"rows": []}'
