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
from figs.names import from_flags, names_of
from figs.rows import label_of, read_runs, rows_of
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
    assert [row["seeds"] for row in rows_of([new, *older])] == [[0, 3, 4], [1], [2]]


def test_a_generator_older_than_its_defaults_of_matching_has_a_row_of_its_own(runs):
    (new,) = read_runs([str(runs / "digits_20000_dim_0")])
    flags = new["flags"] | OLD | {"class_tables": "task"}
    oldest = {name: value for name, value in flags.items() if name != "distilled_share"}
    kinds = ((oldest, None), (flags, 100), (flags, None), (flags, 0), (new["flags"], 0), (new["flags"], 100))
    cases = [with_flags(new, seed, one | {"match_steps": steps}) for seed, (one, steps) in enumerate(kinds)]
    assert [row["seeds"] for row in rows_of(cases)] == [[0], [1, 5], [2, 3, 4]]


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
    assert [path.name for path in out.iterdir()] == ["continual_front.png"]
    assert np.asarray(Image.open(out / "continual_front.png")).std() > 1
    kept = json.loads(record.read_text())
    assert (kept["commands"], kept["hardware"], len(kept["rows"])) == (["a", "b"], "h", 3)
    printed = capsys.readouterr()
    assert "digits_20000_half_0: 2 of 2 tasks are done, left out" in printed.err
    table = [line for line in printed.out.splitlines() if line.startswith("| digits")]
    assert [float(line.split("|")[9].split("±")[0]) for line in table] == sorted(
        (round(row["mean"], 2) for row in rows), reverse=True
    )

    again = run(draw_continual, ["--from", str(record), "--out", str(tmp_path / "again")])
    other = tmp_path / "other.json"
    other.write_text(json.dumps(kept | {"rows": kept["rows"][1:]}))
    capsys.readouterr()
    assert run(draw_continual, ["--from", str(other), str(record)]) == kept["rows"][1:] + kept["rows"]
    both = capsys.readouterr().out
    assert both.count(f"({other}) 0 |") == both.count(f"({record}) 1 |") == 1
    assert again == json.loads(json.dumps(rows))
    assert (tmp_path / "again" / "continual_front.png").read_bytes() == (
        out / "continual_front.png"
    ).read_bytes()


NAME = {"memory": "real images", "loss": "ER", "stored": "JPEG scans q12", "passes": 1, "rehearsal": "none"}


def named(row: dict, **name) -> dict:
    """A row with these columns."""
    return row | {"name": NAME | {"details": ""} | name, "settings": {}}


def test_differences_are_of_the_same_seeds_at_the_same_budget(runs, tmp_path, capsys):
    """Means, and Student's interval: over two seeds -1 and 3 have a half-width of twice 12.706."""
    (er,) = rows_of(read_runs([str(runs / f"digits_20000_er_{seed}") for seed in (0, 1)]))

    def row(loss, accs, seeds=(0, 1, 2), budget=20000, **name):
        more = {"seeds": list(seeds[: len(accs)]), "accs": accs, "memory_bytes": budget}
        return named(er | more, loss=loss, **name)

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
    place, stored, link = "| digits | 20 kB | real images", "JPEG scans q12 | 1 | none", f"[record]({record})"
    assert lines == [
        f"{place} | a | {stored} | b | +1.00 | [-24.41, +26.41] | 1 of 2 | 2 | {link} 0, 1 |",
        f"{place} | d | {stored} | b | +0.50 | – | 2 of 2 | 2 | {link} 4, 1 |",
    ]
    with pytest.raises(SystemExit, match="2"):
        run(draw_continual, ["--from", str(record), "--against", "c"])
    line = "--against c: expected the name of a row that shares budget and seeds with another, found "
    assert line + "a, b, c, d, e" in capsys.readouterr().err
    whole = "real images, loss of b, JPEG scans q50, passes 1, rehearsal none"
    record.write_text(json.dumps({"rows": [*rows, row("b", [50.0, 52.0], stored="JPEG scans q50")]}))
    with pytest.raises(SystemExit, match="2"):
        run(draw_continual, ["--from", str(record), "--against", "b"])
    error = capsys.readouterr().err
    assert "--against b: expected one such row of digits at 20 kB, found real images, loss of b, " in error
    assert whole in error
    run(draw_continual, ["--from", str(record), "--against", whole])
    assert f"| {whole} | +1.00 | [-24.41, +26.41] |" not in capsys.readouterr().out  # of other seeds
    other = tmp_path / "other.json"
    record.write_text(json.dumps({"rows": rows[:1]}))
    other.write_text(json.dumps({"rows": [rows[3], rows[1]]}))
    run(draw_continual, ["--from", str(record), str(other), "--against", "b"])
    assert f"| 2 | [record]({record}) 0; [record]({other}) 1 |" in capsys.readouterr().out


