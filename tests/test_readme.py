"""Each figure in the README's tables is that of a committed record; each file and flag it names exists."""

import json
import re
import statistics

import pytest
from conftest import ROOT
from test_flags import declared

README = (ROOT / "README.md").read_text()
MEASURED = re.compile(r"(\d+\.\d+) ± (\d+\.\d+)")
RECORD = re.compile(r"\]\((benchmarks/results/[\w.-]+\.json)\)\D*(\d+)")


def measured_lines() -> list[str]:
    return [line for line in README.splitlines() if line.startswith("|") and "±" in line]


def test_tables_equal_their_records():
    assert len(measured_lines()) >= 3
    for line in measured_lines():
        path, row = RECORD.search(line).groups()
        record = json.loads((ROOT / path).read_text())["rows"][int(row)]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert MEASURED.search(line).groups() == (f"{record['mean']:.2f}", f"{record['std']:.2f}"), line
        assert record["dataset"] in line, line
        assert record["source"] in line, line
        assert record["budget"] in cells, line
        assert str(record["ipc"]) in cells, line
        assert str(record["n"]) in cells, line
        assert len(record["accs"]) == record["n"]
        assert record["mean"] == pytest.approx(statistics.mean(record["accs"]))
        assert record["std"] == pytest.approx(statistics.stdev(record["accs"]))


def test_every_record_says_how_it_was_made():
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        record = json.loads(path.read_text())
        assert {"date", "hardware", "commands", "minutes", "rows"} <= set(record), path
        for row in record["rows"]:
            assert {"commit", "torch", "device", "accs", "mean", "std", "n"} <= set(row), path


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_flags_that_are_named_exist():
    known = {"--" + name.replace("_", "-") for script in ("gen_condense", "pool_match", "validate") for name in declared(script)}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))
    assert named - known - {"--nproc-per-node", "--no-amp", "--logdir"} == set()
