"""Distilled sets of several files: each file has a name of its own, and a mean is only over one file or what
the user calls one group."""

import pytest
import torch
from conftest import run, validate_flags

import validate
from figs.lines import lines_of
from scoring.results import over_trainings, told_apart

LABELS = torch.arange(10).repeat_interleave(2)


@pytest.fixture
def files(tmp_path) -> list[str]:
    """Two files of one base name, the second with two sets."""
    sets = [
        torch.randint(0, 256, (20, 1, 28, 28), generator=torch.Generator().manual_seed(seed)).byte()
        for seed in range(3)
    ]
    for folder, content in (("a", (sets[0], LABELS)), ("b", {"data": [[one, LABELS] for one in sets[1:]]})):
        (tmp_path / folder).mkdir()
        torch.save(content, tmp_path / folder / "images_best.pt")
    return [str(tmp_path / folder / "images_best.pt") for folder in "ab"]


def rows_of(tmp_path, *files: str) -> list[dict]:
    flags = [
        "--source",
        "file",
        "--data",
        "digits",
        "--budget",
        "fixed",
        "--repeats",
        "1",
        "--epochs-eval",
        "1",
        "--file",
        *files,
    ]
    return run(validate, [flag for flag in validate_flags(tmp_path, *flags) if flag not in ("--ipc", "3")])


@pytest.mark.parametrize("at_once", [True, False])
def test_files_of_one_base_name_are_told_apart_and_not_averaged(at_once, files, tmp_path, capsys):
    rows = (
        rows_of(tmp_path, *files) if at_once else [*rows_of(tmp_path, files[0]), *rows_of(tmp_path, files[1])]
    )
    assert [row["file"] for row in told_apart(rows)] == [
        files[0],
        files[1],
        files[1],
    ]
    assert over_trainings(rows) == [rows[1:]]
    out = capsys.readouterr().out
    if at_once:
        assert f"file {files[0]}  " in out
        assert f"file {files[1]} [1]  " in out
        mean = (rows[1]["mean"] + rows[2]["mean"]) / 2
        assert f"convnet_w32, file {files[1]}, fixed, ipc 2: {mean:.2f} ± " in out
    lines = sorted((line.label, len(line.rows)) for line in lines_of(rows))
    assert lines == [(f"file {files[0]}", 1), (f"file {files[1]}, 2 sets", 2)]


def test_a_path_is_whole_where_names_are_the_same():
    rows = [
        {"source": "file", "path": path, "file": path.split("/")[-1]}
        for path in ("x/a/i.pt", "y/a/i.pt", "y/j.pt", "i.pt")
    ]
    assert [row["file"] for row in told_apart(rows)] == ["x/a/i.pt", "y/a/i.pt", "j.pt", "i.pt"]
    assert told_apart([{"source": "file", "file": "kept.pt"}]) == [
        {"source": "file", "file": "kept.pt"}
    ]  # a row of earlier versions


def test_what_the_user_calls_one_group_is_averaged(files, tmp_path, capsys):
    rows_of(tmp_path, *files)
    rows = rows_of(tmp_path, *files, "--group", "ours")  # trains nothing anew
    assert [row["n"] for row in rows] == [1, 1, 1]
    assert over_trainings(rows) == [rows]
    assert "file ours, fixed, ipc 2: " in capsys.readouterr().out
    assert [(line.label, len(line.rows)) for line in lines_of(rows)] == [("file ours, 3 sets", 3)]


def test_rows_of_several_generators_name_their_checkpoints(trained, tmp_path, capsys):
    weights = [str(trained / stage / "last.pth") for stage in ("gan", "match")]
    flags = ["--source", "generator", "--pretrain-weight", *weights, "--repeats", "1", "--epochs-eval", "1"]
    run(validate, validate_flags(tmp_path, *flags))
    out = capsys.readouterr().out
    for weight in weights:
        assert f"generator {weight}  " in out
    assert "convnet_w32, generator, stream, ipc 3: " in out
