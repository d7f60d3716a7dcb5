"""The figures and tables are made from results.json alone."""

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, continual_flags, run
from PIL import Image
from test_compare import fake_row, kept

import continual
from figs import draw_continual, make_figures
from figs.lines import lines_of, unique
from figs.rows import read_runs, rows_of
from utils import UsageError


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Folders of two seeds of er, one of them older, one of finetune, one of dim, and one that is not
    finished."""
    results = tmp_path_factory.mktemp("runs")
    for method, name, seed in (
        ("er", "er", 0),
        ("er", "er", 1),
        ("finetune", "finetune", 0),
        ("dim", "dim", 0),
    ):
        tag = ["--tag", f"digits_20000_{name}_{seed}", "--seed", str(seed), "--num-tasks", "2"]
        run(continual, continual_flags(results, method, *tag))
    older = results / "digits_20000_er_1" / "results.json"  # of a time before these flags
    found = json.loads(older.read_text())
    assert found["flags"].pop("rehearse_steps") == 0
    found["flags"] |= {"gan": "dim", "offer": "step", "layout": None}  # flags of other methods, and lost ones
    older.write_text(json.dumps(found))
    shutil.copytree(results / "digits_20000_er_0", results / "digits_20000_half_0")
    half = results / "digits_20000_half_0" / "results.json"
    half.write_text(json.dumps(json.loads(half.read_text()) | {"finished": False}))
    return results


OLD = {
    "layout": None,
    "oracle": False,
    "distilled_share": 0.0,
    "distill_weight": None,
}  # flags of all methods


def with_flags(run_: dict, seed: int, flags: dict) -> dict:
    """The run as one of another seed, with other flags."""
    return run_ | {"seed": seed, "folder": Path(f"dim_{seed}"), "flags": flags}


def test_a_generator_with_tables_of_all_classes_has_a_row_of_its_own(runs):
    (new,) = read_runs([str(runs / "digits_20000_dim_0")])
    flags = new["flags"] | OLD
    tables = ({}, {"class_tables": "all"}, {"class_tables": "task"}, {"class_tables": None})
    older = [with_flags(new, seed, flags | more) for seed, more in enumerate(tables, 1)]
    assert [row["seeds"] for row in rows_of([new, *older])] == [[0, 3, 4], [1, 2]]


def test_of_two_records_the_one_with_more_seeds_is_drawn(runs, tmp_path, monkeypatch):
    rows = rows_of(read_runs([str(runs / f"digits_20000_{name}_0") for name in ("er", "finetune")]))
    more = rows[0] | {"n": 5, "mean": 61.0, "std": 1.0}
    drawn = []
    monkeypatch.setattr(
        draw_continual.plt.Axes, "errorbar", lambda self, places, means, *args, **kwargs: drawn.extend(means)
    )
    for order in ([more, *rows], [*rows, more]):
        draw_continual.draw_bytes(order, tmp_path / "bytes.png")
        assert drawn == [61.0]
        drawn.clear()


def test_an_older_generator_was_matched_for_100_steps_by_default(runs):
    (new,) = read_runs([str(runs / "digits_20000_dim_0")])
    flags = new["flags"] | OLD | {"class_tables": "task"}
    oldest = {name: value for name, value in flags.items() if name != "distilled_share"}
    kinds = ((oldest, None), (flags, 100), (flags, None), (flags, 0), (new["flags"], 0), (new["flags"], 100))
    cases = [with_flags(new, seed, one | {"match_steps": steps}) for seed, (one, steps) in enumerate(kinds)]
    assert [row["seeds"] for row in rows_of(cases)] == [[0, 1, 5], [2, 3, 4]]


def test_flags_without_an_effect_do_not_part_the_runs_of_a_row(runs):
    er, dim = (read_runs([str(runs / f"digits_20000_{name}_0")])[0] for name in ("er", "dim"))
    for run_, flags, rows in (
        (er, {"alpha": 0.7, "latent_steps": 200}, 1),
        (er, {"lr": 0.7}, 2),
        (dim, {"latent_steps": 200}, 1),
    ):
        other = run_ | {"seed": 5, "flags": run_["flags"] | flags}
        assert len(rows_of([run_, other | {"folder": Path("er_5" if run_ is er else "dim_5")}])) == rows, (
            flags
        )


def test_rows_tables_and_figures(runs, tmp_path, capsys):
    record, out = tmp_path / "record.json", tmp_path / "figures"
    folders = sorted(map(str, runs.iterdir()))
    rows = run(
        draw_continual,
        [*folders, "--out", str(out), "--record", str(record), "--command", "a", "b", "--hardware", "h"],
    )
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
    assert [float(line.split("|")[5].split("±")[0]) for line in table] == sorted(
        (round(row["mean"], 2) for row in rows), reverse=True
    )

    again = run(draw_continual, ["--from", str(record), "--out", str(tmp_path / "again")])
    other = tmp_path / "other.json"
    other.write_text(json.dumps(kept | {"rows": kept["rows"][1:]}))
    capsys.readouterr()
    assert run(draw_continual, ["--from", str(other), str(record)]) == kept["rows"][1:] + kept["rows"]
    both = capsys.readouterr().out
    assert both.count(f"({other}) 0 |") == both.count(f"({record}) 1 |") == 1
    run(draw_continual, ["--from", str(record), "--nearness"])
    near = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| digits")]
    assert [(cells[1], cells[3], cells[5]) for cells in near] == [
        ("dim", "generated", "0.00"),
        ("er", "stored", "100.00"),
    ]
    assert again == json.loads(json.dumps(rows))
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == [
        "bytes.png",
        "matrices.png",
        "tasks.png",
    ]


def test_differences_are_of_the_same_seeds_at_the_same_budget(runs, tmp_path, capsys):
    """Means, and Student's interval: over two seeds -1 and 3 have a half-width of twice 12.706."""
    (er,) = rows_of(read_runs([str(runs / f"digits_20000_er_{seed}") for seed in (0, 1)]))

    def row(label, accs, seeds=(0, 1, 2), budget=20000):
        return er | {"label": label, "seeds": list(seeds[: len(accs)]), "accs": accs, "memory_bytes": budget}

    rows = [
        row("a", [51.0, 53.0, 60.0]),
        row("b", [50.0, 52.0], (1, 0)),
        row("c", [50.0], (7,)),
        row("a", [9.0], budget=30000),
    ]
    rows += [row("d", [52.5, 50.5]), row("e", [1.0], budget=None), row("b", [2.0], budget=None)]
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"rows": rows}))
    run(draw_continual, ["--from", str(record), "--against", "b"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| digits")]
    assert lines == [
        f"| digits | 20,000 | a | b | +1.00 | [-24.41, +26.41] | 1 of 2 | 2 | [record]({record}) 0, 1 |",
        f"| digits | 20,000 | d | b | +0.50 |  | 2 of 2 | 2 | [record]({record}) 4, 1 |",
    ]
    with pytest.raises(SystemExit, match="2"):
        run(draw_continual, ["--from", str(record), "--against", "c"])
    line = "--against c: expected the name of a row that shares budget and seeds with another, found a, b, c, d, e"
    assert line in capsys.readouterr().err
    copied = tmp_path / "copied.json"
    copied.write_text(record.read_text())
    with pytest.raises(SystemExit, match="2"):
        run(draw_continual, ["--from", str(record), str(copied), "--against", "b"])
    assert (
        "--against b: expected one row of this name at a budget, found 2 rows of digits at 20,000 bytes"
        in capsys.readouterr().err
    )
    other = tmp_path / "other.json"
    record.write_text(json.dumps({"rows": rows[:1]}))
    other.write_text(json.dumps({"rows": [rows[3], rows[1]]}))
    run(draw_continual, ["--from", str(record), str(other), "--against", "b"])
    assert f"| 2 | [record]({record}) 0; [record]({other}) 1 |" in capsys.readouterr().out


def test_the_front_has_a_line_for_each_method_and_a_column_for_each_budget(runs, tmp_path, capsys):
    """Qualities go with budgets, of two rows the one with more seeds counts, and rows of other networks are
    not mixed in."""
    (er,) = rows_of(read_runs([str(runs / f"digits_20000_er_{seed}") for seed in (0, 1)]))

    def row(label, mean, budget, **changes):
        return er | {"label": label, "mean": mean, "std": 1.0, "n": 3, "memory_bytes": budget} | changes

    rows = [
        row("er_scan12_rd", 50.0, 50000),
        row("er_scan50_rd", 60.0, 1500000, n=1, std=None),
        row("er_scan50_rd", 61.0, 1500000),
    ]
    rows += [row("cls-er_scan50_rd", 64.0, 1500000), row("joint", 70.0, None)]
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"rows": rows}))
    run(draw_continual, ["--from", str(record), "--front"])
    assert capsys.readouterr().out.splitlines() == [
        "| data | method | 50 kB | 1.5 MB | record, rows |",
        "|---|---|---|---|---|",
        f"| digits | cls-er_scan_rd |  | 64.00 ± 1.00 (3) | [record]({record}) 3 |",
        f"| digits | er_scan_rd | 50.00 ± 1.00 (3) | 61.00 ± 1.00 (3) | [record]({record}) 0, 2 |",
    ]
    for more, message in (
        ([row("er", 1.0, 9, networks=["mlp_w400"])], "expected rows of one setting of digits"),
        ([], "found none"),
    ):
        record.write_text(json.dumps({"rows": (rows if more else rows[4:]) + more}))
        with pytest.raises(SystemExit, match="2"):
            run(draw_continual, ["--from", str(record), "--front"])
        assert message in capsys.readouterr().err