@pytest.fixture
def front(runs) -> list[dict]:
    """Rows of two memories at two budgets, in several qualities and with several seeds, and one without."""
    (er,) = rows_of(read_runs([str(runs / f"digits_20000_er_{seed}") for seed in (0, 1)]))

    def row(loss, mean, budget, n=3, **name):
        return named(er | {"mean": mean, "std": 1.0, "n": n, "memory_bytes": budget}, loss=loss, **name)

    return [
        row("ER", 50.0, 50000),
        row("ER", 62.0, 1500000, n=1, stored="JPEG scans q50"),
        row("ER", 61.0, 1500000, stored="JPEG scans q50"),
        row("ER", 60.0, 1500000, stored="JPEG scans q25"),
        row("CLS-ER", 64.0, 1500000),
        row("–", 70.0, None, memory="all tasks at once"),
        row("distillation", 9.0, 50000, memory="generator"),
    ]


def test_the_front_has_a_line_for_each_memory_and_a_column_for_each_budget(front, tmp_path, capsys):
    """The best quality counts, of two rows of one name that with more seeds; networks are not mixed."""
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"rows": front}))
    run(draw_continual, ["--from", str(record), "--front"])
    columns, link = "JPEG scans | 1 | none", f"[record]({record})"
    assert capsys.readouterr().out.splitlines() == [
        "| data | memory | replay loss | stored as | passes | rehearsal | 50 kB | 1.5 MB | record, rows |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| digits | real images | CLS-ER | {columns} | – | 64.00 ± 1.00 (3) | {link} 4 |",
        f"| digits | real images | ER | {columns} | 50.00 ± 1.00 (3) | 61.00 ± 1.00 (3) | {link} 0, 2 |",
        f"| digits | generator | distillation | {columns} | 9.00 ± 1.00 (3) | – | {link} 6 |",
    ]
    run(draw_continual, ["--from", str(record), "--front", "--budgets", "1500000"])
    chosen = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[2] for line in chosen] == ["replay loss", "---", "CLS-ER", "ER"]
    assert chosen[-1].endswith(f"| 61.00 ± 1.00 (3) | {link} 2 |")
    for rows, message in (
        ([*front, front[0] | {"networks": ["mlp_w400"]}], "expected rows of one setting of digits"),
        (front[5:6], "found none"),
    ):
        record.write_text(json.dumps({"rows": rows}))
        with pytest.raises(SystemExit, match="2"):
            run(draw_continual, ["--from", str(record), "--front"])
        assert message in capsys.readouterr().err


