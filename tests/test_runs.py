"""runs/run.py: rows by their names, what is skipped, what goes on after a refusal, and what stops it."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, SCRIPTS
from test_compare import fake_row, kept

from runs import run
from runs.experiments import EXPERIMENTS, Commands

# In the place of Python: refuses cls-er, fails at gdumb, waits at er-ace, and notes the words of all others.
PROGRAM = """#!/bin/sh
case "$2" in
cls-er) exit 2 ;;
gdumb) exit 1 ;;
er-ace) trap 'echo stopped >> {0}/words; exit 130' INT; for i in $(seq 100); do sleep 0.1; done ;;
esac
echo "$OMP_NUM_THREADS $@" >> {0}/words
"""


def start(tmp_path: Path, *words: str, **changes: str) -> subprocess.Popen:
    """Start run.py with that program and its results in tmp_path."""
    program = tmp_path / "python"
    program.write_text(PROGRAM.format(tmp_path))
    program.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, str(ROOT / "runs" / "run.py"), *words[:1], "--results-dir", str(tmp_path)]
    return subprocess.Popen(
        [*command, *words[1:]],
        env=environment | {"PYTHON": str(program)} | changes,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(tmp_path: Path, *words: str, **changes: str) -> subprocess.CompletedProcess:
    process = start(tmp_path, *words, **changes)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def ran(tmp_path: Path) -> list[str]:
    """The tags of the runs that the program noted, in their order."""
    lines = (tmp_path / "words").read_text().splitlines() if (tmp_path / "words").exists() else []
    return [words[words.index("--tag") + 1] for words in map(shlex.split, lines) if "--tag" in words]


def finished(folder: Path, seed: int, **changes) -> None:
    """The results of a run of two tasks of the digits, as continual.py writes them."""
    setting = {"acc": [[90.0, 0.0], [80.0, 85.0]], "average_accuracy": 82.5, "forgetting": 10.0}
    setting["average_incremental_accuracy"] = 86.0
    settings = {"class-il": setting, "task-il": setting}
    results = {
        "finished": True,
        "method": "er",
        "data": "digits",
        "seed": seed,
        "seconds": 90.0,
        "split": "test",
    }
    results |= {"flags": {"lr": 0.03, "epochs": 1}, "track": "offline", "num_tasks": 2, "classes": [[0], [1]]}
    results |= {"memory_bytes": 9000, "steps": [1, 1], "commit": "c", "torch": "2", "device": "cpu"}
    results |= {"generator": None, "networks": {"convnet_w32": settings}, "mean": settings}
    results |= {"num_bytes": {"total": 8900}, "buffer_images": 9, "images_generated": 0}
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results | changes))


@pytest.mark.parametrize(
    ("data", "row", "budget", "flags"),
    [
        (
            "fashion",
            "ER-ACE",
            50000,
            "er-ace --codec jpeg-scan --quality 50 --rehearse-steps 300 --rehearse-decay linear --lr 0.1",
        ),
        (
            "cifar10",
            "condensed images, loss of ER",
            50000,
            "condensed --fill-real --condense-steps 300 --codec jpeg-scan --quality 12 --rehearse-steps 300 "
            "--rehearse-decay linear --lr 0.03",
        ),
        (
            "cifar10",
            "condensed-images-loss-of-er",
            600000,
            "condensed --fill-real --condense-steps 300 --codec jpeg-scan --quality 12 --condense-match dist "
            "--condense-lr 1 --condense-images 64 --rehearse-steps 300 --rehearse-decay linear --lr 0.03",
        ),
    ],
)
def test_the_command_of_a_row(data, row, budget, flags, tmp_path):
    words = ["--data", data, "--rows", row, "--bytes", str(budget), "--seeds", "7", "--show"]
    shown = call(tmp_path, "continual", *words, "--flags", "--graphs")
    assert (shown.returncode, shown.stderr, ran(tmp_path)) == (0, "", [])
    method, *own = flags.split()
    common = "--pool convnet_w32 --epochs 1 --batch-size 32 --no-amp".split()
    (command,) = map(shlex.split, shown.stdout.splitlines())
    tag = f"{data}_{budget}_{run.slug(row)}_7"
    start = ["python", "continual.py", method, "--tag", tag, "--data", data, "--seed", "7"]
    folders = ["--results-dir", str(tmp_path), "--data-dir", "datasets", "--graphs"]
    assert command == [*start, "--memory-bytes", str(budget), *common, *own, *folders]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_command_is_understood(name, tmp_path):
    args = run.parse_args([name, "--results-dir", str(tmp_path)])
    chains = run.runs_of(args)
    if not isinstance(EXPERIMENTS[name], Commands):
        tags = [one.tag for chain in chains for one in chain]
        assert len(set(tags)) == len(tags)
    for chain in chains:
        for one in chain:
            words = [word.replace("{quality}", "12") for word in run.command_of(one, tmp_path)[1:]]
            args = SCRIPTS[words[0].removesuffix(".py")].parse_args(words[1:])
            assert args.tag == one.tag


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["continual", "--rows", "er", "foo"], "--rows: found foo, expected some of condensed-images-"),
        (["foo"], "argument name: invalid choice: 'foo'"),
        ([], "expected an experiment: readme, continual, "),
        (["readme", "--data", "svhn"], "--data: found svhn, expected cifar10, fashion, mnist"),
    ],
)
def test_a_wrong_name_is_refused_before_anything_runs(words, message, tmp_path):
    done = call(tmp_path, *words)
    assert (done.returncode, done.stdout, ran(tmp_path)) == (2, "", [])
    (line,) = done.stderr.splitlines()
    assert message in line


def test_the_list_names_every_experiment_and_row(tmp_path):
    listed = call(tmp_path, "--list").stdout.splitlines()
    assert [line.split(":")[0] for line in listed if not line.startswith(" ")] == list(EXPERIMENTS)
    assert "    condensed images, loss of ER-ACE" in listed


DIGITS = ["--data", "digits", "--bytes", "9000"]


def test_an_experiment_goes_on_after_a_run_that_is_refused(tmp_path):
    done = call(tmp_path, "continual", *DIGITS, "--seeds", "0", "--rows", "er", "cls-er", "der++")
    assert (done.returncode, done.stderr) == (0, "refused, see above: digits_9000_cls-er_0\n")
    assert ran(tmp_path) == ["digits_9000_er_0", "digits_9000_der++_0"]
    alone = call(tmp_path, "continual", *DIGITS, "--seeds", "0", "--rows", "cls-er")
    assert alone.returncode == 2


def test_another_failure_stops_it(tmp_path):
    done = call(tmp_path, "continual", *DIGITS, "--seeds", "0", "1", "--rows", "er", "gdumb")
    assert (done.returncode, ran(tmp_path)) == (1, ["digits_9000_er_0"])
    assert done.stderr == "run.py: digits_9000_gdumb_0 failed; the same command continues\n"


def test_what_is_finished_is_skipped_and_tells_the_time_of_the_rest(tmp_path):
    finished(tmp_path / "digits_9000_er_0", 0)
    finished(tmp_path / "digits_9000_er_1", 1, finished=False)
    finished(tmp_path / "digits_9000_er_9", 9, seconds=150.0)
    done = call(tmp_path, "continual", *DIGITS, "--seeds", "0", "1", "2", "--rows", "er", "der++")
    assert (done.returncode, done.stderr) == (0, "")
    tags = ["digits_9000_der++_0", "digits_9000_er_1", "digits_9000_der++_1"]
    assert ran(tmp_path) == [*tags, "digits_9000_er_2", "digits_9000_der++_2"]
    said = [line for line in done.stdout.splitlines() if line.startswith("==")]
    assert said[0] == "== digits_9000_der++_0; 5 to go, 2 of them in about 5 min"
    assert said[-1] == "== digits_9000_der++_2; 1 to go, time not known yet"
    table = done.stdout.splitlines()[-1]
    assert table.startswith("| digits | real images | ER | raw | 1 | none | 82.50 (1) |")
    assert (tmp_path / "continual" / "continual_front.png").exists()


def test_runs_side_by_side_share_the_cores(tmp_path):
    words = ["continual", *DIGITS, "--seeds", "0", "1", "2", "--rows", "er", "--jobs", "2"]
    done = call(tmp_path, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(ran(tmp_path)) == [f"digits_9000_er_{seed}" for seed in range(3)]
    lines = (tmp_path / "words").read_text().splitlines()
    assert {line.split()[0] for line in lines} == {str(max(1, os.cpu_count() // 2))}
    assert len(list(tmp_path.glob("*.log"))) == 3
    call(tmp_path, *words, OMP_NUM_THREADS="7")
    assert (tmp_path / "words").read_text().splitlines()[-1].startswith("7 ")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_is_passed_on(number, code, tmp_path):
    words = ["--seeds", "0", "1", "2", "--rows", "er-ace", "--jobs", "2"]
    process = start(tmp_path, "continual", *DIGITS, *words)
    while len(list(tmp_path.glob("*.log"))) < 2:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    assert process.wait(timeout=20) == code
    process.communicate()
    assert (tmp_path / "words").read_text() == "stopped\n" * 2


def test_a_failure_beside_others_stops_them(tmp_path):
    done = call(tmp_path, "continual", *DIGITS, "--seeds", "0", "--rows", "er-ace", "gdumb", "--jobs", "2")
    assert done.returncode == 1
    assert ran(tmp_path) == []


def test_the_readme_experiment_chooses_the_quality_on_held_out_images(tmp_path):
    for data in ("cifar10", "fashion"):
        rows = [
            fake_row("random-real-jpeg-scan", (float(mean),), quality=quality)
            for quality, mean in ((12, 40), (25, 45), (50, 44))
        ]
        kept(tmp_path / f"front_{data}_quality", [*rows, fake_row(accs=(99.0,))])
        kept(tmp_path / f"front_{data}", [fake_row("real", (80.0, 81.0), dataset=data, num_bytes=5 * 10**7)])
    done = call(tmp_path, "readme", "--data", "fashion", "cifar10")
    assert (done.returncode, done.stderr) == (0, "")
    said = [line.split(";")[0] for line in done.stdout.splitlines() if line.startswith("==")]
    assert said[:6] == ["== front_fashion_quality"] * 4 + ["== front_fashion"] * 2
    lines = (tmp_path / "words").read_text().splitlines()
    assert len(lines) == 12
    assert (
        "--match-bytes jpeg-scan condensed --codec jpeg-scan --quality 25 --condense-match dist" in lines[5]
    )
    last = (
        "| the whole training set, for as many steps | 50.00 / 50.00 / – | 80.50 ± 0.71 | 80.50 ± 0.71 | – |"
    )
    assert done.stdout.splitlines()[-1] == last
    assert f"{tmp_path}/front_mnist_match/last.pth" in call(tmp_path, "readme", "--show").stdout


def test_a_finished_run_of_other_flags_is_refused(tmp_path):
    finished(tmp_path / "digits_9000_er_0", 0)
    words = ["continual", *DIGITS, "--seeds", "0", "--rows", "er"]
    done = call(tmp_path, *words, "--flags", "--lr", "0.5")
    assert (done.returncode, ran(tmp_path)) == (2, [])
    assert "digits_9000_er_0 was made with --lr 0.03, found --lr 0.5: expected another" in done.stderr


def test_the_commands_of_the_readme_take_no_rows(tmp_path):
    done = call(tmp_path, "readme", "--seeds", "0")
    assert (done.returncode, ran(tmp_path)) == (2, [])
    assert "readme: its commands are fixed, expected none of --bytes, --seeds, --rows" in done.stderr
