"""Tables and figures of what classifiers learn from generated images, from validate.py's results.json alone.

    python figs/make_figures.py results/test results/other --out figs/validate --record
    benchmarks/results/DATE_fashion.json

Rows that differ only in the training of their generator are one line and one point; "stage 1=results/test"
names the generators of a folder and keeps them apart. Prints a Markdown table; with --readme the front table
of the README. --out draws FOLDER/curves.png, bytes.png, samples.png and neighbours.png, each if there are
rows for it. --record keeps the rows without images. --from RECORD reads a kept record instead.
"""

import argparse
import base64
import io
import signal
import sys
from pathlib import Path
from textwrap import fill

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Ctrl-C during the imports ends the process without a traceback

import numpy as np
from matplotlib import pyplot as plt
from PIL import Image

from benchmarks.compare import read_rows
from engine.files import make_folder
from figs.lines import Line, grouped, lines_of, once, place_of, read_named, readme_table, table, unique
from figs.panels import Curve, add_record_flags, draw_panels, save, write_record
from utils import Parser, UsageError, cli


def draw_curves(lines: list[Line], path: Path) -> bool:
    """Draw accuracy against images seen: mean and sample standard deviation over trainings, or else over
    classifiers."""
    lines = lines_of(
        [row for line in lines for row in line.rows if row.get("curve_accs")]
    )  # some trainings of a line may have no curve
    panels: dict[str, list[Curve]] = {}
    for place, group in grouped(lines, "classifier", "ipc").items():
        for budget, line in once(group):
            seen = line["curve_images_seen"]
            alike = [row["curve_accs"] for row in line.rows if row.get("curve_images_seen") == seen]
            curves = np.array(
                [np.mean(accs, 0) for accs in alike] if len(alike) > 1 else alike[0]
            )  # (trainings or classifiers, points)
            spread = curves.std(0, ddof=1) if len(curves) > 1 else np.zeros(len(seen))
            curve = Curve(line.label + budget, seen, curves.mean(0).tolist(), spread.tolist())
            panels.setdefault(place, []).append(curve)
    if panels:
        save(draw_panels(panels, "images seen", "accuracy, %")[0], path)
    return bool(panels)


def draw_bytes(lines: list[Line], path: Path) -> bool:
    """Draw accuracy against stored bytes with sample standard deviation; all real images, far larger, are a
    horizontal line."""
    panels: dict[str, list[Curve]] = {}
    sized = [line for line in lines if line.num_bytes]
    for place, group in grouped(sized, "classifier", "ipc").items():
        series: dict[str, list[Line]] = {}
        for budget, line in once(group):
            series.setdefault(line.series + budget, []).append(line)
        for name, own in series.items():
            own.sort(key=lambda line: line.num_bytes)
            sizes = [] if own[0]["source"] == "real" else [line.num_bytes for line in own]
            curve = Curve(name, sizes, [line.mean for line in own], [line.std or 0 for line in own])
            panels.setdefault(place, []).append(curve)
    panels = {place: curves for place, curves in panels.items() if any(curve.x for curve in curves)}
    if panels:
        save(draw_panels(panels, "bytes stored", "accuracy, %")[0], path)
    return bool(panels)


def samples_of(lines: list[Line]) -> dict[str, dict[str, dict]]:
    """data -> label -> the samples of the first row that has some; lines of all real images are left out."""
    samples: dict[str, dict[str, dict]] = {}
    for line in lines:
        for row in line.rows:
            if row.get("samples") and line["source"] != "real":
                samples.setdefault(place_of(line), {}).setdefault(line.label, row["samples"])
    return samples


def pixels(samples: dict, name: str) -> np.ndarray:
    """The images called `name` in `samples`: uint8 (classes, per class, size, size, 3)."""
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(samples[name]))).convert("RGB"))
    size, per_class = samples["size"], samples["per_class"]
    return image.reshape(-1, size, per_class, size, 3).swapaxes(1, 2)


