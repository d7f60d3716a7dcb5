"""Each measured figure in README.md and docs/ is that of a committed record; each link and flag there exists.

A figure in running text carries a comment right after it, which is not shown: 7.6<!-- 2026-11-22_cifar10_cpu:
1.mean - 0.mean -->. It is one of
    RECORD: TERM, or TERM - TERM, or TERM / TERM, of benchmarks/results/RECORD.json
    docs/LOG.md DATE, where an entry of that date has the very same figure
    published: arXiv:NUMBER
A TERM is a power of ten (1e6), a field of the record (minutes.stage 1), a field of a row
(12.generator.width), a row (12: its mean and deviation) or several (3 19 20: mean and deviation of their
means). A list stands for its mean and deviation; .0 is its first value. Settings and names stand in
backticks, and a published figure may be the text of a link to arxiv.org; neither needs a comment.
"""

import json
import os
import re
import shlex
import statistics
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, SCRIPTS, TOOLS
from test_flags import declared

from benchmarks import compare, speed
from figs import draw_continual, make_figures
from runs import run

RECORDS = ROOT / "benchmarks" / "results"
LOG = (ROOT / "docs" / "LOG.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted(set((ROOT / "docs").glob("*.md")) - {ROOT / "docs" / "LOG.md"})]
TEXTS = {path: path.read_text() for path in DOCUMENTS}
README = TEXTS[ROOT / "README.md"]

MEASURED = re.compile(r"(\d+\.\d+) ± (\d+\.\d+)")
RECORD = re.compile(r"\]\(((?:\.\./)?benchmarks/results/[\w.-]+\.json)\)(.*)")
ANNOTATED = re.compile(
    r"(?P<figure>[+-]?\d[\d,]*(?:\.\d+)?(?: ± \d+\.\d+)?)<!--\s*(?P<note>.*?)\s*-->", re.DOTALL
)
FROM_RECORD = re.compile(r"(\d{4}-\d\d-\d\d_\w+): (.+)")
FROM_LOG = re.compile(r"docs/LOG\.md (\d{4}-\d\d-\d\d)")
PUBLISHED = re.compile(r"published: arXiv:\d{4}\.\d{5}")
COMMANDS = re.compile(r"<!-- commands of (.+?) -->\n```\n(.*?)```", re.DOTALL)
LINK = re.compile(r"!?\[([^\]]*)\]\(([^)]*)\)")
VERSION = re.compile(r"\b(?:Python|torch|version) \d+(?:\.\d+)+")
DECIMAL = re.compile(r"\d+\.\d+")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
REMOVED = re.compile(r"^## What was removed\n.*?(?=^#|\Z)", re.DOTALL | re.MULTILINE)  # from stage 4
# What a table is, by a column that only it has; each has a test below.
KINDS = {
    "classifier trained on": "README",
    "stored MB": "every source",
    "class-il": "continual",
    "generator minus": "paired differences",
    "minus": "differences",
    "600 kB": "front",
    "stream": "stage 3",
    "fixed": "stage 3",
    "break-even, cold / warm": "speed",
}


def tables() -> list[tuple[str | None, dict[str, str], str, Path]]:
    """Each row of each table: what the table is, {column: cell}, the line, and its document."""
    rows = []
    for path, text in TEXTS.items():
        heads = []
        for line in text.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
            if not cells:
                heads = []
            elif not heads:
                heads = cells
            elif set(line) - set("|- "):
                kind = next((kind for column, kind in KINDS.items() if column in heads), None)
                rows.append((kind, dict(zip(heads, cells, strict=True)), line, path))
    return rows


def of_kind(kind: str) -> list[tuple[dict[str, str], str, Path]]:
    return [(cells, line, path) for found, cells, line, path in tables() if found == kind]


def record_of(line: str, document: Path) -> tuple[dict, list[int]]:
    """The record that a row links, and the numbers of its rows there."""
    target, numbers = RECORD.search(line).groups()
    return json.loads((document.parent / target).read_text()), [
        int(number) for number in re.findall(r"\d+", numbers)
    ]


def plus_minus(mean: float | None, std: float | None) -> str:
    return "" if mean is None else f"{mean:.2f}" + ("" if std is None else f" ± {std:.2f}")


def check_statistics(row: dict) -> None:
    assert len(row["accs"]) == row["n"]
    assert row["mean"] == pytest.approx(statistics.mean(row["accs"]))
    assert row["std"] is None or row["std"] == pytest.approx(statistics.stdev(row["accs"]))


# tables


def test_every_measured_row_is_of_a_table_that_is_tested():
    for kind, _, line, path in tables():
        assert kind or not (RECORD.search(line) or "±" in ANNOTATED.sub("", line)), f"{path.name}: {line}"


def test_tables_equal_their_records():
    lines = of_kind("stage 3")
    assert len(lines) >= 30
    for cells, line, path in lines:
        record, numbers = record_of(line, path)
        budgets = [name for name in ("stream", "fixed") if MEASURED.search(cells.get(name, ""))]
        for budget, row in zip(budgets, (record["rows"][number] for number in numbers), strict=True):
            assert cells[budget] == plus_minus(row["mean"], row["std"]), line
            assert (row["budget"], row["dataset"]) == (budget, cells["data"]), line
            assert f"{row['source']}, {row.get('trained')}".rstrip(", ").startswith(cells["images"]), line
            assert (cells["ipc"], cells["n"]) == (str(row["ipc"]), str(row["n"])), line
            check_statistics(row)


def test_tables_of_every_source_are_what_their_records_print(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    lines = [line.replace("](../", "](") for _, line, _ in of_kind("every source")]
    paths = {RECORD.search(line)[1] for line in lines}
    assert len(paths) == 1
    assert len(lines) == 12
    printed = []
    for path in sorted(paths):
        make_figures.main(make_figures.parse_args(["--from", path]))
        printed += capsys.readouterr().out.splitlines()
        for row in json.loads((ROOT / path).read_text())["rows"]:
            assert row["split"] == "test"
            check_statistics(row)
    for line in lines:
        assert line in printed


def test_paired_differences_equal_their_records():
    lines = of_kind("paired differences")
    assert len(lines) == 8
    for cells, line, path in lines:
        record, (*generators, other) = record_of(line, path)
        rows = record["rows"]
        assert {rows[i]["source"] for i in generators} == {"generator"}
        assert (cells["data"], cells["generator minus"]) == (rows[other]["dataset"], rows[other]["source"])
        found = compare.compare([rows[i] for i in generators], rows[other])
        assert cells["difference, points"] == f"{found['difference']:+.2f}", line
        assert cells["95 % interval"] == f"[{found['low']:+.2f}, {found['high']:+.2f}]", line


@pytest.mark.parametrize(("kind", "least"), [("continual", 0), ("differences", 3)])
def test_tables_of_continual_runs_are_what_their_records_print(kind, least, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    lines = [(cells, line.replace("](../", "](")) for cells, line, _ in of_kind(kind)]
    assert len(lines) >= least
    for cells, line in lines:
        flags = {
            "continual": [],
            "differences": ["--against", cells.get("minus")],
        }
        paths = re.findall(r"\]\(([^)]*)\)", line)
        draw_continual.main(draw_continual.parse_args(["--from", *paths, *flags[kind]]))
        assert line in capsys.readouterr().out.splitlines()
        check_records(paths)


def check_records(paths: list[str]) -> None:
    """The rows of these records are of the test set, within their budgets, and their statistics agree."""
    for row in (row for path in paths for row in json.loads((ROOT / path).read_text())["rows"]):
        assert row["split"] == "test"
        assert row["memory_bytes"] is None or row["num_bytes"]["total"] <= row["memory_bytes"]
        check_statistics(row)


def test_fronts_are_what_their_records_print(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    lines = [(cells, line.replace("](../", "](")) for cells, line, _ in of_kind("front")]
    assert len({cells["data"] for cells, _ in lines}) == 3
    units = {"kB": 1e3, "MB": 1e6}
    for data in {cells["data"] for cells, _ in lines}:
        own = [(cells, line) for cells, line in lines if cells["data"] == data]
        heads = [column.split() for cells, _ in own[:1] for column in cells if column[-2:] in units]
        budgets = [str(round(float(number) * units[unit])) for number, unit in heads]
        paths = sorted({path for _, line in own for path in re.findall(r"\]\(([^)]*)\)", line)})
        flags = ["--from", *paths, "--front", "--budgets", *budgets]
        draw_continual.main(draw_continual.parse_args(flags))
        printed = capsys.readouterr().out.splitlines()
        assert [line for _, line in own if line not in printed] == []
        check_records(paths)


def test_the_table_of_the_readme_is_what_its_record_prints(capsys):
    lines = [line for _, line, _ in of_kind("README")]
    records = sorted(RECORDS.glob("*_readme.json"))
    if not records:
        assert not lines
        return
    make_figures.main(make_figures.parse_args(["--from", str(records[-1]), "--readme"]))
    assert lines == capsys.readouterr().out.splitlines()[2:]
    assert not [line for line in lines if "| – |" in line]
    for row in json.loads(records[-1].read_text())["rows"]:
        assert (row["split"], row["n"], row["classifier"], row["epochs"]) == ("test", 5, "convnet_w32", 200)
        assert (row["ipc"], row["budget"]) == (10, "stream")
        check_statistics(row)


def test_speed_tables_equal_their_records(capsys):
    printed = []
    for text in TEXTS.values():
        shown = ANNOTATED.sub(r"\g<figure>", text)
        for path in re.findall(r"speed\.py --table (benchmarks/results/[\w.-]+\.json)", text):
            speed.main(speed.parse_args(["--table", str(ROOT / path)]))
            lines = capsys.readouterr().out.splitlines()
            assert [line for line in lines if line not in shown] == [], path
            printed += lines
    lines = [line for _, line, _ in of_kind("speed")]
    assert len(lines) >= 8
    for line in lines:
        assert line in printed


# figures in running text


def value_of(record: dict, term: str) -> tuple[float, float | None]:
    """Mean and deviation of a TERM; the deviation is None where there is none."""
    if re.fullmatch(r"\de\d", term):
        return float(term), None
    head, *fields = term.split(".")
    if re.fullmatch(r"\d+(?: \d+)+", head) and not fields:
        value = [record["rows"][int(number)]["mean"] for number in head.split()]
    elif head.isdecimal() and not fields:
        row = record["rows"][int(head)]
        return row["mean"], row["std"]
    else:
        value = record["rows"][int(head)] if head.isdecimal() else record[head]
        for field in fields:
            value = value[int(field)] if isinstance(value, list) else value[field]
    return (statistics.mean(value), statistics.stdev(value)) if isinstance(value, list) else (value, None)


def as_written(figure: str, record: dict, expression: str) -> str:
    """The value of an expression with as many decimals as the figure has."""
    first, *rest = re.split(r" ([-/]) ", expression)
    mean, std = value_of(record, first)
    if rest:
        sign, second = rest
        other, _ = value_of(record, second)
        mean, std = (mean - other if sign == "-" else mean / other), None
    parts = figure.split(" ± ")
    decimals = [len(part.partition(".")[2]) for part in parts]
    written = f"{mean:{'+' if figure[0] == '+' else ''}{',' if ',' in figure else ''}.{decimals[0]}f}"
    return written if len(parts) == 1 else f"{written} ± {std:.{decimals[1]}f}"


def check_figure(figure: str, note: str) -> None:
    """Raises AssertionError where a figure's comment does not bear it out."""
    if found := FROM_RECORD.fullmatch(note):
        record = json.loads((RECORDS / f"{found[1]}.json").read_text())
        assert figure == as_written(figure, record, found[2]), note
    elif found := FROM_LOG.fullmatch(note):
        entries = [
            entry for entry in re.split(r"^## ", LOG, flags=re.MULTILINE) if entry.startswith(found[1])
        ]
        assert any(re.search(rf"(?<![\d.,]){re.escape(figure)}(?!\d|\.\d)", entry) for entry in entries), (
            f"{figure}: not in {note}"
        )
    else:
        assert PUBLISHED.fullmatch(note), f"{figure}: {note}"


def bare_decimals(text: str) -> list[str]:
    """The decimal figures of running text that have no comment: outside tables, headings, code, versions and
    links to arXiv."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = "\n".join(line for line in text.splitlines() if not line.startswith(("|", "#")))
    text = re.sub(r"`[^`]+`", "", ANNOTATED.sub("", text))
    text = LINK.sub(lambda link: "" if "arxiv.org" in link[2] else link[1], text)
    return DECIMAL.findall(VERSION.sub("", text))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_figures_equal_their_records(path):
    found = list(ANNOTATED.finditer(TEXTS[path]))
    for match in found:
        check_figure(match["figure"], " ".join(match["note"].split()))
    others = len(COMMANDS.findall(TEXTS[path]))
    assert len(found) + others == TEXTS[path].count("<!--"), "a comment that follows no figure"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_no_figure_in_running_text_is_without_a_record(path):
    assert bare_decimals(TEXTS[path]) == []


def test_what_counts_as_a_figure_in_running_text():
    assert bare_decimals("It has 71.32 ± 1.11 after 3 epochs, +0.5 points.") == ["71.32", "1.11", "0.5"]
    assert (
        bare_decimals(
            "[31.0](https://arxiv.org/abs/2006.05929), `--lr 0.1`, torch 2.14.1, 7.6<!-- docs/LOG.md "
            "2026-11-22 -->"
        )
        == []
    )
    assert bare_decimals("[1.5](runs/demo.sh)\n| 2.5 |\n## 3.5\n```\n4.5\n```\n5.5") == ["1.5", "5.5"]


@pytest.mark.parametrize(
    ("figure", "expression"),
    [
        ("70.50 ± 0.71", "0"),
        ("70.5", "0.mean"),
        ("71.0", "0.accs.1"),
        ("70.5 ± 0.7", "0.accs"),
        ("71.0 ± 0.71", "0 1"),
        ("+1.0", "1 - 0"),
        ("1.014", "1 / 0"),
        ("1,200", "0.num_bytes.total"),
        ("1.2", "0.num_bytes.total / 1e3"),
        ("5", "minutes.stage 1"),
    ],
)
def test_what_a_comment_stands_for(figure, expression):
    rows = [
        {"mean": 70.5, "std": 0.7071, "accs": [70.0, 71.0], "num_bytes": {"total": 1200}},
        {"mean": 71.5, "std": None},
    ]
    assert as_written(figure, {"rows": rows, "minutes": {"stage 1": 4.7}}, expression) == figure


# records


def test_every_record_says_how_it_was_made():
    for path in RECORDS.glob("*.json"):
        record = json.loads(path.read_text())
        assert {"date", "hardware", "commands", "minutes", "rows"} <= set(record), path
        measured = (
            {"seconds", "ratio", "pairs", "memory"}
            if record.get("kind") == "speed"
            else {"accs", "mean", "std", "n"}
        )
        for row in record["rows"]:
            assert {"commit", "torch", "device"} | measured <= set(row), path


def test_rows_over_trainings_equal_the_rows_they_name():
    records = [json.loads(path.read_text())["rows"] for path in RECORDS.glob("*.json")]
    summaries = [
        (row, [rows[i] for i in row["of_rows"]]) for rows in records for row in rows if "of_rows" in row
    ]
    assert summaries
    for row, parts in summaries:
        assert row["accs"] == [part["mean"] for part in parts]
        assert len({part["checkpoint_sha256"] for part in parts}) == row["n"] == 3
        for name in ("dataset", "split", "ipc", "epochs", "generator_bytes"):
            assert {part[name] for part in parts} == {row[name]}
        check_statistics(row)


# the page, its links and its flags


def test_the_demo_stands_near_the_top():
    assert any(line.startswith("make demo") for line in README.splitlines()[:60])


def test_the_readme_links_every_page():
    for path in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{path.name})" in README, path.name


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_links_lead_to_files(path):
    missing = []
    for _, target in LINK.findall(TEXTS[path]):
        name, _, anchor = target.partition("#")
        if target.startswith("http"):
            continue
        file = path.parent / name if name else path
        if (
            not file.exists()
            or (name.endswith("/") and not file.is_dir())
            or (anchor and anchor not in anchors(file.read_text()))
        ):
            missing.append(target)
    assert missing == []


def test_flags_that_are_named_exist():
    known = {"--" + name.replace("_", "-") for script in SCRIPTS | TOOLS for name in declared(script)}
    known |= {"--no-" + name.removeprefix("--") for name in known}
    texts = "\n".join(TEXTS.values())
    removed = set(FLAG.findall("\n".join(REMOVED.findall(texts))))
    assert removed & {"--" + name.replace("_", "-") for name in declared("continual")} == set()
    named = set(FLAG.findall(REMOVED.sub("", texts)))
    assert named - known - {"--nproc-per-node", "--standalone", "--logdir", "--from", "--help"} == set()


# commands that stand beside a figure


OWN_NAMES = {
    "tag",
    "weight",
    "pretrain_weight",
    "results_dir",
    "data_dir",
}  # folders and files of a user's own


def printed_commands(script: str, **environment: str) -> list[str]:
    """What a bash script would run: `python` only prints its words."""
    printing = "python() { printf '%q ' \"$@\"; echo; }\nexport -f python\n"
    environment = os.environ | {"PYTHON": "python"} | environment
    call = ["bash", "-c", printing + script]
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if ".py" in line]


def settings(command: str) -> tuple[str, dict]:
    """The script of a command, and the values of its flags but for names of folders and files."""
    script, *words = shlex.split(command.removeprefix("python "))
    flags = vars(SCRIPTS[script.removesuffix(".py")].parse_args(words))
    return script, {name: value for name, value in flags.items() if name not in OWN_NAMES}


def commands_behind(source: str, data: str) -> list[str]:
    """The commands that made the figures beside a block of the README."""
    if name := source.removeprefix("the record ") if source.startswith("the record ") else None:
        return json.loads((RECORDS / f"{name}.json").read_text())["commands"]
    if name := source.removeprefix("the experiment ") if source.startswith("the experiment ") else None:
        words = [name, "--data", data, "--bytes", "50000", "--seeds", "0"]
        chains = run.runs_of(run.parse_args(words))
        commands = (shlex.join(one.command) for chain in chains for one in chain)
        return [command.replace("{quality}", str(run.jpeg_quality(data))) for command in commands]
    *environment, script = source.split()
    variables = dict(pair.split("=") for pair in environment)
    return [
        line
        for verb in ("train", "match", "table")
        for line in printed_commands(f"bash {script} {verb}", **variables)
    ]


def test_a_command_that_stands_beside_a_figure_is_the_command_of_the_figure():
    blocks = COMMANDS.findall(README)
    assert len(blocks) == 3
    for source, block in blocks:
        shown = [settings(line) for line in printed_commands(block)]
        assert shown, source
        made = [settings(command) for command in commands_behind(source, shown[0][1]["data"] or "")]
        for command in shown:
            assert command in made, (source, command)


def test_the_printed_score_is_that_of_the_record():
    rows = json.loads((RECORDS / "2026-11-28_readme.json").read_text())["rows"]
    written = {plus_minus(row["mean"], row["std"]) for row in rows if row["dataset"] == "cifar10"}
    (shown,) = [block for block in README.split("```")[1::2] if "images seen" in block]
    found = [match[0] for match in MEASURED.finditer(shown)]
    assert len(found) == 3
    assert set(found) <= written