def test_seconds_on_a_gpu_are_hollow_and_not_joined_with_those_of_cores(runs, tmp_path, monkeypatch):
    (er,) = rows_of(read_runs([str(runs / f"digits_20000_er_{seed}") for seed in (0, 1)]))
    lines = []
    draw = draw_continual.plt.Axes.plot
    monkeypatch.setattr(
        draw_continual.plt.Axes,
        "plot",
        lambda self, *args, **kwargs: lines.extend(draw(self, *args, **kwargs)),
    )
    rows = [
        er | {"memory_bytes": 20000 * i, "seconds": 10.0 * i, "device": device}
        for i, device in enumerate(("cpu, 2 threads", "NVIDIA H200", "cpu, 1 threads"), 1)
    ]
    draw_continual.draw_bytes(rows, tmp_path / "bytes.png")
    drawn = [(list(line.get_ydata()), line.get_linestyle(), line.get_fillstyle()) for line in lines]
    assert drawn == [([10.0, 30.0], "-", "full"), ([20.0], "None", "none")]


def test_records_without_nearness_or_of_two_sets_are_told_before_anything_is_written(runs, tmp_path, capsys):
    rows = rows_of(read_runs([str(runs / "digits_20000_er_0"), str(runs / "digits_20000_dim_0")]))
    older, out, record = tmp_path / "older.json", tmp_path / "out", tmp_path / "record.json"
    older.write_text(
        json.dumps(
            {"rows": [{k: v for k, v in rows[0].items() if k not in ("distance_ratio", "near_copies")}]}
        )
    )
    with pytest.raises(SystemExit, match="2"):
        run(draw_continual, ["--from", str(older), "--nearness"])
    assert (
        "--nearness: expected runs that measured how near their images are, found none"
        in capsys.readouterr().err
    )
    older.write_text(
        json.dumps({"rows": [rows[0] | {"distance_ratio": None}, rows[1], rows[0] | {"data": "mnist"}]})
    )
    run(draw_continual, ["--from", str(older), "--nearness"])
    assert [line.split(" | ")[1] for line in capsys.readouterr().out.splitlines()[2:]] == ["dim", "er"]
    with pytest.raises(SystemExit, match="2"):
        run(draw_continual, ["--from", str(older), "--record", str(record), "--out", str(out)])
    printed = capsys.readouterr()
    assert (printed.out, record.exists(), out.exists()) == ("", False, False)
    assert "a figure is of one image set, found digits, mnist" in printed.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected either the folders of runs or --from RECORD"),
        (["{0}/nothing"], "no finished run of continual.py there"),
        (["{0}/bad"], "results.json: expected the results of continual.py"),
        (["--from", "{0}/bad/results.json"], "expected a record of continual runs"),
        (["--from", "{0}/missing"], "expected a record of continual runs"),
        (
            ["--from", "{0}/bad/results.json", "--against", "er", "--nearness"],
            "not allowed with argument --against",
        ),
    ],
)
def test_what_is_not_a_run_is_one_line(flags, message, tmp_path, capsys):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "results.json").write_text('{"a": 1}')
    with pytest.raises(SystemExit) as error:
        run(draw_continual, [flag.format(tmp_path) for flag in flags])
    assert error.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


