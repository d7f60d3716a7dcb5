"""What the tests share: tiny commands on the embedded digits, and where real data lies."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import continual
import gen_condense
import pool_match
import validate
from benchmarks import compare, profile, speed
from figs import draw_continual, make_figures
from replay.methods import METHODS
from runs import run as runner

torch.set_num_threads(1)  # the tests' networks are too small to share out, and each worker has a core

ROOT = Path(__file__).resolve().parent.parent


# The same bits whether this CPU has bf16 instructions or not; a --amp that comes after wins, and on CUDA it
# is on.
PRECISION = [] if torch.cuda.is_available() else ["--no-amp"]
TINY = (
    "--val-size 1180 --batch-size 64 --epochs 2 --eval-interval 0 --device cpu".split()
)  # leaves 320 images: 5 steps an epoch
TINY += PRECISION


def gan_flags(results: Path, *extra: str) -> list[str]:
    """A stage-1 command of two epochs of 5 steps, a second or so."""
    return ["--tag", "gan", "--data", "digits", "--results-dir", str(results), "--width", "4", *TINY, *extra]


def match_flags(results: Path, weight: Path, *extra: str) -> list[str]:
    """A stage-2 command of two epochs of 5 steps."""
    pool = "--pool convnet_w32 --pool-steps 1 --match-aug".split()
    return ["--tag", "match", "--weight", str(weight), "--results-dir", str(results), *TINY, *pool, *extra]


def validate_flags(results: Path, *extra: str) -> list[str]:
    """A stage-3 command of four epochs for each classifier."""
    flags = f"--tag test --results-dir {results} --eval-model convnet_w32 --ipc 3 --epochs-eval 4"
    return [*flags.split(), *"--repeats 2 --device cpu --no-real".split(), *PRECISION, *extra]


GENERATES = "--gan dim --width 4 --gan-steps 3 --match-steps 2 --match-batch 4".split()
GENERATES += "--replay-images 12 --gan-batch-size 16 --restat 2".split()


CONDENSES = "--condense-steps 3 --condense-batch 4".split()


def continual_flags(results: Path, method: str, *extra: str) -> list[str]:
    """A stage-4 command of five tasks of the digits, 20 to 40 images each, some seconds."""
    flags = f"{method} --tag {method} --data digits --results-dir {results} --pool convnet_w32"
    flags += " --batch-size 8 --epochs 1"
    flags += " --val-size 1380 --device cpu --save-interval 0"
    sizes = (
        GENERATES
        if method in ("dim", "dgr")
        else ["--buffer-size", "20"]
        if METHODS[method].memory and method != "unlimited"
        else []
    )
    sizes = [*sizes, *CONDENSES] if method == "condensed" else sizes
    return flags.split() + PRECISION + sizes + list(extra)


def run(script, flags: list[str]):
    """A script's main, as its command line would call it."""
    return script.main(script.parse_args(flags))


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(1800))
        if variant := getattr(item, "callspec", None) and item.callspec.params.get("variant"):
            item.add_marker(
                pytest.mark.xdist_group(f"{item.path.stem} {variant}")
            )  # what is made once for it is made on one worker


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A results folder with a tiny stage-1 run (gan) and a stage-2 run from it (match)."""
    results = tmp_path_factory.mktemp("results")
    gan = run(gen_condense, gan_flags(results))
    run(pool_match, match_flags(results, gan.best_path))
    return results


class Driver:
    """The server in driver.py: starts scripts as processes of their own and says how they ended.

    Where a test is broken off, as by its time limit, the server and its processes are killed, and the next
    test gets a new one.
    """

    def __init__(self):
        self.serve()

    def serve(self) -> None:
        command, pipe = [sys.executable, str(ROOT / "tests" / "driver.py")], subprocess.PIPE
        self.server = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, bufsize=1, start_new_session=True
        )

    def answer(self) -> dict:
        try:
            return json.loads(self.server.stdout.readline())
        except BaseException:
            os.killpg(self.server.pid, signal.SIGKILL)
            self.server.wait()
            self.serve()
            raise

    def start(
        self,
        script: str,
        counter,
        flags: list[str],
        kill_at_write: int = 0,
        kill_after_write: int = 0,
        ranks: int = 1,
    ) -> list[int]:
        request = {"script": script, "counter": str(counter), "flags": flags, "ranks": ranks}
        request |= {"kill_at_write": kill_at_write, "kill_after_write": kill_after_write}
        self.server.stdin.write(json.dumps(request) + "\n")
        return self.answer()["pids"]

    def wait(self) -> list[int]:
        return self.answer()["statuses"]

    def call(self, *args, **kwargs) -> list[int]:
        self.start(*args, **kwargs)
        return self.wait()


@pytest.fixture(scope="session")
def driver():
    driver = Driver()
    yield driver
    driver.server.stdin.close()
    driver.server.stdout.close()
    driver.server.wait()


@pytest.fixture
def data_dir() -> Path:
    """The folder of real data named by DATA_DIR; the test is skipped without it."""
    if "DATA_DIR" not in os.environ:
        pytest.skip("set DATA_DIR to a folder with real MNIST, FashionMNIST and CIFAR-10 to run this")
    return Path(os.environ["DATA_DIR"])


@pytest.fixture(autouse=True)
def seeded():
    """A test draws the same weights whichever tests its worker ran before it; TEST_SEED=7 draws others."""
    torch.manual_seed(int(os.environ.get("TEST_SEED", "0")))


@pytest.fixture(autouse=True)
def gradients_on():
    """A test that is broken off inside torch.no_grad leaves none to the tests after it."""
    yield
    torch.set_grad_enabled(True)


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch):
    """Nothing is ever downloaded by a test; a try fails as it does without a network."""
    from urllib.error import URLError

    def refuse(*args, **kwargs):
        raise URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def same(a, b) -> bool:
    """Whether two state dicts, lists or values are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


SCRIPTS = {
    "gen_condense": gen_condense,
    "pool_match": pool_match,
    "validate": validate,
    "continual": continual,
}
TOOLS = {
    "benchmarks/speed": speed,
    "benchmarks/profile": profile,
    "benchmarks/compare": compare,
    "figs/draw_continual": draw_continual,
    "figs/make_figures": make_figures,
    "runs/run": runner,
}
