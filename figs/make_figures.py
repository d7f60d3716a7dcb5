"""Tables and figures of what classifiers learn from generated images, from validate.py's results.json alone.

    python figs/make_figures.py results/test results/other --out figs/validate --record RECORD.json

Rows that differ only in the training of their generator are one line and one point. Prints a Markdown table;
with --readme the front table of the README. --out draws FOLDER/bytes.png and samples.png, each if there are
rows for it. --record keeps the rows without images. --from RECORD reads a kept record instead.
"""

import argparse
import base64
import io
import re
import signal
import sys
from pathlib import Path
from textwrap import fill

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    # Ctrl-C during the imports ends the process without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy as np
from matplotlib import pyplot as plt
from PIL import Image

from benchmarks.compare import read_rows
from engine.files import make_folder
from figs.lines import Line, lines_of, readme_table, table, unique
from figs.panels import Curve, add_record_flags, draw_panels, save, write_record
from utils import Parser, UsageError, cli


def draw_bytes(lines: list[Line], path: Path) -> bool:
    """Draw accuracy against stored bytes with sample standard deviation.

    All real images, far larger, are a horizontal line. Only images of a generator differ between the budgets.
    """
    series: dict[tuple[str, str], dict[str, Line]] = {}
    for line in lines:
        name = f"{line.label}, {line['budget']}" if line["source"] == "generator" else line.label
        if line.num_bytes:
            title = f"{line.data}, {line['classifier']}, ipc {line['ipc']}"
            curve = re.sub(r", (match_bytes|generator_parameters) \d+", "", name)
            series.setdefault((title, curve), {}).setdefault(name, line)
    panels: dict[str, list[Curve]] = {}
    for (title, name), named in series.items():
        own = sorted(named.values(), key=lambda line: line.num_bytes)
        sizes = [] if own[0]["source"] == "real" else [line.num_bytes for line in own]
        curve = Curve(name, sizes, [line.mean for line in own], [line.std or 0 for line in own])
        panels.setdefault(title, []).append(curve)
    panels = {title: curves for title, curves in panels.items() if any(curve.x for curve in curves)}
    if panels:
        save(draw_panels(panels, "bytes stored", "accuracy, %")[0], path)
    return bool(panels)


def draw_samples(lines: list[Line], path: Path) -> bool:
    """Draw real images, the images that were trained on instead, and the real images nearest to those.

    A row of grids for each data set, in each grid a line for each class. Memorised images show in the nearest
    ones. Samples are those of the first row of a line that has some; all real images are left out.
    """
    grids: dict[str, list[tuple[str, dict, str]]] = {}
    for line in lines:
        samples = next(filter(None, (row.get("samples") for row in line.rows)), None)
        if not samples or line["source"] == "real":
            continue
        row = grids.setdefault(line.data, [])
        if samples.get("real") and not any(name == "real" for *_, name in row):
            row.insert(0, (f"{line['dataset']}, real", samples, "real"))
        row.append((line.label, samples, "images"))
        if samples.get("nearest") and not line["source"].startswith("random-real"):
            ratio = f", distance ratio {samples['distance_ratio']}" if samples.get("distance_ratio") else ""
            row.append((f"real, nearest to {line.label}{ratio}", samples, "nearest"))
    if not grids:
        return False
    columns = max(map(len, grids.values()))
    classes = max(len(samples["class_names"]) for row in grids.values() for _, samples, _ in row)
    height = 0.6 + min(0.4, 8 / classes) * classes
    figure, axes = plt.subplots(
        len(grids), columns, figsize=(3 * columns, height * len(grids)), squeeze=False, layout="tight"
    )
    for ax in axes.flat:
        ax.axis("off")
    for own, row in zip(axes, grids.values(), strict=True):
        for ax, (title, samples, name) in zip(own, row, strict=False):
            ax.axis("on")
            ax.imshow(Image.open(io.BytesIO(base64.b64decode(samples[name]))).convert("RGB"))
            ax.set_title(fill(title, 40), fontsize=8)
            ax.set_xticks([])
            middle = (np.arange(len(samples["class_names"])) + 0.5) * samples["size"] - 0.5
            ax.set_yticks(middle, samples["class_names"], fontsize=7)
    save(figure, path)
    return True


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument(
        "results",
        nargs="*",
        default=[],
        help="folders of validate.py or their results.json",
    )
    parser.add_argument("--from", dest="kept", help="use a record that --record wrote instead of results")
    parser.add_argument("--readme", action="store_true", help="print the front table of the README")
    parser.add_argument("--out", help="folder for the figures")
    add_record_flags(parser)
    return parser.parse_args(argv)


# Each figure, and what it needs.
FIGURES = {
    "bytes": (draw_bytes, "a row that says its bytes, other than all real images"),
    "samples": (draw_samples, "a row with samples, in the results and not in a record: --samples N"),
}


@cli
def main(args: argparse.Namespace) -> list[dict]:
    if bool(args.results) == bool(args.kept):
        raise UsageError("expected either folders of results or --from RECORD")
    rows = unique([row for path in args.results or [args.kept] for row in read_rows(path)])
    lines = lines_of(rows)
    print("\n".join(readme_table(rows) if args.readme else table(lines, args.record or args.kept)))
    if args.record:
        kept = [{name: value for name, value in row.items() if name != "samples"} for row in rows]
        seconds = sum(
            row["n"] * ((row.get("seconds_train") or 0) + (row.get("seconds_generate") or 0)) for row in rows
        )
        write_record(args.record, kept, seconds, hardware=args.hardware, commands=args.command)
    if args.out:
        make_folder(Path(args.out))
        for name, (draw, needed) in FIGURES.items():
            if not draw(lines, Path(args.out) / f"{name}.png"):
                print(f"{name}.png: left out, it needs {needed}", file=sys.stderr)
    return rows


if __name__ == "__main__":
    main(parse_args())