def test_the_figure_has_a_panel_for_each_set_and_a_curve_for_each_memory(front, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(draw_continual, "save", lambda figure, path: drawn.append(figure))
    rows = [*front, *(row | {"data": "mnist"} for row in front[:1])]
    rows += [named(front[4] | {"mean": 1.0}, loss=loss) for loss in ("er-smooth", "GDumb", "DER++")]
    draw_continual.draw_front(rows, None)
    digits, mnist = drawn[0].axes
    assert [ax.get_title() for ax in (digits, mnist)] == ["digits", "MNIST"]
    curves = {bars.get_label(): bars.lines[0].get_xydata().tolist() for bars in digits.containers}
    assert curves == {
        "er-smooth": [[1500000, 1.0]],
        "CLS-ER": [[1500000, 64.0]],
        "ER": [[50000, 50.0], [1500000, 61.0]],
        "generator": [[50000, 9.0]],
        "DER++": [[1500000, 1.0]],
    }
    assert capsys.readouterr().err == "left out of the figure: GDumb; all tasks at once\n"
    assert [bars.get_label() for bars in mnist.containers] == ["ER"]
    draw_continual.draw_front(front, None)
    (digits,) = drawn[1].axes
    (level,) = (line for line in digits.lines if line.get_label() == "all tasks at once")
    assert set(level.get_ydata()) == {70.0}
    assert [text.get_text() for text in digits.texts] == ["9 ↓"]
    assert 9 < digits.get_ylim()[0] < 49
    assert [text.get_text() for text in digits.get_xticklabels()] == ["50 kB", "1.5 MB"]


FLAGS = {"codec": "jpeg-scan", "quality": 12, "rehearse_steps": 300, "rehearse_decay": "linear", "epochs": 1}


@pytest.mark.parametrize(
    ("method", "flags", "cells", "curve"),
    [
        ("er-ace", FLAGS, "real images | ER-ACE | JPEG scans q12 | 1 | 300 steps, falling rate", "ER-ACE"),
        ("er", {}, "real images | ER | raw | 5 | none", "ER, 5 passes"),
        ("er", {"track": "online"}, "real images | ER | raw | 1 | none", "ER"),
        (
            "condensed",
            {
                "fill_real": True,
                "replay_loss": "cls-er",
                "condense_match": "dist",
                "codec": "jpeg",
                "epochs": 1,
            },
            "condensed images (energy distance) | CLS-ER | JPEG q75 | 1 | none",
            "condensed images",
        ),
        (
            "condensed",
            {"retrain": True, "epochs": 3},
            "condensed images, no real ones (mean features) | new networks | raw | 3 | none",
            "condensed images, no real ones, new networks, 3 passes",
        ),
        (
            "condensed",
            {"condense_lr": 1e-9, "fill_real": True, "epochs": 1},
            "real images that condensing starts from | ER | raw | 1 | none",
            "real images that condensing starts from",
        ),
        ("dim", {"epochs": 1}, "generator | distillation | int8 | 1 | none", "generator"),
        ("joint", {"epochs": 1}, "all tasks at once | – | – | 1 | none", "all tasks at once"),
        ("er-smooth", {"epochs": 1}, "real images | er-smooth | raw | 1 | none", "er-smooth"),
    ],
)
def test_a_run_is_named_by_its_flags(method, flags, cells, curve):
    name = from_flags(method, flags, {"storage": "int8"} if method == "dim" else None)
    assert (" | ".join(name.cells()), name.curve) == (cells, curve)


@pytest.mark.parametrize(
    ("method", "label", "cells"),
    [
        (
            "condensed",
            "condensed-dist-fill-cls_scan50_rd",
            "condensed images (energy distance) | CLS-ER | JPEG scans q50 | 1 | 300 steps, falling rate",
        ),
        (
            "condensed",
            "condensed-fill-ace_scan12_3_rd",
            "condensed images (mean features) | ER-ACE | JPEG scans q12 | 3 | 300 steps, falling rate",
        ),
        (
            "condensed",
            "condensed-dist-fill-ace-1000_scan25_rd",
            "condensed images (energy distance, 1,000 condensing steps) | ER-ACE | JPEG scans q25 | 1 | "
            "300 steps, falling rate",
        ),
        (
            "condensed",
            "condensed-start-fill-cls_scan50_rd",
            "real images that condensing starts from | CLS-ER | JPEG scans q50 | 1 | 300 steps, falling rate",
        ),
        (
            "condensed",
            "condensed_jpeg50_retrain",
            "condensed images, no real ones (mean features) | new networks | JPEG q50 | 1 | none",
        ),
        ("er-ace", "er-ace_jpeg50_r1500", "real images | ER-ACE | JPEG q50 | 1 | 1500 steps"),
        ("der++", "der++_4", "real images | DER++ | raw | 4 | none"),
        ("er", "er_webp_r", "real images | ER | WebP | 1 | 300 steps"),
        ("er", "er_task", "real images (chosen at the end of a task) | ER | raw | 1 | none"),
        (
            "dim",
            "dim-task-3000_rd",
            "generator (with tables of its task's classes, 3,000 GAN steps) | distillation | int8 | 1 | 300 "
            "steps, falling rate",
        ),
        ("dim", "my-own_r", "generator (my-own_r) | distillation | int8 | 1 | none"),
        ("dim", "dim_cls-er", "generator | CLS-ER | int8 | 1 | none"),
        (
            "dim",
            "carried",
            "generator (one, trained on the samples of its predecessor) | distillation | fp32 | 1 | none",
        ),
        ("er", "My own 0.5!", "real images (My own 0.5!) | ER | raw | 1 | none"),
    ],
)
def test_labels_of_older_records_are_read(method, label, cells):
    generator = {"storage": "int8"} if method == "dim" else None
    (name,) = names_of([{"method": method, "label": label, "generator": generator}])
    assert " | ".join(name.cells()) == cells


def test_settings_in_which_rows_of_one_name_differ_are_told(front):
    rows = [
        named(front[0]) | {"settings": settings} for settings in ({"lr": 0.1}, {"lr": 0.1, "smooth_by": 2})
    ]
    assert [name.details for name in names_of(rows)] == ["", "smooth by 2"]
    assert [name.details for name in names_of([rows[0], rows[1] | {"memory_bytes": 9}])] == ["", ""]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.stem
)
def test_every_committed_record_is_shown_with_plain_names(path, capsys):
    record = json.loads(path.read_text())
    if record.get("kind") == "continual":
        rows = run(draw_continual, ["--from", str(path)])
        lines = capsys.readouterr().out.splitlines()[2:]
        assert len(lines) == len(rows)
        assert not [
            word for line in lines for word in ("_", "condensed-", "dim") if word in line.split("[record]")[0]
        ]
        names = [
            (row["data"], row["memory_bytes"], str(name))
            for row, name in zip(rows, names_of(rows), strict=True)
        ]
        if "nearness" not in path.stem:
            assert len(set(names)) == len(names), "two rows of one name"
    elif "kind" not in record:
        run(make_figures, ["--from", str(path)])
        assert capsys.readouterr().out.startswith("| data | classifier |")


