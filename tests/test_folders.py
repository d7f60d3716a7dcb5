"""The four scripts on a folder of transparent pictures with a val/ folder, and the flags of --file in one
command each."""

import numpy as np
import pytest
import torch
from conftest import continual_flags, gan_flags, match_flags, run, validate_flags
from PIL import Image

import continual
import gen_condense
import pool_match
import validate


@pytest.fixture
def pictures(tmp_path):
    """Black pictures whose shape is in their alpha channel: on black they are all equal."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 36), ("val", 4)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for number in range(n):
                alpha = np.where(np.tri(28) == label, 255, rng.integers(0, 60, (28, 28))).astype(np.uint8)
                plain = Image.new("L", (28, 28))
                Image.merge("LA", (plain, Image.fromarray(alpha))).save(
                    tmp_path / "set" / split / name / f"{number}.png"
                )
    return tmp_path / "set"


def test_each_script_takes_the_flags_of_a_folder(pictures, tmp_path, capsys):
    folder = ["--data-dir", str(pictures), "--test-folder", "val"]
    sizes = ["--val-size", "4", "--batch-size", "16", "--epochs", "1"]
    new = ["--data", "folder", *folder, "--image-size", "28", "--background", "white", *sizes]
    gan = run(gen_condense, gan_flags(tmp_path, *new))
    match = run(pool_match, match_flags(tmp_path, gan.best_path, *folder, *sizes))
    weights = [
        "--pretrain-weight",
        str(match.best_path),
        "--source",
        "generator",
        "real",
        "--epochs-eval",
        "1",
        "--repeats",
        "1",
    ]
    rows = run(validate, validate_flags(tmp_path, *weights, *folder))
    assert {row["dataset"] for row in rows} == {"folder"}
    assert rows[0]["class_names"] == ["cat", "dog"]
    assert torch.load(match.best_path, weights_only=True)["info"]["background"] == "white"
    flags = [*continual_flags(tmp_path, "finetune"), *new, "--num-tasks", "2", "--batch-size", "8"]
    assert run(continual, flags)["finished"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--source real --data folder", "test: no such folder"),
        ("--source real --data folder --test-folder val", "train: its 72 images are all equal"),
        (
            "--source real --data folder --test-folder train",
            "--test-folder train: is the folder of the training pictures",
        ),
        (
            "--source real --data digits --test-folder val",
            "--test-folder val: digits is no folder of pictures",
        ),
        (
            "--source real --data digits --background white",
            "--background white: digits is no folder of pictures",
        ),
        ("--source file --data digits --file none.npz", "none.npz: no such file, expected arrays of numpy"),
    ],
)
def test_flags_that_do_not_fit_are_one_line_and_exit_2(flags, message, pictures, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run(validate, validate_flags(tmp_path, "--data-dir", str(pictures), *flags.split()))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "test").exists()
