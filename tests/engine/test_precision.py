"""Precision follows what the machine says of itself, and a script says which it took."""

import json
from pathlib import Path

import pytest
import torch
from conftest import gan_flags, run

import gen_condense
from engine import precision
from engine.precision import multiplies_bf16
from engine.runtime import make_runtime

CPU = torch.device("cpu")


@pytest.fixture
def cpu_with(monkeypatch):
    """Make the CPU claim some instruction sets."""
    return lambda *features: monkeypatch.setattr(precision, "cpu_features", lambda: frozenset(features))


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (("avx2", "avx512f", "avx512_bf16"), True),
        (("avx2", "amx_bf16", "amx_tile"), True),
        (("asimd", "bf16"), True),
        (("avx2", "avx512f", "avx512bw"), False),
        ((), False),
    ],
)
def test_bf16_is_on_where_the_cpu_has_the_instructions(features, expected, cpu_with, capsys):
    cpu_with(*features)
    assert multiplies_bf16(CPU) == expected
    assert make_runtime("cpu", None, None).amp == expected
    assert not make_runtime("cpu", False, None).amp
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bf16_is_on_from_ampere(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert multiplies_bf16(torch.device("cuda", 0)) == expected


def test_emulated_bf16_is_told_and_goes_on(cpu_with, capsys):
    cpu_with("avx2")
    assert make_runtime("cpu", True, None).amp
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: --amp: cpu has no bf16 instructions")
    assert line.endswith("--no-amp is faster")


def test_what_linux_says_is_read():
    features = precision.cpu_features()
    assert len(features) > 10 or not Path("/proc/cpuinfo").exists()


def test_what_was_chosen_is_told_and_kept(tmp_path, cpu_with, capsys):
    cpu_with("avx2")
    run(gen_condense, gan_flags(tmp_path, "--epochs", "1"))
    assert "steps run on: cpu, 1 threads, float32, eager" in capsys.readouterr().err.splitlines()
    chosen = json.loads((tmp_path / "gan" / "args.json").read_text())["chosen"]
    assert chosen == {"device": "cpu", "amp": False, "channels_last": False, "compile": False}
