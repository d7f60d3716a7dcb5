"""Each figure in the README's tables is that of a committed record; each file and flag it names exists."""

import json
import re
import statistics

import pytest
from conftest import ROOT, SCRIPTS, TOOLS
from test_flags import declared

from benchmarks import speed
from figs import make_figures

README = (ROOT / "README.md").read_text()
MEASURED = re.compile(r"(\d+\.\d+) ± (\d+\.\d+)")
RECORD = re.compile(r"\]\((benchmarks/results/[\w.-]+\.json)\)(.*)")


def tables() -> list[tuple[dict[str, str], str]]:
    """Each measured line of a table as {column: cell}, and the line."""
    lines, heads = [], []
    for line in README.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        heads = cells if cells and not heads else heads if cells else []
        if cells and "±" in line:
            lines.append((dict(zip(heads, cells, strict=True)), line))
    return lines


def test_tables_equal_their_records():
    measured = [(cells, line) for cells, line in tables() if ("stream" in cells or "fixed" in cells) and "stored MB" not in cells]
    assert len(measured) >= 3
    for cells, line in measured:
        path, rows = RECORD.search(line).groups()
        record = json.loads((ROOT / path).read_text())
        budgets = [name for name in ("stream", "fixed") if MEASURED.search(cells.get(name, ""))]
        numbers = [int(row) for row in re.findall(r"\d+", rows)]
        for budget, row in zip(budgets, (record["rows"][number] for number in numbers), strict=True):
            assert cells[budget] == f"{row['mean']:.2f} ± {row['std']:.2f}", line
            assert (row["budget"], row["dataset"]) == (budget, cells["data"]), line
            assert f"{row['source']}, {row.get('trained')}".rstrip(", ").startswith(cells["images"]), line
            assert (cells["ipc"], cells["n"]) == (str(row["ipc"]), str(row["n"])), line
            assert len(row["accs"]) == row["n"]
            assert row["mean"] == pytest.approx(statistics.mean(row["accs"]))
            assert row["std"] == pytest.approx(statistics.stdev(row["accs"]))


def test_tables_of_every_source_are_what_their_records_print(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    lines = [line for cells, line in tables() if "stored MB" in cells]
    paths = {RECORD.search(line)[1] for line in lines}
    assert len(paths) == 4
    printed = []
    for path in sorted(paths):
        make_figures.main(make_figures.parse_args(["--from", path]))
        printed += capsys.readouterr().out.splitlines()
        for row in json.loads((ROOT / path).read_text())["rows"]:
            assert row["split"] == "test"
            assert len(row["accs"]) == row["n"]
            assert row["mean"] == pytest.approx(statistics.mean(row["accs"]))
            assert row["std"] is None or row["std"] == pytest.approx(statistics.stdev(row["accs"]))
    for line in lines:
        assert line in printed


def plus_minus(mean: float | None, std: float | None) -> str:
    return "" if mean is None else f"{mean:.2f}" + ("" if std is None else f" ± {std:.2f}")


def test_continual_tables_equal_their_records():
    lines = [line for line in README.splitlines() if line.startswith("|") and "class-il" not in line and "split_" in line]
    assert len(lines) >= 10
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        path, number = RECORD.search(line).groups()
        row = json.loads((ROOT / path).read_text())["rows"][int(re.findall(r"\d+", number)[0])]
        assert cells[:2] == [row["data"], row["label"]], line
        assert cells[2:4] == [f"{row['num_bytes']['total']:,.0f}", f"{row['buffer_images']:,.0f}"], line
        assert cells[4] == plus_minus(row["mean"], row["std"]), line
        assert cells[5] == plus_minus(row["task_il_mean"], row["task_il_std"]), line
        assert cells[6] == plus_minus(row["forgetting_mean"], row["forgetting_std"]), line
        assert cells[8] == str(row["n"]) == str(len(row["accs"])), line
        assert row["mean"] == pytest.approx(statistics.mean(row["accs"]))
        assert row["std"] is None or row["std"] == pytest.approx(statistics.stdev(row["accs"]))
        assert row["memory_bytes"] is None or row["num_bytes"]["total"] <= row["memory_bytes"]
        assert row["split"] == "test"


def test_tables_beside_avalanche_equal_their_records():
    lines = [(cells, line) for cells, line in tables() if "avalanche-lib 0.6.0" in cells]
    assert len(lines) == 12
    for cells, line in lines:
        path, number = RECORD.search(line).groups()
        row = json.loads((ROOT / path).read_text())["rows"][int(number.strip(" |"))]
        assert (cells["data"], cells["method"], cells["n"]) == (row["settings"]["data"], row["method"], str(row["n"]))
        assert cells["ours"] == plus_minus(row["mean"], row["std"])
        assert cells["avalanche-lib 0.6.0"] == plus_minus(row["avalanche_mean"], row["avalanche_std"])
        assert cells["difference"] == f"{row['mean'] - row['avalanche_mean']:+.2f}"
        assert row["mean"] == pytest.approx(statistics.mean(row["accs"]))
        assert row["avalanche_mean"] == pytest.approx(statistics.mean(row["avalanche_accs"]))
        assert abs(row["mean"] - row["avalanche_mean"]) < 2


def test_every_record_says_how_it_was_made():
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        record = json.loads(path.read_text())
        assert {"date", "hardware", "commands", "minutes", "rows"} <= set(record), path
        measured = {"seconds", "ratio", "pairs", "memory"} if record.get("kind") == "speed" else {"accs", "mean", "std", "n"}
        for row in record["rows"]:
            assert {"commit", "torch", "device"} | measured <= set(row), path


def test_rows_over_trainings_equal_the_rows_they_name():
    records = [json.loads(path.read_text())["rows"] for path in (ROOT / "benchmarks" / "results").glob("*.json")]
    summaries = [(row, [rows[i] for i in row["of_rows"]]) for rows in records for row in rows if "of_rows" in row]
    assert summaries
    for row, parts in summaries:
        assert row["accs"] == [part["mean"] for part in parts]
        assert len({part["checkpoint_sha256"] for part in parts}) == row["n"] == 3
        for name in ("dataset", "split", "ipc", "epochs", "generator_bytes"):
            assert {part[name] for part in parts} == {row[name]}
        assert (row["mean"], row["std"]) == (pytest.approx(statistics.mean(row["accs"])), pytest.approx(statistics.stdev(row["accs"])))


def test_speed_tables_equal_their_records(capsys):
    paths = re.findall(r"speed\.py --table (benchmarks/results/[\w.-]+\.json)", README)
    assert paths
    for path in paths:
        speed.main(speed.parse_args(["--table", str(ROOT / path)]))
        for line in capsys.readouterr().out.splitlines():
            assert line in README, line


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_flags_that_are_named_exist():
    known = {"--" + name.replace("_", "-") for script in SCRIPTS | TOOLS for name in declared(script)}
    known |= {"--no-" + name.removeprefix("--") for name in known}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))
    assert named - known - {"--nproc-per-node", "--standalone", "--logdir"} == set()
