"""Random combinations of the flags of the four scripts: each ends in a result or in one line with exit code
2.

A rate of 1e9 may also end with exit code 1 and a loss or weight that is not finite.

`PYTHONPATH=.:tests python tests/test_hunt.py FIRST LAST` runs some of them, also beyond those of the test,
and prints how each ends.
"""

import io
import json
import random
import signal
import sys
import tempfile
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from conftest import PRECISION, SCRIPTS

import continual
import gen_condense
import pool_match
import validate
from augment import COMPOSITIONS
from losses import LOSSES, METRICS
from models import GANS, STORAGES
from models.matching import MATCH_RECIPES
from models.pool import POOL_DATA
from replay.methods import METHODS
from scoring.evaluation import BUDGETS
from scoring.recipes import RECIPES
from scoring.results import SOURCES
from scoring.storage import CODECS
from utils import Parser

SEED, NUMBER = 19, 200  # of the combinations below
SECONDS = 240  # after which a combination hangs
SMALL = ["convnet_w32", "mlp_w100", "mlp_w400"]
ODD = ["0", "1", "2", "3", "7", "-1", "1e9", "nan", "", "x", "4294967295"]  # in the place of any number
STRATEGIES = ["none", "flip", "color_crop_cutout_flip_scale_rotate", "cutout", "crop_crop", "color crop", ""]
RATES, SHARES, COUNTS, ON = (
    ["1e-3", "0.1"],
    ["0", "0.3", "1"],
    ["1", "2", "5"],
    [],
)  # ON: a flag without a value

