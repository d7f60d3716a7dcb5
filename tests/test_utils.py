"""What every command line does: limits of numbers, flags without effect, lack of memory, Ctrl-C."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, SCRIPTS, TOOLS, continual_flags, gan_flags, run, validate_flags

from models.matching import EFFECTS as OF_MATCHING
from scoring.evaluation import EVALUATIONS
from scoring.inputs import EFFECTS as OF_TABLE
from utils import Effect, Parser, UsageError, cli, number, out_of_memory_hint, seed_number


def error_of(parse, text: str) -> str:
    with pytest.raises(Exception, match="found") as error:
        parse(text)
    return str(error.value)


def test_a_number_beyond_a_limit_is_told_the_limit():
    assert error_of(number(int, 0), "-1") == "found -1, expected a whole number >= 0"
    assert (
        error_of(number(int, 0), "4294967295")
        == "found 4294967295, expected a whole number >= 0 and <= 2147483647"
    )
    assert error_of(number(int, 1, 95), "96") == "found 96, expected a whole number >= 1 and <= 95"
    assert error_of(number(float, 0, 1), "1.5") == "found 1.5, expected a number >= 0 and <= 1"
    assert error_of(number(float, 0, exclusive=True), "inf") == "found inf, expected a number > 0"
    assert error_of(number(int, 1), "2.5") == "found '2.5', expected a whole number >= 1"
    assert number(int, 0)(str(2**31 - 1)) == 2**31 - 1


def test_a_seed_may_have_64_bits(tmp_path):
    assert seed_number("4294967295") == 4294967295
    assert seed_number(str(2**64 - 1)) == 2**64 - 1
    assert "and <= 18446744073709551615" in error_of(seed_number, str(2**64))
    run(SCRIPTS["gen_condense"], gan_flags(tmp_path, "--epochs", "1", "--seed", str(2**64 - 1)))
    run(
        SCRIPTS["continual"],
        continual_flags(tmp_path, "er", "--seed", str(2**64 - 1), "--class-order", "4294967295"),
    )
    run(
        SCRIPTS["validate"],
        validate_flags(tmp_path, "--data", "digits", "--source", "real", "--seed", str(2**64 - 1)),
    )


# flags without an effect


def test_a_flag_that_is_given_and_has_no_effect_is_warned_about(capsys):
    parser = Parser("", [Effect(("a_b", "c"), lambda args: args.d, "without --d")])
    parser.add_argument("--a-b", type=int, default=3)
    parser.add_argument("--c", nargs="+")
    parser.add_argument("--d", action="store_true")
    for argv, warning in (
        ([], ""),
        (["--a-b", "3"], "warning: --a-b: no effect without --d\n"),  # the default, but given
        (["--a-b", "1", "--c", "x", "y"], "warning: --a-b, --c: no effect without --d\n"),
        (["--c", "x", "--d"], ""),
    ):
        args = parser.parse_args(argv)
        assert capsys.readouterr().err == warning
        assert vars(args).keys() == {"a_b", "c", "d"}
    assert vars(parser.parse_args(["--a-b", "5"])) == {"a_b": 5, "c": None, "d": False}


@pytest.mark.parametrize(
    ("script", "effects"),
    [
        ("gen_condense", EVALUATIONS),
        ("pool_match", [*EVALUATIONS, *OF_MATCHING]),
        ("validate", OF_TABLE),
    ],
)
def test_flags_of_effects_are_declared(script, effects):
    args = SCRIPTS[script].parse_args(["--weight", "x"] if script == "pool_match" else [])
    for effect in effects:
        assert set(effect.flags) <= vars(args).keys()
        effect.applies(args)


@pytest.mark.parametrize(
    ("script", "flags", "warned"),
    [
        ("gen_condense", "--gan resnet --gp-weight 1", "--gp-weight: no effect with --gan resnet"),
        (
            "gen_condense",
            "--epochs 2 --eval-interval 10 --val-size 100",
            "--val-size: no effect but to hold images out",
        ),
        ("gen_condense", "--epochs 2 --eval-interval 2 --val-size 100", ""),
        ("gen_condense", "--epochs 2 --eval-interval 0 --val-size 100", ""),  # held out for a later stage
        ("gen_condense", "--epochs 2 --ipc 10", "--ipc: no effect where nothing is evaluated"),
        ("gen_condense", "--epochs 20 --ipc 10", ""),
        ("pool_match", "--weight x --match-strategy flip", "--match-strategy: no effect without --match-aug"),
        ("pool_match", "--weight x --recipe-match energy", ""),
        ("pool_match", "--weight x --recipe-match energy --lr-d 1", "--lr-d: no effect with --gan-weight 0"),
        ("pool_match", "--weight x --match none --pool convnet", "--pool: no effect with --match none"),
        (
            "pool_match",
            "--weight x --pool-steps 0 --pool-lr 1",
            "--pool-lr: no effect where no pool network is trained",
        ),
        (
            "pool_match",
            "--weight x --teacher-epochs 3",
            "--teacher-epochs: no effect without --teacher-weight",
        ),
        ("pool_match", "--weight x --bias", "--bias: no effect without --match grad"),
        (
            "validate",
            "--source real --pretrain-weight x",
            "--pretrain-weight: no effect but to name the image set",
        ),
        ("validate", "--pretrain-weight x", ""),
        (
            "validate",
            "--source real --match-bytes --export x --storage fp16 --draw matched --filter 0.5 --teacher x",
            "--match-bytes, --storage, --draw, --filter, --export: no effect without --source generator",
        ),
        ("validate", "--draw matched --budget stream", "--draw: no effect without --budget fixed"),
        ("validate", "--draw-steps 3", "--draw-steps: no effect without --draw matched"),
        (
            "validate",
            "--image-range unit --label-kind logits --factor 2 --group a",
            "--image-range, --label-kind, --factor, --group: no effect without --file",
        ),
        (
            "validate",
            "--codec jpeg --condense-steps 5 --condense-init noise",
            "--codec, --condense-steps, --condense-init: no effect without --source condensed",
        ),
        ("validate", "--match-bytes condensed --condense-steps 5 --codec jpeg", ""),
        ("validate", "--source condensed --condense-steps 5 --quality 50 --codec jpeg", ""),
        ("validate", "--herding-epochs 5", "--herding-epochs: no effect without --source herding"),
        ("validate", "--teacher x", "--teacher: no effect without --labels soft or --filter"),
        ("validate", "--temperature 4", "--temperature: no effect without --labels soft"),
        ("validate", "--labels soft --temperature 4 --teacher x", ""),
        ("validate", "--quality 50", "--quality: no effect without --match-bytes or a lossy --codec"),
        ("continual", "dim --match-batch 3", "--match-batch: no effect without --match-steps"),
        ("continual", "dim --match-steps 3 --match-batch 3", ""),
        ("continual", "dim --gan-steps 0 --ema 0", "--ema: no effect without a GAN"),
        ("continual", "dim --replay-loss cls-er --consistency 1", ""),
        (
            "continual",
            "dim --replay-loss er --consistency 1",
            "--consistency: no effect without --replay-loss cls-er",
        ),
        (
            "continual",
            "dim --replay-loss er --distill-weight 1",
            "--distill-weight: no effect with --replay-loss",
        ),
        ("continual", "cls-er --buffer-size 9 --consistency 1", ""),
        (
            "continual",
            "er --buffer-size 9 --quality 50",
            "--quality: no effect without --codec jpeg or jpeg-scan",
        ),
        (
            "continual",
            "er --buffer-size 9 --rehearse-decay linear",
            "--rehearse-decay: no effect without --rehearse-steps",
        ),
        (
            "continual",
            "condensed --buffer-size 9 --retrain --replay-batch-size 3",
            "--replay-batch-size: no effect with --retrain",
        ),
        (
            "continual",
            "gdumb --buffer-size 9 --retrain-steps 3 --epochs 2",
            "--epochs: no effect with --retrain-steps",
        ),
    ],
)
def test_flags_without_an_effect(script, flags, warned, capsys):
    SCRIPTS[script].parse_args(flags.split())
    err = capsys.readouterr().err
    assert f"warning: {warned}" in err if warned else not err


# memory


def lack(kind: str):
    if kind == "cuda":
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 8 GiB"
        )
    return np.empty(10**15) if kind == "numpy" else torch.empty(10**15 if kind == "cpu" else 2**62)


@pytest.mark.parametrize("kind", ["cuda", "cpu", "size", "numpy"])
@pytest.mark.parametrize("flag", [None, "--ipc"])
def test_a_lack_of_memory_names_the_flag_that_asked_for_it(kind, flag, capsys, monkeypatch):
    def work(args):
        if flag is None:
            lack(kind)
        with out_of_memory_hint(flag), out_of_memory_hint("--other"), out_of_memory_hint(flag):
            lack(kind)

    monkeypatch.setattr(work, "__module__", "gen_condense")
    with pytest.raises(SystemExit) as stop:
        cli(work)(SCRIPTS["gen_condense"].parse_args([]))
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gen_condense.py: out of memory (")
    assert f"a smaller {flag or '--batch-size or --width'} needs less" in line


@pytest.mark.parametrize(
    ("script", "place", "extra", "flag"),
    [
        ("validate", "scoring.sources.balanced_epochs", ["--source", "real"], "--ipc"),
        (
            "validate",
            "scoring.sources.generate",
            ["--source", "generator", "--pretrain-weight", "{gan}"],
            "--ipc",
        ),
        (
            "validate",
            "scoring.table.draw_fixed",
            ["--source", "generator", "--pretrain-weight", "{gan}"],
            "--samples",
        ),
        (
            "validate",
            "scoring.table.draw_fixed",
            ["--source", "generator", "--pretrain-weight", "{gan}", "--export", "{out}"],
            "--ipc",
        ),
        ("validate", "scoring.trainer.classifier_loss", ["--source", "real"], "--batch-size"),
        ("gen_condense", "gen_condense.build_gan", [], "--width"),
        ("continual", "replay.memory.build_gan", [], "--width or --memory-bytes"),
        ("continual", "replay.generation.generate", [], "--replay-images"),
        (
            "continual",
            "replay.methods.joined",
            ["--buffer-size", "9"],
            "--batch-size",
        ),
    ],
)
def test_each_place_that_takes_memory_names_its_flag(
    script, place, extra, flag, trained, tmp_path, capsys, monkeypatch
):
    flags = {
        "validate": lambda: validate_flags(tmp_path, "--data", "digits"),
        "gen_condense": lambda: gan_flags(tmp_path),
        "continual": lambda: (
            continual_flags(tmp_path, "er")[:-2] if extra else continual_flags(tmp_path, "dim")
        ),
    }[script]()
    monkeypatch.setattr(place, lambda *args, **kwargs: lack("cpu"))
    with pytest.raises(SystemExit) as stop:
        run(
            SCRIPTS[script],
            [
                *flags,
                *(text.format(gan=trained / "gan" / "last.pth", out=tmp_path / "out") for text in extra),
            ],
        )
    assert stop.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"a smaller {flag} needs less" in line


def test_an_error_of_another_kind_is_raised(monkeypatch):
    def work(args):
        with out_of_memory_hint("--ipc"):
            raise RuntimeError("a fault of ours")

    monkeypatch.setattr(work, "__module__", "gen_condense")
    with pytest.raises(RuntimeError, match="a fault of ours"):
        cli(work)(None)


# Ctrl-C, and what a terminal cannot show


@pytest.mark.parametrize("script", [*SCRIPTS, *TOOLS])
def test_ctrl_c_during_the_imports_gives_no_traceback(script, tmp_path):
    """Whatever is imported first of these sends the signal that Ctrl-C sends."""
    for name in ("torch", "numpy", "matplotlib", "scipy"):
        (tmp_path / f"{name}.py").write_text(
            "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n"
        )
    command = [sys.executable, str(ROOT / f"{script}.py"), "--help"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (-2, "")


def test_a_name_that_the_terminal_cannot_show_is_escaped(tmp_path):
    code = "import sys, utils; f = utils.cli(lambda args: print('\\udce4 \\u03c0'));"
    code += " sys.modules['__main__'].__file__ = 'x.py'; f(None)"
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\\udce4 \\u03c0\n")


def test_a_missing_record_is_one_line(tmp_path, capsys):
    for tool, flags in {
        "benchmarks/speed": ["--table", "{missing}"],
        "benchmarks/compare": ["{missing}", "{missing}"],
        "figs/make_figures": ["{missing}"],
        "figs/draw_continual": ["--from", "{missing}"],
    }.items():
        with pytest.raises(SystemExit) as stop:
            run(TOOLS[tool], [flag.format(missing=tmp_path / "missing") for flag in flags])
        assert stop.value.code == 2, tool
        (line,) = capsys.readouterr().err.splitlines()
        assert "No such file" in line
        assert "missing" in line


def test_usage_errors_are_values():
    assert issubclass(UsageError, ValueError)
