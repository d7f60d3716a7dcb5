"""Paired differences: the numbers, what pairs with what, and what is refused in one line."""

import itertools
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from conftest import run

from benchmarks import compare


def fake_row(source: str = "generator", accs: tuple = (70.0, 71.0, 72.5, 70.5, 71.5), **changes) -> dict:
    """A row as validate.py writes it."""
    row = {
        "dataset": "digits",
        "split": "test",
        "val_size": 0,
        "tested_on": "1f",
        "budget": "stream",
        "recipe": "dim",
        "epochs": 500,
    }
    row |= {
        "batch_size": 128,
        "lr": 0.01,
        "lr_decay": "none",
        "dsa_strategy": "color_crop",
        "dsa_composition": "dim",
        "mix_p": -1.0,
    }
    row |= {
        "ema": 0.0,
        "seed": 0,
        "amp": False,
        "commit": "c0ffee",
        "torch": "2.8",
        "device": "cpu, 2 threads",
        "curve": None,
    }
    row |= {
        "classifier": "convnet_w32",
        "source": source,
        "ipc": 10,
        "labels": "hard",
        "temperature": None,
        "teacher": None,
    }
    generates = source == "generator"
    row |= {
        "generator_parameters": 1000 if generates else None,
        "generator_bytes": 4000 if generates else None,
        "filter": None,
    }
    row |= {"checkpoint_sha256": "a1" if generates else None, "storage": "fp32" if generates else None}
    row |= {
        "file": None,
        "file_sha256": None,
        "set": None,
        "match_bytes": None,
        "drawn_from": None if generates else "2e",
    }
    row |= {
        "n": len(accs),
        "mean": statistics.mean(accs),
        "std": statistics.stdev(accs) if len(accs) > 1 else None,
        "accs": list(accs),
    }
    row |= {
        "seconds_generate": 6.0,
        "seconds_train": 24.0,
        "images_seen": 50000,
        "steps": 500,
        "num_bytes": 4000,
        "num_images": None,
    }
    row |= {"bits_per_class": 3200.0, "confusion": ["9 1", "2 8"]}
    return row | changes


def kept(folder: Path, rows: list[dict]) -> str:
    """A results.json of these rows; its folder."""
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(rows))
    return str(folder)


def test_the_difference_and_its_interval(tmp_path, capsys):
    a, b = (70.0, 71.0, 72.5, 70.5, 71.5), (69.0, 69.5, 69.0, 70.75, 70.0)
    folder = kept(tmp_path / "test", [fake_row(accs=a, storage="int8"), fake_row("random-real", accs=b)])
    (result,) = run(compare, [folder, folder, "--a", "source=generator", "--b", "source=random-real"])
    differences = np.array([1.0, 1.5, 3.5, -0.25, 1.5])
    assert result["difference"] == pytest.approx(1.45)
    all_means = [statistics.mean(resample) for resample in itertools.product(differences, repeat=5)]
    interval = np.percentile(all_means, (2.5, 97.5))
    assert (result["low"], result["high"]) == pytest.approx(tuple(interval), abs=0.06)
    deviation = (
        differences.std() / 5**0.5
    )  # of the mean of a resample: the interval is about two of it to either side
    assert (result["high"] - result["low"]) / deviation == pytest.approx(2 * 1.96, rel=0.1)
    first, second = capsys.readouterr().out.splitlines()
    assert (
        first == "digits, convnet_w32, ipc 10, stream: source generator / random-real, storage int8 / none, "
        "checkpoint_sha256 a1 / none, drawn_from none / 2e"
    )
    low, high = (f"{result[name]:+.2f}" for name in ("low", "high"))
    assert second == f"  n 5, A 71.10, B 69.65, A - B +1.45 points, 95 % [{low}, {high}] excludes 0"


@pytest.mark.parametrize(
    ("a", "b", "low", "high", "line"),
    [
        (
            (3.0, 5.0),
            (2.0, 2.0),
            1,
            3,
            "n 2, A 4.00, B 2.00, A - B +2.00 points, 95 % [+1.00, +3.00] excludes 0 (few: n < 5)",
        ),
        ((2.0, 5.0), (3.0, 3.0), -1, 2, "A - B +0.50 points, 95 % [-1.00, +2.00] includes 0 (few: n < 5)"),
        ((2.0, 2.0), (3.0, 3.0), -1, -1, "A - B -1.00 points, 95 % [-1.00, -1.00] excludes 0 (few: n < 5)"),
        (
            (2.0,),
            (3.0, 9.0),
            None,
            None,
            "n 1 (of 1 and 2), A 2.00, B 3.00, A - B -1.00 points, no interval of one",
        ),
        ((5.0, 6.0, 0.0), (1.0, 2.0), 4, 4, "n 2 (of 3 and 2), A 5.50, B 1.50, A - B +4.00 points"),
    ],
)
def test_intervals_by_hand(a, b, low, high, line):
    result = compare.compare([fake_row(accs=a)], fake_row("real", accs=b))
    assert (result["low"], result["high"]) == (low, high)
    assert line in compare.lines_of(result)


SETTINGS = "dataset split tested_on val_size recipe epochs batch_size lr lr_decay dsa_strategy".split()
SETTINGS += "dsa_composition mix_p ema".split()