EVALUATION = {
    "--eval-model": [["convnet_w32"], ["mlp_w100", "convnet_w32"], ["vgg"]],
    "--budget": BUDGETS,
    "--ipc": COUNTS,
    "--repeats": ["1", "2"],
    "--recipe": RECIPES,
    "--mix-p": ["-1", "0.5"],
}
GAN = {
    "--lr": RATES,
    "--lr-d": RATES,
    "--lr-decay": ["none", "linear"],
    "--gp-weight": ["0", "10"],
    "--diffaug": STRATEGIES,
    "--ema": ["0", "0.9", "1"],
    "--restat": ["0", "2"],
}
COMMON = {
    "--val-size": ["0", "10", "1180", "1490"],
    "--seed": ["0", "4294967295"],
    "--image-size": ["28", "32"],
    "--tag": [".", "a/b", "x y", "again"],
    "--channels-last": ON,
    "--device": ["auto", "cpu", "cpu:1"],
}
SAVING = {"--save-interval": ["0", "1", "7"], "--print-freq": ["1", "50"]}
RUNS = {
    **SAVING,
    "--epochs": ["1", "2"],
    "--batch-size": ["2", "64", "320", "1500"],
    "--eval-interval": ["0", "1", "10"],
    **EVALUATION,
    **GAN,
    **COMMON,
}
CHOICES = {
    "gen_condense": {
        **RUNS,
        "--gan": GANS,
        "--width": ["1", "4"],
        "--z-dim": ["10", "11", "50"],
        "--d-steps": ["1", "3"],
    },
    "pool_match": {
        **RUNS,
        "--weight": ["{gan}", "{match}", "{exported}", "{teacher}", "{missing}"],
        "--recipe-match": MATCH_RECIPES,
        "--data": ["digits", "mnist"],
        "--betas": [["0.5", "0.9"], ["0"]],
        "--gan-weight": ["0", "1"],
        "--match": [*LOSSES, "none"],
        "--metric": METRICS,
        "--match-weight": ["0", "1"],
        "--match-fresh": ["0", "0.5"],
        "--match-aug": ON,
        "--match-strategy": STRATEGIES,
        "--match-composition": COMPOSITIONS,
        "--match-batch": ["0", "1", "2", "40", "500"],
        "--match-classes": ["1", "3", "10", "11"],
        "--bias": ON,
        "--fc": ON,
        "--pool": [["convnet_w32"], ["mlp_w100"], ["convnet_w32", "mlp_w400"], ["vgg"]],
        "--pool-age": COUNTS,
        "--pool-size": ["1", "2", "3"],
        "--pool-steps": ["0", "1", "2"],
        "--pool-data": POOL_DATA,
        "--pool-lr": RATES,
        "--pool-strategy": STRATEGIES,
        "--teacher-weight": ["0", "0.3"],
        "--teachers": [["mlp_w100"], ["convnet_w32", "mlp_w100"]],
        "--teacher-epochs": ["1"],
    },
    "validate": {
        **EVALUATION,
        **COMMON,
        "--source": [[one] for one in SOURCES]
        + [["generator", "random-real", "herding"], ["file", "random-real"], ["real", "file"]],
        "--no-real": ON,
        "--pretrain-weight": [["{gan}"], ["{match}", "{exported}"], ["{gan}", "{gan}"], ["{missing}"]],
        "--file": [["{set}"], ["{folder}"], ["{set}", "{folder}"], ["{soft}"], ["{missing}"]],
        "--group": ["mine"],
        "--image-range": ["uint8", "unit"],
        "--match-bytes": ON,
        "--quality": ["1", "95", "96"],
        "--herding-epochs": ["1"],
        "--budget": [["fixed"], ["stream", "fixed"]],
        "--ipc": [["1"], ["2"], ["2", "3"], ["150"]],
        "--labels": [["hard"], ["soft"], ["hard", "soft"]],
        "--teacher": ["{teacher}", "{gan}", "{missing}"],
        "--temperature": ["1", "4"],
        "--storage": STORAGES,
        "--export": ["{out}", "{set}"],
        "--filter": ["0", "0.5", "1"],
        "--data": ["digits", "mnist"],
        "--together": ["1", "2", "3"],
        "--batch-size": ["1", "2", "64"],
        "--lr": RATES,
        "--dsa-strategy": STRATEGIES,
        "--curve": ["0", "1", "3"],
        "--samples": ["0", "2", "1000"],
        "--save-classifiers": ON,
    },
    "continual": {
        **SAVING,
        **COMMON,
        "--num-tasks": ["1", "2", "5", "10", "11"],
        "--tasks": [["0,1,2", "3,4"], ["9"], ["0,1", "1"], ["0,", "1"]],
        "--class-order": ["0", "4294967295"],
        "--track": ["offline", "online"],
        "--epochs": ["1", "2"],
        "--pool": [["convnet_w32"], ["mlp_w100"], ["mlp_w100", "convnet_w32"], ["vgg"]],
        "--lr": RATES,
        "--batch-size": ["2", "8", "500"],
        "--dsa-strategy": STRATEGIES,
        "--alpha": SHARES,
        "--beta": SHARES,
        "--consistency": SHARES,
        "--average-decay": ["0", "0.9"],
        "--memory-bytes": ["1", "9000", "300000"],
        "--buffer-size": ["1", "5", "20", "1000000"],
        "--codec": CODECS,
        "--quality": ["1", "95"],
        "--gan": GANS,
        "--width": ["1", "4"],
        "--z-dim": ["10", "50"],
        "--storage": STORAGES,
        "--gan-steps": COUNTS,
        "--gan-batch-size": ["2", "16", "500"],
        "--gan-lr": RATES,
        "--ema": ["0", "0.9"],
        "--restat": ["0", "2"],
        "--match-steps": ["0", "2"],
        "--match-batch": ["2", "8", "500"],
        "--replay-batch-size": ["1", "8"],
        "--replay-images": ["1", "5"],
        "--distill-weight": SHARES,
        "--replay-loss": ["er", "er-ace", "cls-er"],
        "--fill-real": ON,
        "--rehearse-steps": ["0", "3"],
        "--rehearse-decay": ["none", "linear"],
        "--condense-images": ["1", "2", "1000"],
        "--retrain": ON,
        "--retrain-steps": COUNTS,
    },
}
# What makes a command small; the flags of a combination come after these and win.
BASE = {
    "gen_condense": "--data digits --width 4 --val-size 1180 --batch-size 64 --epochs 1 --eval-interval 0 "
    "--epochs-eval 2 "
    "--eval-model convnet_w32",
    "pool_match": "--weight {gan} --val-size 1180 --batch-size 64 --epochs 1 --eval-interval 0 "
    "--epochs-eval 2 --eval-model convnet_w32 "
    "--pool convnet_w32 --pool-steps 1 --teacher-epochs 1",
    "validate": "--data digits --eval-model convnet_w32 --epochs-eval 2 --repeats 2 --samples 1",
    "continual": "--data digits --pool mlp_w100 --batch-size 8 --epochs 1 --val-size 1380",
}
OF_GENERATORS = "--gan-steps 3 --match-steps 2 --replay-images 12 --gan-batch-size 8 --restat 2 --width 4"
NEEDS = {  # what a source does not run without, added in most combinations
    "generator": ["--pretrain-weight", "{gan}"],
    "file": ["--file", "{set}"],
}
# by most sources: left out of most combinations of these, so that they come further
REFUSED_WITHOUT = {
    "--source": "--match-bytes --export --filter --storage --teacher --labels --temperature "
    "--file --image-range --group".split(),
}


