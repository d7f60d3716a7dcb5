"""runs/continual.sh: rows by name, wrong names, and what goes on when a cell is refused."""

import os
import subprocess

import pytest
from conftest import ROOT


def sweep(tmp_path, methods: str, verb: str = "sweep", **more: str) -> subprocess.CompletedProcess:
    """Run the script with a program in the place of Python that refuses cls-er and prints the flags of all
    others."""
    program = tmp_path / "python"
    program.write_text(
        '#!/bin/sh\ncase "$*" in *"--method cls-er"*) exit 2 ;; *"--method gdumb"*) exit 1 ;; esac\necho '
        '"$@"\n'
    )
    program.chmod(0o755)
    settings = {
        "PYTHON": str(program),
        "DATA": "digits",
        "SEEDS": "0",
        "BYTES": "9000",
        "RESULTS": str(tmp_path / "results"),
    }
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("QUALITY", "FLAGS", "PARTS", "COMMON", "DATA_DIR")
    }
    command = ["bash", str(ROOT / "runs" / "continual.sh"), verb]
    return subprocess.run(
        command,
        env=environment | settings | {"METHODS": methods} | more,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("er_jpeg50_r", "--method er --codec jpeg --quality 50 --rehearse-steps 300 --lr 0.03"),
        ("er_scan7_r", "--method er --codec jpeg-scan --quality 7 --rehearse-steps 300 --lr 0.03"),
        (
            "er-ace_scan95_rd",
            "--method er-ace --codec jpeg-scan --quality 95 --rehearse-steps 300 --rehearse-decay linear "
            "--lr 0.1",
        ),
        (
            "er_scan12_3_rd",
            "--codec jpeg-scan --quality 12 --rehearse-steps 300 --rehearse-decay linear --epochs 3 --lr "
            "0.03",
        ),
        (
            "condensed_scan12_retrain",
            "--codec jpeg-scan --quality 12 --condense-steps 300 --retrain --lr 0.03",
        ),
        ("der++_4", "--method der++ --epochs 4 --lr 0.1"),
    ],
)
def test_the_flags_of_a_row_follow_from_its_name(name, flags, tmp_path):
    found = sweep(tmp_path, name)
    assert (found.returncode, found.stderr) == (0, "")
    assert f"--tag digits_9000_{name}_0" in found.stdout
    assert found.stdout.rstrip().endswith(flags)


@pytest.mark.parametrize(
    "name", ["foo", "er_scan_rd", "er_scan0_rd", "er_scan012_rd", "er_scan96_rd", "er_scan12", "er_x_rd"]
)
def test_a_wrong_name_is_refused_before_anything_runs(name, tmp_path):
    found = sweep(tmp_path, f"er {name}")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith(f"METHODS or PARTS: found {name}, expected some of buffer ")
    assert len(found.stderr.splitlines()) == 1


def test_a_sweep_goes_on_after_a_cell_that_is_refused(tmp_path):
    found = sweep(tmp_path, "cls-er er")
    assert (found.returncode, found.stderr) == (0, "refused, see above: digits_9000_cls-er_0\n")
    assert "--method er " in found.stdout
    assert sweep(tmp_path, "cls-er").returncode == 2
    table = sweep(tmp_path, "cls-er er", "table")
    assert table.returncode == 2
    assert "--method er " not in table.stdout
    fails = sweep(tmp_path, "gdumb er")  # another failure ends it
    assert fails.returncode == 1
    assert "--method er " not in fails.stdout