DAMAGES = [
    {"flags": None},
    {"flags": []},
    {"method": "nope"},
    {"networks": {}},
    {"num_bytes": {}},
    {"seconds": float("nan")},
    {"seconds": "4"},
]
DAMAGES += [{"finished": False, "tasks_done": None, "num_tasks": []}, {"num_tasks": 3}]


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_a_damaged_run_is_refused_by_its_own_path(damage, runs, tmp_path):
    whole, other = runs / "digits_20000_er_0", tmp_path / "digits_20000_er_1"
    shutil.copytree(whole, other)
    found = json.loads((other / "results.json").read_text()) | {"seed": 1} | damage
    if found["finished"] is False:
        del found["tasks_done"]
    (other / "results.json").write_text(json.dumps(found))
    with pytest.raises(UsageError, match=f"{other}/results.json: expected the results of continual.py"):
        read_runs([str(whole), str(other)])


def test_a_seed_that_stands_twice_in_a_row_is_refused(runs, tmp_path):
    shutil.copytree(runs / "digits_20000_er_0", tmp_path / "digits_9_er_0")
    with pytest.raises(UsageError, match="seed 0 stands more than once in its row, expected each run once"):
        rows_of(read_runs([str(runs / "digits_20000_er_0"), str(tmp_path / "digits_9_er_0")]))