def flags_of(method: str) -> set[str]:
    """The flags of a method of continual.py."""
    parser = Parser()
    continual.add_flags(parser, METHODS[method])
    return set(parser._option_string_actions)


def combination(number: int) -> tuple[str, list[str]]:
    """The script and the flags of combination `number`; {gan} and such stand for the files of `inputs`."""
    rng = random.Random(f"{SEED} {number}")
    script = list(CHOICES)[number % 4]
    flags = BASE[script].split()
    choices = CHOICES[script]
    if script == "continual":
        method = rng.choice(list(METHODS))
        flags = [method, *flags]
        known = flags_of(method)
        if "--buffer-size" in known and rng.random() < 0.8:
            choices = {flag: values for flag, values in choices.items() if flag != "--memory-bytes"}
            flags += ["--buffer-size", "20"]
        flags += OF_GENERATORS.split() if "--gan-steps" in known else []
        # a thousand steps of 64 images a class otherwise
        flags += "--condense-steps 2 --condense-batch 4".split() if "--condense-steps" in known else []
        if rng.random() < 0.8:  # flags of other methods are refused
            choices = {flag: values for flag, values in choices.items() if flag in known}
    chosen = rng.sample(sorted(choices), rng.choice([1, 2, 3, 4, 6]))
    if script == "validate" and "--source" not in chosen and rng.random() < 0.8:
        chosen.append("--source")
    for flag, others in REFUSED_WITHOUT.items():
        if flag in chosen and rng.random() < 0.6:
            chosen = [name for name in chosen if name not in others]
    for flag in chosen:
        values = list(choices[flag])
        value = [] if not values else rng.choice(values)
        value = [value] if isinstance(value, str) else list(value)
        if value and value[0][:1].isdigit() and rng.random() < 0.05:
            value = [rng.choice(ODD)]
        for name in value:
            if name in NEEDS and rng.random() < 0.9:
                flags += NEEDS[name]
        if "condensed" in value and flag == "--source":
            flags += "--condense-steps 2 --condense-batch 4".split()
            flags += ["--ipc", "2"] if "--ipc" not in (*chosen, *flags) else []
        flags += [flag, *value]
    return script, flags


