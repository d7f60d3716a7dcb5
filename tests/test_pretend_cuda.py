"""The tests of CUDA on an emulated device, where there is no GPU: see tests/pretend_cuda.

What passes here alone was emulated.
The default run takes a part of tests/test_gpu.py, `-m slow` all of it that can be emulated, hours.
"""

import ast
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from pretend_cuda import TRIED

SOURCE = ROOT / "tests" / "pretend_cuda" / "shim.cpp"
COMPILER = shutil.which("g++") or shutil.which("c++")


def reason_to_skip() -> str:
    """Why this machine does not emulate, or an empty text."""
    if torch.cuda.is_available():
        return "a GPU is there: pytest -m gpu runs on it"
    if sys.platform != "linux":
        return f"the emulation loads its shim as Linux does, found {sys.platform}"
    if not torch.__version__.startswith(TRIED):
        return f"the emulation was tried on torch {', '.join(TRIED)}*, found {torch.__version__}"
    if COMPILER is None:
        return "no C++ compiler (g++ or c++) to build the emulation's shim with"
    return ""


pytestmark = pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip())

NOT_EMULATED = {
    "test_a_lack_of_memory_is_one_line": "the emulation has no allocator",
    "test_the_benchmark_runs": "it starts a process of its own, which times the device",
    "test_200_steps_end_within_the_spread_of_three_seeds": "over a thousand steps, and what they end at is "
    "the kernels' precision",
    "test_gradients_of_one_step_agree_with_the_cpu": "it replaces torch.rand, and compares the precision of "
    "kernels",
}
# What the default run takes: every way of executing a step, at the smallest sizes.
CHUNKS = {
    "steps and saves": "resume_inside or step_recorded or come_to_the_host or seconds_of or redrawn or "
    "save_waits or statistics_are",
    "stage 4": "(does_not_wait and (er-pool0 or pool1 or pool2-graphs)) or "
    "(controls and (graphs-kept or graphs-oracle or graphs-jpeg or graphs-energy or graphs-latents or "
    "eager-webp or eager-filter))",
}


@pytest.fixture(scope="session")
def emulated(tmp_path_factory) -> dict[str, str]:
    """The environment of a process on the emulated device."""
    shim = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", str(shim), str(SOURCE)], check=True)
    path = os.pathsep.join([str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return own | {"LD_PRELOAD": str(shim), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def run_tests(emulated: dict[str, str], report: Path, *arguments: str) -> dict[str, list]:
    """Run tests on the emulated device; the report, in which nothing may stand that a GPU refuses."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-p",
        "pretend_cuda.plugin",
        "-p",
        "no:cacheprovider",
        "--timeout",
        "1800",
    ]
    done = subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        env=emulated | {"PRETEND_OUT": str(report)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return json.loads(report.read_text())


@pytest.mark.timeout(600)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_cuda(emulated, tmp_path, chunk):
    report = run_tests(
        emulated, tmp_path / "report.json", "-m", "gpu and not slow", "tests/test_gpu.py", "-k", CHUNKS[chunk]
    )
    assert report["host waits"]
    assert not {"faults", "races", "CPU scalars in CUDA operations"} & report.keys()


@pytest.mark.timeout(600)
def test_faults_put_in_on_purpose_are_seen(emulated, tmp_path):
    run_tests(emulated, tmp_path / "report.json", "-m", "gpu", "tests/pretend_cuda/faults.py")


def names() -> list[str]:
    tree = ast.parse((ROOT / "tests" / "test_gpu.py").read_text())
    return [
        node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in names() if name not in NOT_EMULATED])
def test_all_of_cuda(emulated, tmp_path, name):
    report = run_tests(emulated, tmp_path / "report.json", "-m", "gpu", f"tests/test_gpu.py::{name}")
    assert not {"faults", "races", "CPU scalars in CUDA operations"} & report.keys()


def test_what_is_not_emulated_is_there():
    assert NOT_EMULATED.keys() <= set(names())


@pytest.mark.slow
def test_two_ranks(emulated, tmp_path):
    """As two machines of a GPU each, over gloo. Graphs take the steps that eager takes."""
    flags = "--tag gan --data digits --width 4 --val-size 1180 --batch-size 64 --epochs 2"
    flags += " --eval-interval 0 --device cuda --no-amp"
    losses = []
    for more in ("--no-graphs", "--graphs"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        job = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [
            sys.executable,
            "-m",
            "pretend_cuda",
            "gen_condense.py",
            *flags.split(),
            more,
            "--results-dir",
            str(tmp_path / more),
        ]
        ranks = []
        for rank in "01":
            own = emulated | job | {"RANK": rank, "PRETEND_OUT": str(tmp_path / f"{more}{rank}.json")}
            ranks.append(
                subprocess.Popen(
                    command, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                )
            )
        for rank in ranks:
            output, _ = rank.communicate(timeout=600)
            assert rank.returncode == 0, output
        losses.append(
            [
                json.loads(line)["loss_d"]
                for line in (tmp_path / more / "gan" / "metrics.jsonl").read_text().splitlines()
            ]
        )
        reports = [json.loads((tmp_path / f"{more}{rank}.json").read_text()) for rank in "01"]
        assert [("recordings" in report) == (more == "--graphs") for report in reports] == [True, True]
        assert not {"faults", "races"} & set().union(*reports)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