def draw_grids(rows: list[list[tuple[str, np.ndarray, list[str]]]], path: Path) -> bool:
    """Draw grids of images (classes, columns, height, width, 3) with titles and class names; one row of grids
    for each data set."""
    if not any(rows):
        return False
    shapes = [images.shape for row in rows for _, images, _ in row]
    cell = 0.4 if max(shape[0] for shape in shapes) <= 20 else 0.2  # inches
    width = 0.9 + cell * max(shape[1] * shape[3] / shape[2] for shape in shapes)
    size = (
        max(map(len, rows)) * max(width, 2.4),
        sum(0.6 + cell * max(images.shape[0] for _, images, _ in row) for row in rows),
    )
    figure, axes = plt.subplots(len(rows), max(map(len, rows)), figsize=size, squeeze=False)
    for spare in axes.flat:
        spare.axis("off")
    for line, row in zip(axes, rows, strict=True):
        for ax, (title, images, names) in zip(line, row, strict=False):
            classes, columns, height, width = images.shape[:4]
            ax.axis("on")
            ax.imshow(
                images.swapaxes(1, 2).reshape(classes * height, columns * width, 3), interpolation="nearest"
            )
            ax.set_title(title, fontsize=8)
            ax.set_xticks([])
            ax.set_yticks((np.arange(classes) + 0.5) * height - 0.5, names, fontsize=7)
            ax.tick_params(length=0)
            ax.set_frame_on(False)
    figure.tight_layout()
    save(figure, path)
    return True


def draw_samples(lines: list[Line], path: Path) -> bool:
    """Draw real images, and beside them the images that were trained on instead, class by class."""
    rows = []
    for data, by_label in samples_of(lines).items():
        real = next((samples for samples in by_label.values() if samples.get("real")), None)
        rows.append([(f"{data}, real", pixels(real, "real"), real["class_names"])] if real else [])
        for label, samples in by_label.items():
            rows[-1].append((fill(label, 40), pixels(samples, "images"), samples["class_names"]))
    return draw_grids(rows, path)


def draw_neighbours(lines: list[Line], path: Path) -> bool:
    """Draw generated images, each with the nearest training image at its right: memorised images show
    here."""
    rows = []
    made = [line for line in lines if line["source"] in ("generator", "file", "condensed")]
    for data, by_label in samples_of(made).items():
        rows.append([])
        for label, samples in by_label.items():
            if samples.get("nearest"):
                pairs = np.concatenate([pixels(samples, "images"), pixels(samples, "nearest")], 3)
                gap = [(0, 0), (0, 0), (0, 0), (0, samples["size"] // 4), (0, 0)]
                title = f"{data}, {label}, each with its nearest real one"
                if samples.get("distance_ratio"):
                    title += f", distance ratio {samples['distance_ratio']:.2f}"
                pairs = np.pad(pairs, gap, constant_values=255)
                rows[-1].append((fill(title, 60), pairs, samples["class_names"]))
    return draw_grids(list(filter(None, rows)), path)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument(
        "results",
        nargs="*",
        default=[],
        help="folders of validate.py or their results.json; NAME=FOLDER names generators",
    )
    parser.add_argument("--from", dest="kept", help="use a record that --record wrote instead of results")
    parser.add_argument("--readme", action="store_true", help="print the front table of the README")
    parser.add_argument("--out", help="folder for the figures")
    add_record_flags(parser)
    return parser.parse_args(argv)


# Each figure, and what it needs.
FIGURES = {
    "curves": (draw_curves, "a row with a curve: validate.py --curve N"),
    "bytes": (
        draw_bytes,
        "a row that says its bytes, other than all real images: validate.py --source generator random-real",
    ),
    "samples": (
        draw_samples,
        "a row with samples, in the results and not in a record: validate.py --samples N",
    ),
    "neighbours": (
        draw_neighbours,
        "samples of generated images with neighbours: validate.py --samples N with the training set at hand",
    ),
}


@cli
def main(args: argparse.Namespace) -> list[dict]:
    if bool(args.results) == bool(args.kept):
        raise UsageError("expected either folders of results or --from RECORD")
    rows = unique(
        [row for given in args.results for row in read_named(given)] if args.results else read_rows(args.kept)
    )
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
