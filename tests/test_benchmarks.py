"""The benchmark times what it says, keeps what it has, and counts operations as one would by hand."""

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, run

from benchmarks import profile, speed

TINY = (
    "--device cpu --threads 1 --width 2 --batch-size 4 --pairs 2 --seconds 0.01 --network convnet_w32 --data-dir nowhere --no-loader"
).split()


def test_operations_are_counted():
    a, x, w = torch.ones(3, 4), torch.ones(2, 5, 8, 8, requires_grad=True), torch.ones(7, 5, 3, 3, requires_grad=True)
    with speed.CountFlops() as counter:
        a @ torch.ones(4, 6)
    assert counter.total == 2 * 3 * 4 * 6
    one = 2 * (2 * 7 * 6 * 6) * (5 * 3 * 3)
    with speed.CountFlops() as counter:
        (gradient,) = torch.autograd.grad(F.conv2d(x, w).square().sum(), x, create_graph=True)
    assert counter.total == 2 * one
    with speed.CountFlops() as counter:
        gradient.sum().backward()  # a gradient of a gradient
    assert counter.total >= 3 * one


@pytest.mark.parametrize("part", speed.ROWS)
@pytest.mark.parametrize("variant", ["ours", "eager", "loader"])
def test_a_unit_of_every_row_works(part, variant):
    if variant == "loader" and not part.startswith("stage"):
        pytest.skip("the loader is a baseline of the steps")
    unit = speed.ROWS[part](variant, speed.Runtime(torch.device("cpu")), 4, 2, "convnet_w32")
    unit()


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
    done = subprocess.run([sys.executable, *command, str(tmp_path / "trace.json")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "aten::" in done.stdout
    assert "operators take" in done.stdout
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert profile.parse_args([]).part == "stage-1 step"