@pytest.mark.parametrize("name", [*SETTINGS, "budget", "ipc", "classifier", "seed"])
def test_rows_that_differ_in_a_setting_are_no_pair(name, tmp_path, capsys):
    other = fake_row("real", **{name: "other"})
    folder = kept(tmp_path / "test", [fake_row(), other])
    with pytest.raises(SystemExit) as stop:
        run(compare, [folder, folder, "--a", "source=generator", "--b", "source=real"])
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()
    own = compare.text(fake_row().get(name))
    assert error == [
        f"compare.py: error: no row of A pairs with one of B: the nearest two differ in {name}, {own} and "
        "other"
    ]


def test_each_row_of_a_meets_each_that_agrees_and_never_itself(tmp_path):
    rows = [
        fake_row(source, ipc=ipc, classifier=name)
        for source in ("real", "herding")
        for ipc in (1, 10)
        for name in ("a", "b")
    ]
    assert len(compare.pairs_of(rows[:4], rows[4:])) == 4
    assert len(compare.pairs_of(rows, rows)) == 8
    older = [
        {name: value for name, value in row.items() if name in ("source", "accs", "ipc", "classifier")}
        for row in rows
    ]
    assert len(compare.pairs_of(older[:4], older[4:])) == 4
    with pytest.raises(compare.UsageError, match="A and B are one and the same row"):
        compare.pairs_of(rows[:1], rows[:1])


def test_generators_and_classifiers_are_drawn_crosswise(tmp_path, capsys):
    rows = [
        fake_row(accs=(10.0, 12.0), checkpoint_sha256="a", num_bytes=1),
        fake_row(accs=(14.0, 16.0, 99.0), checkpoint_sha256="b", num_bytes=2),
    ]
    rows += [fake_row(accs=(11.0, 11.0), storage="int8"), fake_row("real", accs=(10.0, 10.0, 90.0))]
    folder = kept(tmp_path / "test", rows)
    *singles, result = run(compare, [folder, folder, "--a", "source=generator", "--b", "source=real"])
    assert [single["difference"] for single in singles] == pytest.approx([1, 19 / 3, 1])
    # Both classifiers are the first with a chance of 1/4, both generators a with 1/4: a mean of 0 has 1/16.
    # Were the classifiers drawn for each generator on its own, it would have 1/64, and 1/40 would lie at 0.5.
    assert (result["n"], result["difference"], result["low"], result["high"]) == (2, 3, 0, 6)
    assert (
        "over 2 generators of A\n  n 2, A 13.00, B 10.00, A - B +3.00 points, 95 % [+0.00, +6.00] includes "
        "0 (few" in capsys.readouterr().out
    )


def test_intervals_are_the_same_each_time():
    accs = np.random.default_rng(0).normal(70, 3, (4, 7))
    rows = [fake_row(accs=tuple(one)) for one in accs[:3]]
    other = fake_row("real", accs=tuple(accs[3]))
    assert compare.compare(rows, other) == compare.compare(rows, other)


def test_filters_compare_what_stands_in_the_file(tmp_path):
    rows = [fake_row(), fake_row(storage="int8", amp=True), fake_row("real", lr=0.1)]
    folder = kept(tmp_path / "test", rows)
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"rows": rows}))
    for path in (folder, f"{folder}/results.json", str(record)):
        assert compare.choose(path, "--a", ["storage=none"]) == rows[2:]
        assert compare.choose(path, "--a", ["lr=0.01", "amp=True"]) == rows[1:2]
        assert compare.choose(path, "--a", ["nothing=none"]) == rows


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["{0}/missing"],
            "missing: expected the results.json of validate.py, found No such file or directory",
        ),
        (["{0}"], "results.json: expected the results.json of validate.py, found No such file or directory"),
        (["{0}/bad"], "results.json: expected the results.json of validate.py, found something else"),
        (
            ["{0}/bad/other.json"],
            "other.json: expected the results.json of validate.py, found something else",
        ),
        (["{0}/bad/text"], "text: expected the results.json of validate.py, found something else"),
        (
            ["{0}/none"],
            "results.json: expected the results.json of validate.py, found something else (no row with a "
            "result)",
        ),
        (
            ["{0}/good", "--a", "source=herding"],
            "--a source=herding: no row left of {0}/good has it, found generator, real",
        ),
        (
            ["{0}/good", "--a", "source=real", "storage=int8"],
            "--a storage=int8: no row left of {0}/good has it, found none",
        ),
        (
            ["{0}/good", "--b", "generator"],
            "--b generator: no row left of {0}/good has it, found none",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_line(flags, message, tmp_path, capsys):
    good = kept(tmp_path / "good", [fake_row(), fake_row("real")])
    kept(tmp_path / "bad", [{"method": "er", "accs": [1.0]}])
    kept(tmp_path / "none", [fake_row(accs=(1.0,)) | {"accs": []}])
    (tmp_path / "bad" / "other.json").write_text('{"a": 1}')
    (tmp_path / "bad" / "text").write_bytes(b"\xff\xfe")
    with pytest.raises(SystemExit) as stop:
        run(compare, [flags[0].format(tmp_path), good, *flags[1:]])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message.format(tmp_path) in line