def inputs(folder: Path) -> dict[str, str]:
    """The files that combinations name: checkpoints, a teacher, distilled sets, and a file that is
    missing."""

    def quietly(script, *flags):
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            script.main(
                script.parse_args([*flags, "--results-dir", str(folder), "--device", "cpu", *PRECISION])
            )

    gan, match = folder / "gan" / "last.pth", folder / "match" / "last.pth"
    quietly(gen_condense, *BASE["gen_condense"].split(), "--tag", "gan")
    quietly(pool_match, *BASE["pool_match"].format(gan=gan).split(), "--tag", "match")
    score = BASE["validate"].split()
    quietly(
        validate,
        *score,
        "--tag",
        "teacher",
        "--source",
        "real",
        "--ipc",
        "5",
        "--repeats",
        "1",
        "--save-classifiers",
    )
    (teacher,) = (folder / "teacher" / "classifiers").iterdir()
    weight = [
        "--source",
        "generator",
        "--no-real",
        "--pretrain-weight",
        str(gan),
        "--ipc",
        "2",
        "--export",
        str(folder / "shipped"),
    ]
    quietly(
        validate,
        *score,
        "--tag",
        "export",
        *weight,
        "--labels",
        "hard",
        "soft",
        "--teacher",
        str(teacher),
        "--storage",
        "int8",
    )
    shipped = folder / "shipped"
    names = {
        "gan": gan,
        "match": match,
        "teacher": teacher,
        "exported": shipped / "generator.safetensors",
        "set": shipped / "ipc2.pt",
    }
    names |= {"folder": shipped / "ipc2", "soft": shipped / "ipc2_soft.pt", "missing": folder / "missing.pth"}
    return {name: str(path) for name, path in names.items()}


def tried(number: int, files: dict[str, str], folder: Path) -> tuple[str | None, str]:
    """Run combination `number` in `folder`: what is wrong with how it ended, or None; and its last line."""
    script, flags = combination(number)
    names = files | {"out": str(folder / "out")}
    flags = [*(flag.format(**names) for flag in flags), "--results-dir", str(folder / "results")]
    start = int(script == "continual")  # whose method comes first
    flags[start:start] = ["--tag", "run"]
    flags += PRECISION if "--device" in flags else ["--device", "cpu", *PRECISION]
    out, err, code = io.StringIO(), io.StringIO(), 0

    def hangs(number, frame):
        raise TimeoutError(f"still running after {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    try:
        with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "Guards may run slower", RuntimeWarning)
            SCRIPTS[script].main(SCRIPTS[script].parse_args(flags))
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        code = f"an exception: {traceback.format_exc()}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        torch.set_grad_enabled(True)
    lines = [line for line in err.getvalue().splitlines() if not line.startswith("warning: ")]
    wrong = ends_well(code, out.getvalue(), lines, folder)
    command = f"{number}: python {script}.py {' '.join(flag or repr(flag) for flag in flags)}"
    return wrong and f"{command}\n  {wrong}", f"{command}\n  {[*out.getvalue().splitlines(), *lines][-1:]}"


def ends_well(code, out: str, lines: list[str], folder: Path) -> str | None:
    """What is wrong with this end of a command; None if it is a result, or one line and no file."""
    written = [path for path in folder.rglob("*") if path.is_file()]
    if code == 1 and "is not finite at" in lines[-1] and not any(path.suffix == ".pth" for path in written):
        return None
    if code not in (0, 2):
        return f"exit code {code}, {lines[-1:]}"
    if code == 2:
        if len(lines) != 1 or ": error: " not in lines[0] or out:
            return f"not one line: {[*out.splitlines(), *lines]}"
        if written:
            return f"refused ({lines[0]}) after it wrote {written}"
        return None
    if not out.strip():
        return "a result without a word"
    for path in written:
        if ".tmp" in path.name:
            return f"left {path}"
        if path.suffix == ".json" and path.name != "args.json" and "NaN" in path.read_text():
            return f"not a number in {path}"
        if path.suffix in (".json", ".jsonl"):
            for text in [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines():
                json.loads(text)
        if path.suffix == ".pth":
            torch.load(path, weights_only=True)
    return None if written else "a result without a file"


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_random_combinations_of_flags_end_in_a_result_or_in_one_line(part, tmp_path):
    files = inputs(tmp_path / "inputs")
    size = NUMBER // 10
    faults = [
        tried(number, files, tmp_path / str(number))[0] for number in range(part * size, (part + 1) * size)
    ]
    assert not any(faults), "\n".join(filter(None, faults))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        made = inputs(Path(place) / "inputs")
        for at in range(*map(int, sys.argv[1:3])):
            wrong, last = tried(at, made, Path(place) / str(at))
            print(f"WRONG {wrong}" if wrong else last, flush=True)