def test_labels_are_names_without_set_bytes_and_seed():
    def label(folder, seed=0):
        return draw_continual.label_of({"data": "mnist", "seed": seed, "folder": Path(folder)})

    assert label("results/mnist_600000_er_webp_0") == "er_webp"
    assert label("results/mnist_joint_2", 2) == "joint"
    assert label("results/mine") == "mine"
    with pytest.raises(UsageError):
        read_runs(["nowhere"])


def grid(value: int, per_class: int = 2, size: int = 4, channels: int = 1) -> str:
    """A PNG of ten lines of images, each of one gray: value + 10 * class + its column."""
    images = np.array(
        [[value + 10 * label + column for column in range(per_class)] for label in range(10)], np.uint8
    )
    image = np.kron(images, np.ones((size, size), np.uint8))
    file = io.BytesIO()
    Image.fromarray(image if channels == 1 else np.stack([image] * channels, 2)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def samples(channels: int = 1, **changes) -> dict:
    found = {
        "class_names": list("abcdefghij"),
        "size": 4,
        "channels": channels,
        "per_class": 2,
        "images": grid(0, channels=channels),
    }
    found |= {
        "real": grid(100, channels=channels),
        "nearest": grid(50, channels=channels),
        "distance_ratio": 0.5,
    }
    return found | changes


def full_rows() -> list[dict]:
    """Rows that have something for every figure: three trainings of a generator, its int8, real images and a
    file, of two classifiers."""
    confusion = [" ".join(["80" if i == j else str(i) for j in range(10)]) for i in range(10)]
    rows = []
    for classifier, below in (("convnet", 0.0), ("vgg11", 5.0)):
        for budget in ("stream", "fixed"):

            def add(
                source: str, accs: tuple, classifier=classifier, budget=budget, below=below, **changes
            ) -> None:
                about = {
                    "classifier": classifier,
                    "budget": budget,
                    "confusion": confusion,
                    "curve": 2,
                    "curve_images_seen": [100, 1000],
                }
                accs = tuple(acc - below for acc in accs)
                rows.append(
                    fake_row(source, accs, **about, curve_accs=[[acc - 10, acc] for acc in accs]) | changes
                )

            for sha, acc in (("a", 70.0), ("b", 72.0), ("c", 77.0)):
                add("generator", (acc, acc + 1), storage="fp16", checkpoint_sha256=sha, num_bytes=2000)
            add(
                "generator",
                (69.0, 70.0),
                storage="int8",
                checkpoint_sha256="a",
                num_bytes=1000,
                labels="soft",
                temperature=4.0,
            )
            add("real", (90.0, 91.0), num_bytes=10**6)
            add("random-real-jpeg", (60.0, 62.0), match_bytes=2000, num_bytes=1900)
            add("file", (75.0, 76.0), file="mine.pt", file_sha256="f", set=0, num_bytes=7840)
    for i in (0, 3, 4, 5, 6):
        rows[i]["samples"] = samples()
    return rows


def test_validation_tables_figures_and_record(tmp_path, capsys):
    folder, record, out = kept(tmp_path / "test", full_rows()), tmp_path / "record.json", tmp_path / "figures"
    rows = run(
        make_figures,
        [folder, "--out", str(out), "--record", str(record), "--command", "a", "b", "--hardware", "h"],
    )
    assert rows == full_rows()
    names = sorted(path.stem for path in out.iterdir())
    assert names == ["architectures", "bytes", "confusion", "curves", "neighbours", "samples"]
    for name in names:
        assert np.asarray(Image.open(out / f"{name}.png")).std() > 1, name
    printed = capsys.readouterr()
    assert not printed.err
    table = printed.out.splitlines()
    assert (
        table[0]
        == "| data | classifier | images | stream | fixed | ipc | stored MB | bits per class | n | record, "
        "rows |"
    )
    assert len(table) == 2 + 2 * 5
    three = next(line for line in table if "vgg11 | generator fp16, 3 trainings" in line)
    means, link = "68.50 ± 3.61", f"[record]({record}) 14, 15, 16, 21, 22, 23"
    assert (
        three
        == f"| digits | vgg11 | generator fp16, 3 trainings | {means} | {means} | 10 | 0.002 | 3,200 | 3x2 "
        f"| {link} |"
    )
    assert any(
        "| convnet | generator int8, soft labels at 4 | 69.50 ± 0.71 | 69.50 ± 0.71 |" in line
        for line in table
    )
    assert any("| convnet | file mine.pt | 75.50 ± 0.71 |" in line for line in table)

    found = json.loads(record.read_text())
    assert (found["commands"], found["hardware"], found["minutes"]) == (["a", "b"], "h", 28 * 2 * 30 / 60)
    assert found["rows"] == [
        {name: value for name, value in row.items() if name != "samples"} for row in rows
    ]
    again = tmp_path / "again"
    assert run(make_figures, ["--from", str(record), "--out", str(again)]) == found["rows"]
    printed = capsys.readouterr()
    assert printed.out.splitlines() == table
    assert [line.split(":")[0] for line in printed.err.splitlines()] == ["samples.png", "neighbours.png"]
    for name in ("architectures", "bytes", "confusion", "curves"):
        assert (again / f"{name}.png").read_bytes() == (out / f"{name}.png").read_bytes(), name


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures that would be written."""
    found = []
    monkeypatch.setattr(make_figures, "save", lambda figure, path: found.append(figure))
    return found


def test_curves_and_bytes_show_the_rows_numbers(figures):
    lines = lines_of([row for row in full_rows() if row["classifier"] == "convnet"])
    assert make_figures.draw_curves(lines, None)
    assert make_figures.draw_bytes(lines, None)
    (curves, *_), (points, *_) = (figure.axes for figure in figures)
    drawn = {line.get_label(): line for line in curves.lines}
    assert list(drawn) == [
        *(
            "real",
            "file mine.pt",
            "generator fp16, 3 trainings, stream",
            "generator int8, soft labels at 4, stream",
            "random-real-jpeg",
        ),
        *("generator fp16, 3 trainings, fixed", "generator int8, soft labels at 4, fixed"),
    ]
    three = drawn["generator fp16, 3 trainings, stream"]
    assert [line.get_linestyle() for line in drawn.values()] == ["-"] * 5 + ["--"] * 2
    assert three.get_xydata().tolist() == [[100, 63.5], [1000, 73.5]]
    band = curves.collections[list(drawn).index(three.get_label())].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((63.5 - 13**0.5, 73.5 + 13**0.5))  # of 70, 72 and 77
    bars = {bar.get_label(): bar for bar in points.containers}
    (segment,) = bars["generator fp16, 3 trainings, stream"].lines[2][0].get_segments()
    assert segment[:, 1].tolist() == pytest.approx([73.5 - 13**0.5, 73.5 + 13**0.5])
    assert segment[0, 0] == pytest.approx(0.002, rel=0.3)  # beside others of these bytes
    assert not any(name.startswith("real") for name in bars)
    (level,) = (line for line in points.lines if line.get_label() == "real, 1 MB")
    assert set(level.get_ydata()) == {90.5}


def test_a_curve_is_of_the_trainings_that_have_one(figures):
    without = {"curve_accs": None, "curve_images_seen": None}
    shown = [row | (without if row["checkpoint_sha256"] in ("a", "c") else {}) for row in full_rows()[:3]]
    make_figures.draw_curves(lines_of(shown), None)
    (line,) = figures[0].axes[0].lines
    assert (line.get_label(), line.get_xydata().tolist()) == (
        "generator fp16, stream",
        [[100, 62.5], [1000, 72.5]],
    )


def test_heat_maps_show_the_rows_numbers(figures):
    lines = lines_of(full_rows()[:-1])
    assert make_figures.draw_architectures(lines, None)
    assert make_figures.draw_confusion(lines, None)
    heat, confusion = (figure.axes for figure in figures)
    assert [ax.get_title() for ax in heat] == [
        "digits, ipc 10, stream: accuracy, %",
        "digits, ipc 10, fixed: accuracy, %",
    ]
    names = [
        "real",
        "file mine.pt",
        "generator fp16, 3 trainings",
        "generator int8, soft labels at 4",
        "random-real-jpeg",
    ]
    assert [text.get_text() for text in heat[0].get_xticklabels()] == names
    assert [text.get_text() for text in heat[0].get_yticklabels()] == ["convnet", "vgg11"]
    assert [text.get_text() for text in heat[0].texts][5:] == [
        "85.50 ± 0.71",
        "70.50 ± 0.71",
        "68.50 ± 3.61",
        "64.50 ± 0.71",
        "56.00 ± 1.41",
    ]
    assert heat[1].texts[6].get_text() == ""  # without the last row
    colors = heat[1].images[0].get_array()
    assert colors[0].tolist() == [90.5, 75.5, 73.5, 69.5, 61.0]
    assert np.isnan(colors.filled(np.nan)[1, 1])
    three = confusion[2]
    assert three.get_title() == "generator fp16, 3 trainings\ndigits, convnet, ipc 10, stream"
    assert three.images[0].get_array()[3].tolist() == pytest.approx(
        [100 * (80 if j == 3 else 3) / (80 + 9 * 3) for j in range(10)]
    )
    assert [text.get_text() for text in three.get_xticklabels()] == list("0123456789")


@pytest.mark.parametrize("channels", [1, 3])
def test_images_stand_where_their_class_is(channels, figures):
    rows = [
        fake_row(samples=samples(channels)),
        fake_row("random-real", samples=samples(channels, real=None)),
        fake_row("real", samples=samples()),
    ]
    lines = lines_of(rows)
    assert make_figures.draw_samples(lines, None)
    assert make_figures.draw_neighbours(lines, None)
    (real, generator, chosen), (neighbours,) = (figure.axes for figure in figures)
    titles = [ax.get_title() for ax in (real, generator, chosen)]
    assert titles == ["digits, real", "generator fp32", "random-real"]
    assert [text.get_text() for text in real.get_yticklabels()] == list("abcdefghij")
    assert real.images[0].get_array()[4 * 7, :, 0].tolist() == [170] * 4 + [171] * 4
    assert generator.images[0].get_array()[4 * 7, :, 0].tolist() == [70] * 4 + [71] * 4
    assert neighbours.images[0].get_array()[4 * 7, :, 0].tolist() == [70] * 4 + [120] * 4 + [255] + [
        71
    ] * 4 + [121] * 4 + [255]
    assert "distance ratio 0.50" in neighbours.get_title().replace("\n", " ")


def test_rows_older_than_the_figures_are_drawn(tmp_path, capsys):
    run(
        make_figures,
        ["--from", str(ROOT / "benchmarks/results/2026-11-22_fashion_cpu.json"), "--out", str(tmp_path)],
    )
    assert [path.name for path in tmp_path.iterdir()] == ["bytes.png"]
    printed = capsys.readouterr()
    assert [line.split(": left out")[0] for line in printed.err.splitlines()] == [
        f"{name}.png" for name in ("curves", "architectures", "samples", "neighbours", "confusion")
    ]
    assert (
        "| fashion | convnet_w32 | generator fp32, stage 1 | 78.37 ± 0.21 | 74.43 ± 0.31 | 10 | 0.536 |  | "
        "3 |" in printed.out
    )


def test_a_row_of_the_least_is_drawn(tmp_path, capsys):
    least = {name: fake_row()[name] for name in ("dataset", "source", "n", "mean", "accs")}
    one = fake_row(accs=(60.0,), curve_images_seen=[10, 100], curve_accs=[[20.0, 60.0]])
    assert run(make_figures, [kept(tmp_path, [least, one]), "--out", str(tmp_path / "figures")]) == [
        least,
        one,
    ]
    assert sorted(path.stem for path in (tmp_path / "figures").iterdir()) == ["bytes", "confusion", "curves"]
    assert "| digits | None | generator fp32 | 71.10 |  | None |  |  | 5 |" in capsys.readouterr().out


def test_lines_tell_rows_apart_by_what_differs():
    def labels(*changes: dict) -> list[str]:
        return sorted(line.label for line in lines_of([fake_row() | change for change in changes]))

    assert labels({}, {"checkpoint_sha256": "b", "commit": "other", "num_bytes": 9}) == [
        "generator fp32, 2 trainings"
    ]
    assert labels({}, {"recipe": "strong", "epochs": 9}) == [
        "generator fp32, recipe dim",
        "generator fp32, recipe strong",
    ]
    assert labels({}, {"trained": "stage 1"}) == ["generator fp32", "generator fp32, stage 1"]
    assert (
        labels({}, {"ipc": 1}, {"dataset": "mnist"}, {"budget": "fixed"}, {"classifier": "b"})
        == ["generator fp32"] * 5
    )
    trainings = [{"checkpoint_sha256": sha} for sha in "ab"]
    found = labels(
        *trainings, {"budget": "fixed"}, {"recipe": "strong"}
    )  # one line of the table holds both budgets of one recipe
    assert found == [
        "generator fp32, recipe dim",
        "generator fp32, recipe dim, 2 trainings",
        "generator fp32, recipe strong",
    ]
    both = ["a", "b"], {"filter": 0.5}
    assert labels({"checkpoint_sha256": both[0], "storage": ["int8", "fp16"]} | both[1]) == [
        "generator fp16/int8, mixture of 2, filter 0.5"
    ]
    sizes = [fake_row("random-real-jpeg", match_bytes=size, num_bytes=size) for size in (1000, 2000)]
    assert [line.label for line in lines_of(sizes)] == [
        "random-real-jpeg, match_bytes 1000",
        "random-real-jpeg, match_bytes 2000",
    ]
    assert {line.series for line in lines_of(sizes)} == {"random-real-jpeg"}


def test_a_row_that_stands_twice_is_used_once(tmp_path, capsys):
    few, many = fake_row("real", (80.0,)), fake_row("real", (80.0, 81.0), commit="other")
    folders = [kept(tmp_path / "a", [few, fake_row()]), f"stage 2={kept(tmp_path / 'b', [many, fake_row()])}"]
    rows = run(make_figures, folders)
    assert [row["n"] for row in rows] == [2, 5, 5]
    assert "rows that stand again: 1;" in capsys.readouterr().err
    assert [row.get("trained") for row in rows] == [None, None, "stage 2"]
    assert unique([few, many]) == unique([many, few]) == [many]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected either folders of results or --from RECORD"),
        (["{0}", "--from", "{0}"], "expected either folders of results or --from RECORD"),
        (
            ["{0}/missing"],
            "{0}/missing: expected the results.json of validate.py, found No such file or directory",
        ),
        (
            ["a={0}/missing"],
            "{0}/missing: expected the results.json of validate.py, found No such file or directory",
        ),
        (
            ["--from", "{0}/bad/results.json"],
            "results.json: expected the results.json of validate.py, found something else",
        ),
    ],
)
def test_what_is_not_a_result_is_one_line(flags, message, tmp_path, capsys):
    kept(tmp_path / "bad", [{"method": "er", "accs": [1.0]}])
    with pytest.raises(SystemExit) as stop:
        run(make_figures, [flag.format(tmp_path) for flag in flags])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message.format(tmp_path) in line