def test_the_figure_of_the_readme_is_that_of_its_records(tmp_path):
    records = sorted(map(str, (ROOT / "benchmarks" / "results").glob("2026-11-27_split_*_[hs]*.json")))
    records = [path for path in records if path.endswith(("_h200.json", "_scan.json"))]
    assert len(records) == 6
    run(draw_continual, ["--from", *records, "--out", str(tmp_path)])
    ours, committed = (
        np.asarray(Image.open(folder / "continual_front.png").convert("L"), float)
        for folder in (tmp_path, ROOT / "figs")
    )
    assert ours.shape == pytest.approx(committed.shape, rel=0.02)  # fonts may differ
    assert abs(ours.mean() - committed.mean()) < 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected either the folders of runs or --from RECORD"),
        (["{0}/nothing"], "no finished run of continual.py there"),
        (["{0}/bad"], "results.json: expected the results of continual.py"),
        (["--from", "{0}/bad/results.json"], "expected a record of continual runs"),
        (["--from", "{0}/missing"], "expected a record of continual runs"),
        (
            ["--from", "{0}/bad/results.json", "--against", "er", "--front"],
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


DAMAGES = [{"a": 1}, [], {"finished": False, "num_tasks": 2}, None]


@pytest.mark.parametrize("other", DAMAGES, ids=str)
def test_another_file_is_refused_by_its_own_path(other, runs, tmp_path):
    folder = tmp_path / "digits_20000_er_1"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(other))
    with pytest.raises(UsageError, match=f"{folder}/results.json: expected the results of continual.py"):
        read_runs([str(runs / "digits_20000_er_0"), str(folder)])


