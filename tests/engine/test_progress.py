"""How far a loop is, on a terminal and in a log file; and what a run says before its first step."""

import io
import sys

import pytest
from conftest import continual_flags, gan_flags, match_flags, run, validate_flags

import continual
import gen_condense
import pool_match
import validate
from engine import progress
from engine.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_file_has_a_line_at_readings_half_a_minute_apart(clock, capsys):
    with Progress(100, 20, "epoch 1/2") as loop:
        for _ in range(80):
            clock[0] += 4
            loop.update()
            if loop.done % 5 == 0:  # every 20 seconds
                loop.read("epoch 1/2", {"loss": 0.5})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 8
    assert lines[0] == "epoch 1/2: step 30 of 100, 40 s, about 280 s left  loss 0.500"
    assert lines[-1].startswith("epoch 1/2: step 100 of 100, 320 s, about 0 s left")


def test_a_short_loop_and_a_hidden_one_say_nothing(clock, capsys):
    for hidden in (False, True):
        with Progress(3, hidden=hidden) as loop:
            for _ in range(3):
                clock[0] += 100 * hidden
                loop.update()
                loop.read("x")
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(monkeypatch, clock):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(3, title="steps") as loop:
        clock[0] = 100
        loop.update()
        loop.read("epoch 1/1", {"loss": 0.5})
    assert "epoch 1/1:  33%" in terminal.getvalue() or "steps:   0%" in terminal.getvalue()
    assert "about" not in terminal.getvalue()


DIGITS = "1 x 28 x 28; 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"


def test_first_lines_say_what_was_found(tmp_path, trained, capsys):
    run(gen_condense, gan_flags(tmp_path))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"data: digits, 320 training, 1,180 held-out, 297 test images of {DIGITS}"
    generator, discriminator = (
        int(text.split()[-1].replace(",", "")) for text in lines[1].removesuffix(" parameters").split(", ", 1)
    )
    assert lines[1] == f"networks: generator {generator:,}, discriminator {discriminator:,} parameters"
    assert lines[2:] == ["steps: 10 in all, 2 epochs", "steps run on: cpu, 1 threads, float32, eager"]

    run(pool_match, match_flags(tmp_path, trained / "gan" / "last.pth"))
    text = capsys.readouterr().err
    assert f"networks: generator {generator:,}, discriminator {discriminator:,}, convnet_w32 " in text

    run(validate, validate_flags(tmp_path, "--pretrain-weight", str(trained / "gan" / "last.pth")))
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning")]
    assert lines[0] == f"data: digits, 1,500 training, 297 test images of {DIGITS}"
    assert lines[1] == f"networks: generator 1 {generator:,}, convnet_w32 24,138 parameters"
    assert lines[2] == "steps: 24 in all, 6 classifiers of 4 epochs"

    run(continual, continual_flags(tmp_path, "er"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("data: digits, 120 training, 1,380 held-out")
    assert lines[1].startswith("tasks: 1: 0, 1; 2: 2, 3; ")
    assert lines[3] == "memory: a buffer of at most 20 real images"


def test_a_stopped_run_says_how_much_is_done(tmp_path, capsys, monkeypatch):
    train_gan = gen_condense.train_gan

    def stopping(*args, **settings):
        for i, at in enumerate(train_gan(*args, **settings)):
            yield at
            if i == 2:
                raise KeyboardInterrupt

    flags = gan_flags(tmp_path, "--save-interval", "1")
    with monkeypatch.context() as patch:
        patch.setattr(gen_condense, "train_gan", stopping)
        with pytest.raises(SystemExit):
            run(gen_condense, flags)
    capsys.readouterr()
    run(gen_condense, flags)
    assert "steps: 10 in all, 2 epochs; 3 done" in capsys.readouterr().err


def test_bad_input_is_still_one_line(tmp_path, capsys):
    run(gen_condense, gan_flags(tmp_path))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(gen_condense, gan_flags(tmp_path, "--width", "8"))
    assert len(capsys.readouterr().err.splitlines()) == 1
