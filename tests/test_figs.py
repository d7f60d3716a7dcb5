"""The figures and tables of continual runs are made from results.json alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import continual_flags, run
from PIL import Image

import continual
from figs import draw_continual
from utils import UsageError


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Folders of two seeds of er, one of them older, one of finetune, one of dim, and one that is not finished."""
    results = tmp_path_factory.mktemp("runs")
    for method, name, seed in (("er", "er", 0), ("er", "er", 1), ("finetune", "finetune", 0), ("dim", "dim", 0)):
        tag = ["--tag", f"digits_20000_{name}_{seed}", "--seed", str(seed), "--num-tasks", "2"]
        run(continual, continual_flags(results, method, *tag))
    older = results / "digits_20000_er_1" / "results.json"  # of a time before --replay-loss
    found = json.loads(older.read_text())
    assert found["flags"].pop("replay_loss") is None
    older.write_text(json.dumps(found))
    shutil.copytree(results / "digits_20000_er_0", results / "digits_20000_half_0")
    half = results / "digits_20000_half_0" / "results.json"
    half.write_text(json.dumps(json.loads(half.read_text()) | {"finished": False}))
    return results


def test_rows_tables_and_figures(runs, tmp_path, capsys):
    record, out = tmp_path / "record.json", tmp_path / "figures"
    folders = sorted(map(str, runs.iterdir()))
    rows = run(draw_continual, [*folders, "--out", str(out), "--record", str(record), "--command", "a", "b", "--hardware", "h"])
    assert sorted((row["label"], row["n"]) for row in rows) == [("dim", 1), ("er", 2), ("finetune", 1)]
    er = next(row for row in rows if row["label"] == "er")
    singles = [json.loads((runs / f"digits_20000_er_{seed}" / "results.json").read_text()) for seed in (0, 1)]
    accs = [single["mean"]["class-il"]["average_accuracy"] for single in singles]
    assert er["accs"] == accs
    assert er["mean"] == pytest.approx(sum(accs) / 2)
    assert er["std"] == pytest.approx(abs(accs[0] - accs[1]) / 2**0.5)
    first = [single["networks"]["convnet_w32"]["class-il"]["acc"][0][0] for single in singles]
    assert er["acc"][0][0] == pytest.approx(sum(first) / 2, abs=1e-3)
    for name in ("bytes", "matrices", "tasks", "samples"):
        assert np.asarray(Image.open(out / f"{name}.png")).std() > 1, name
    kept = json.loads(record.read_text())
    assert (kept["commands"], kept["hardware"], len(kept["rows"])) == (["a", "b"], "h", 3)
    printed = capsys.readouterr()
    assert "digits_20000_half_0: 2 of 2 tasks are done, left out" in printed.err
    table = [line for line in printed.out.splitlines() if line.startswith("| digits")]
    assert [float(line.split("|")[5].split("±")[0]) for line in table] == sorted((round(row["mean"], 2) for row in rows), reverse=True)

    again = run(draw_continual, ["--from", str(record), "--out", str(tmp_path / "again")])
    assert again == json.loads(json.dumps(rows))
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["bytes.png", "matrices.png", "tasks.png"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected either the folders of runs or --from RECORD"),
        (["{0}/nothing"], "no finished run of continual.py there"),
        (["{0}/bad"], "results.json: expected the results of continual.py"),
        (["--from", "{0}/bad/results.json"], "expected a record of continual runs"),
        (["--from", "{0}/missing"], "expected a record of continual runs"),
    ],
)
def test_what_is_not_a_run_is_one_line(flags, message, tmp_path, capsys):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "results.json").write_text('{"a": 1}')
    with pytest.raises(SystemExit) as error:
        run(draw_continual, [flag.format(tmp_path) for flag in flags])
    assert error.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_seed_that_stands_twice_in_a_row_is_refused(runs, tmp_path):
    shutil.copytree(runs / "digits_20000_er_0", tmp_path / "digits_9_er_0")
    with pytest.raises(UsageError, match="seed 0 stands more than once in its row, expected each run once"):
        draw_continual.rows_of(draw_continual.read_runs([str(runs / "digits_20000_er_0"), str(tmp_path / "digits_9_er_0")]))


def test_labels_are_names_without_set_bytes_and_seed():
    def label(folder, seed=0):
        return draw_continual.label_of({"data": "mnist", "seed": seed, "folder": Path(folder)})

    assert label("results/mnist_600000_er_webp_0") == "er_webp"
    assert label("results/mnist_joint_2", 2) == "joint"
    assert label("results/mine") == "mine"
    with pytest.raises(UsageError):
        draw_continual.read_runs(["nowhere"])