def test_a_seed_that_stands_twice_in_a_row_is_refused(runs, tmp_path):
    shutil.copytree(runs / "digits_20000_er_0", tmp_path / "digits_9_er_0")
    with pytest.raises(UsageError, match="seed 0 stands more than once in its row, expected each run once"):
        rows_of(read_runs([str(runs / "digits_20000_er_0"), str(tmp_path / "digits_9_er_0")]))


def test_labels_are_names_without_set_bytes_and_seed():
    def label(folder, seed=0):
        return label_of({"data": "mnist", "seed": seed, "folder": Path(folder)})

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
    assert names == ["bytes", "samples"]
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
    assert [line.split(":")[0] for line in printed.err.splitlines()] == ["samples.png"]
    assert (again / "bytes.png").read_bytes() == (out / "bytes.png").read_bytes()


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures that would be written."""
    found = []
    monkeypatch.setattr(make_figures, "save", lambda figure, path: found.append(figure))
    return found


def ends(bars) -> list[tuple[float, float]]:
    """The lower and the upper end of each error bar."""
    return [tuple(segment[:, 1]) for segment in bars.lines[2][0].get_segments()]


def test_bytes_show_the_rows_numbers(figures):
    lines = lines_of([row for row in full_rows() if row["classifier"] == "convnet"])
    assert make_figures.draw_bytes(lines, None)
    (points, *_) = figures[0].axes
    bars = {bars.get_label(): bars for bars in points.containers}
    assert list(bars) == [
        "file mine.pt",
        "generator fp16, 3 trainings, stream",
        "generator int8, soft labels at 4, stream",
        "random-real-jpeg",
        "generator fp16, 3 trainings, fixed",
        "generator int8, soft labels at 4, fixed",
    ]
    assert [one.lines[0].get_linestyle() for one in bars.values()] == ["-"] * 4 + ["--"] * 2
    three = bars["generator fp16, 3 trainings, stream"]
    assert ends(three)[0] == pytest.approx((73.5 - 13**0.5, 73.5 + 13**0.5))  # of 70.5, 72.5 and 77.5
    assert three.lines[0].get_xydata().tolist() == [[2000, 73.5]]
    (level,) = (line for line in points.lines if line.get_label() == "real")
    assert set(level.get_ydata()) == {90.5}


def test_the_readme_has_a_line_for_each_source(tmp_path, capsys):
    sources = {
        "random-real": 307200,
        "condensed": 307200,
        "condensed-jpeg-scan": 283526,
        "random-real-jpeg-scan": 282874,
        "real": 153600000,
    }
    rows = [fake_row(name, (50.0, 52.0), num_bytes=size) for name, size in sources.items()]
    for path, acc in (("weights/x_w32.safetensors", 30.0), ("results/x_match/last.pth", 40.0)):
        rows.append(
            fake_row(accs=(acc, acc + 2), num_bytes=283526, path=f"/match/{path}", checkpoint_sha256=path)
        )
    rows = [row | {"dataset": data} for row in rows for data in ("mnist", "cifar10")]
    rows.append(rows[0] | {"split": "val", "mean": 99.0, "val_size": 5000})
    run(make_figures, [kept(tmp_path, rows), "--readme"])
    heads, _, *lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert heads[:3] == ["classifier trained on", "MB stored (CIFAR-10 / Fashion / MNIST)", "CIFAR-10"]
    assert len(lines) == 7
    assert lines[0] == [
        "10 random real images a class",
        "0.31 / – / 0.31",
        "51.00 ± 1.41",
        "–",
        "51.00 ± 1.41",
    ]
    assert [(line[0], line[2]) for line in lines[3:5]] == [
        ("generator, GAN alone (stage 1)", "31.00 ± 1.41"),
        ("generator, matched (stages 1 and 2)", "41.00 ± 1.41"),
    ]
    assert lines[6][:2] == ["the whole training set, for as many steps", "153.60 / – / 153.60"]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_stand_where_their_class_is(channels, figures):
    rows = [
        fake_row(samples=samples(channels)),
        fake_row("random-real", samples=samples(channels, real=None)),
        fake_row("real", samples=samples()),
    ]
    lines = lines_of(rows)
    assert make_figures.draw_samples(lines, None)
    real, generator, nearest, chosen = figures[0].axes
    titles = [ax.get_title().replace("\n", " ") for ax in (real, generator, nearest, chosen)]
    near = "real, nearest to generator fp32, distance ratio 0.5"
    assert titles == ["digits, real", "generator fp32", near, "random-real"]
    assert [text.get_text() for text in real.get_yticklabels()] == list("abcdefghij")
    for ax, first in ((real, 170), (generator, 70), (nearest, 120)):
        assert ax.images[0].get_array()[4 * 7, :, 0].tolist() == [first] * 4 + [first + 1] * 4


def test_rows_older_than_the_figures_are_drawn(tmp_path, capsys):
    run(
        make_figures,
        ["--from", str(ROOT / "benchmarks/results/2026-11-22_fashion_cpu.json"), "--out", str(tmp_path)],
    )
    assert [path.name for path in tmp_path.iterdir()] == ["bytes.png"]
    printed = capsys.readouterr()
    assert [line.split(": left out")[0] for line in printed.err.splitlines()] == ["samples.png"]
    assert (
        "| fashion | convnet_w32 | generator fp32, stage 1 | 78.37 ± 0.21 | 74.43 ± 0.31 | 10 | 0.536 | – | "
        "3 |" in printed.out
    )


def test_a_row_of_the_least_is_drawn(tmp_path, capsys):
    least = {name: fake_row()[name] for name in ("dataset", "source", "n", "mean", "accs")}
    one = fake_row(accs=(60.0,), curve_images_seen=[10, 100], curve_accs=[[20.0, 60.0]])
    assert run(make_figures, [kept(tmp_path, [least, one]), "--out", str(tmp_path / "figures")]) == [
        least,
        one,
    ]
    assert [path.stem for path in (tmp_path / "figures").iterdir()] == ["bytes"]
    assert "| digits | None | generator fp32 | 71.10 | – | None | – | – | 5 |" in capsys.readouterr().out


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
    assert labels({"filter": 0.5}) == ["generator fp32, filter 0.5"]
    sizes = [fake_row("random-real-jpeg", match_bytes=size, num_bytes=size) for size in (1000, 2000)]
    assert [line.label for line in lines_of(sizes)] == [
        "random-real-jpeg, match_bytes 1000",
        "random-real-jpeg, match_bytes 2000",
    ]


def test_sizes_of_one_source_are_one_curve_over_bytes(figures):
    sizes = [fake_row("random-real-jpeg", match_bytes=size, num_bytes=size) for size in (2000, 1000)]
    make_figures.draw_bytes(lines_of(sizes), None)
    (curve,) = figures[0].axes[0].containers
    assert curve.get_label() == "random-real-jpeg"
    assert curve.lines[0].get_xdata().tolist() == [1000, 2000]


def test_a_row_that_stands_twice_is_used_once(tmp_path):
    few, many = fake_row("real", (80.0,)), fake_row("real", (80.0, 81.0), commit="other")
    folders = [kept(tmp_path / "a", [few, fake_row()]), kept(tmp_path / "b", [many, fake_row()])]
    rows = run(make_figures, folders)
    assert [row["n"] for row in rows] == [2, 5]
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
