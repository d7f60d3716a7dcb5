"""Tables and figures of what classifiers learn from generated images, from validate.py's results.json alone.

    python figs/make_figures.py results/test results/other --out figs/validate --record
    benchmarks/results/DATE_fashion.json

Rows that differ only in the training of their generator are one line and one point; "stage 1=results/test"
names the generators of a folder and keeps them apart. Prints a Markdown table. --out draws FOLDER/curves.png,
bytes.png, architectures.png, samples.png, neighbours.png and confusion.png, each if there are rows for it.
--record keeps the rows without images. --from RECORD reads a kept record instead.
"""

import argparse
import base64
import datetime
import io
import platform
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from textwrap import fill

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Ctrl-C during the imports ends the process without a traceback

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from PIL import Image

from benchmarks.compare import read_rows
from data import DATASETS
from engine.files import make_folder, write_json
from figs.draw_continual import panels, save
from figs.lines import Line, grouped, lines_of, once, place_of, read_named, table, unique
from scoring.results import plus_minus
from utils import Parser, UsageError, cli


def colors_of(names: Iterable[str]) -> dict[str, tuple]:
    """A color for each name; real images are black."""
    found = list(dict.fromkeys(names))
    others = [name for name in found if name.split(",")[0] != "real"]
    palette = plt.get_cmap("tab10" if len(others) <= 10 else "tab20").colors
    return dict.fromkeys(found, "black") | {name: palette[i % len(palette)] for i, name in enumerate(others)}


def log_ticks(ax, formatter) -> None:
    """Ticks at 1, 2 and 5 times powers of ten."""
    ax.xaxis.set(major_locator=mpl.ticker.LogLocator(subs=(1, 2, 5)), major_formatter=formatter)
    ax.minorticks_off()


def finish(figure, path: Path) -> None:
    """Add one legend for all panels beside them, and write the figure."""
    handles = {
        label: handle
        for ax in figure.axes
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.tight_layout()
    figure.legend(handles.values(), handles.keys(), fontsize=8, loc="upper left", bbox_to_anchor=(1, 0.97))
    save(figure, path)


def draw_curves(lines: list[Line], path: Path) -> bool:
    """Draw accuracy against images seen: mean and sample standard deviation over trainings, or else over
    classifiers."""
    lines = lines_of(
        [row for line in lines for row in line.rows if row.get("curve_accs")]
    )  # some trainings of a line may have no curve
    places = grouped(lines, "classifier", "ipc")
    if not places:
        return False
    figure, axes = panels(len(places), 4.5, 4)
    colors = colors_of(line.label for group in places.values() for line in group)
    for ax, (place, group) in zip(axes, places.items(), strict=False):
        for budget, line in once(group):
            seen = line["curve_images_seen"]
            alike = [row["curve_accs"] for row in line.rows if row.get("curve_images_seen") == seen]
            curves = np.array(
                [np.mean(accs, 0) for accs in alike] if len(alike) > 1 else alike[0]
            )  # (trainings or classifiers, points)
            middle, color = curves.mean(0), colors[line.label]
            ax.plot(
                seen,
                middle,
                "o--" if "fixed" in budget else "o-",
                label=line.label + budget,
                markersize=3,
                color=color,
            )
            deviation = curves.std(0, ddof=1) if len(curves) > 1 else 0
            ax.fill_between(
                seen, middle - deviation, middle + deviation, color=color, alpha=0.15, linewidth=0
            )
        ax.set(xscale="log", xlabel="images seen", ylabel="accuracy, %")
        log_ticks(ax, mpl.ticker.EngFormatter(sep=""))
        ax.set_title(place, fontsize=9)
        ax.grid(alpha=0.3)
    finish(figure, path)
    return True


def draw_bytes(lines: list[Line], path: Path) -> bool:
    """Draw accuracy against stored bytes with sample standard deviation; all real images, far larger, are a
    horizontal line."""
    real = [line for _, line in once(lines) if line["source"] == "real"]
    places = grouped((line for line in lines if line.num_bytes and line["source"] != "real"), "classifier")
    if not places:
        return False
    figure, axes = panels(len(places), 4.5, 4)
    colors = colors_of(line.series for group in places.values() for line in group)
    for ax, (place, group) in zip(axes, places.items(), strict=False):
        levels = [line for line in real if place_of(line, "classifier") == place]
        series: dict[tuple, list[Line]] = {}
        for budget, line in once(group):
            series.setdefault((line.series, budget), []).append(line)
        ipcs = sorted({line["ipc"] for line in group + levels})
        low, high = (pick(line.num_bytes for line in group) / 1e6 for pick in (min, max))
        for i, ((name, budget), own) in enumerate(sorted(series.items())):
            own.sort(key=lambda line: (line.num_bytes, line["ipc"]))
            beside = 1.012 ** (i - len(series) / 2)  # equal bytes stand side by side
            x, y = [line.num_bytes / 1e6 * beside for line in own], [line.mean for line in own]
            color, marker, style = (
                colors[name],
                "osD^vPX*"[list(colors).index(name) % 8],
                "--" if "fixed" in budget else "-",
            )
            ax.errorbar(
                x,
                y,
                [line.std or 0 for line in own],
                capsize=3,
                label=name + budget,
                color=color,
                marker=marker,
                ms=4,
                ls=style,
            )
            ax.scatter(
                x, y, [(4 + 3 * ipcs.index(line["ipc"])) ** 2 for line in own], color=color, marker=marker
            )
        for line in levels:
            stored = f", {line.num_bytes / 1e6:.3g} MB" if line.num_bytes else ""
            ax.axhline(line.mean, color="black", linestyle=":", label=line.label + stored)
            ax.annotate(
                f"ipc {line['ipc']}" if len(ipcs) > 1 else "", (low / 1.6, line.mean), fontsize=7, va="bottom"
            )
        ax.set(xscale="log", xlim=(low / 1.7, high * 1.7), ylabel="accuracy, %")
        ax.set_xlabel(
            "stored, MB" + (f" (size of markers: ipc {' < '.join(map(str, ipcs))})" if len(ipcs) > 1 else "")
        )
        log_ticks(ax, "{x:g}")
        ax.set_title(place, fontsize=9)
        ax.grid(alpha=0.3)
    finish(figure, path)
    return True


def heat(ax, values: np.ndarray, texts: list[list[str]], rows: list[str], columns: list[str]) -> None:
    """Draw a heat map; up to 25 rows also get texts in the cells and names beside them. A nan cell stays
    empty."""
    low, high = np.nanmin(values), np.nanmax(values)
    ax.imshow(values, cmap="viridis", aspect="auto", vmin=low, vmax=high)
    if len(rows) > 25:
        return
    for i, j in np.ndindex(values.shape):
        color = "white" if values[i, j] < low + 0.6 * (high - low) else "black"
        ax.text(j, i, texts[i][j], ha="center", va="center", fontsize=7, color=color)
    turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if max(map(len, columns)) > 2 else {}
    ax.set_xticks(range(len(columns)), columns, fontsize=8, **turned)
    ax.set_yticks(range(len(rows)), rows, fontsize=8)


def draw_architectures(lines: list[Line], path: Path) -> bool:
    """Draw accuracy by classifier and by what it was trained on, for each place with several classifiers."""
    places = {
        place: group
        for place, group in grouped(lines, "ipc", "budget").items()
        if len({line["classifier"] for line in group}) > 1
    }
    if not places:
        return False
    cells = [{(line["classifier"], line.label): line for line in group} for group in places.values()]
    sides = [[list(dict.fromkeys(side)) for side in zip(*found, strict=True)] for found in cells]
    size = (
        2.5 + 1.1 * max(len(columns) for _, columns in sides),
        sum(1.8 + 0.4 * len(rows) for rows, _ in sides),
    )
    figure, axes = plt.subplots(len(places), 1, figsize=size, squeeze=False)
    for ax, place, found, (rows, columns) in zip(axes.flat, places, cells, sides, strict=True):
        grid = [[found.get((row, column)) for column in columns] for row in rows]
        values = np.array([[line.mean if line else np.nan for line in row] for row in grid])
        heat(
            ax,
            values,
            [[plus_minus(line.mean, line.std) if line else "" for line in row] for row in grid],
            rows,
            columns,
        )
        ax.set_title(f"{place}: accuracy, %", fontsize=9)
    figure.tight_layout()
    save(figure, path)
    return True


def draw_confusion(lines: list[Line], path: Path) -> bool:
    """Draw in percent how the images of each class were classified, once for each line label and data set."""
    first: dict[tuple, Line] = {}
    for line in lines:
        if line["confusion"]:
            first.setdefault((place_of(line), line.label), line)
    if not first:
        return False
    figure, axes = panels(len(first), 4.6, 4.4)
    for ax, line in zip(axes, first.values(), strict=False):
        counts = sum(np.array([text.split() for text in row["confusion"]], int) for row in line.rows)
        percent = 100 * counts / np.maximum(1, counts.sum(1, keepdims=True))
        names = class_names(line["dataset"], lines, len(counts))
        heat(ax, percent, [[f"{value:.0f}" for value in row] for row in percent], names, names)
        ax.set_title(f"{line.label}\n{place_of(line, 'classifier', 'ipc', 'budget')}", fontsize=8)
        ax.set(xlabel="taken for", ylabel="true class")
    figure.tight_layout()
    save(figure, path)
    return True


def class_names(dataset: str, lines: list[Line], k: int) -> list[str]:
    """The names of the data set's classes where they are known, else their numbers."""
    known = [list(DATASETS[dataset].info.class_names)] if dataset in DATASETS else []
    known += [
        row["class_names"]
        for line in lines
        for row in line.rows
        if line["dataset"] == dataset and row.get("class_names")
    ]
    known += [
        row["samples"]["class_names"]
        for line in lines
        for row in line.rows
        if line["dataset"] == dataset and row.get("samples")
    ]
    return next((names for names in known if len(names) == k), [str(i) for i in range(k)])


def samples_of(lines: list[Line]) -> dict[str, dict[str, dict]]:
    """data -> label -> the samples of the first row that has some; lines of all real images are left out."""
    found: dict[str, dict[str, dict]] = {}
    for line in lines:
        for row in line.rows:
            if row.get("samples") and line["source"] != "real":
                found.setdefault(place_of(line), {}).setdefault(line.label, row["samples"])
    return found


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
    for data, found in samples_of(lines).items():
        real = next((samples for samples in found.values() if samples.get("real")), None)
        row = [(f"{data}, real", pixels(real, "real"), real["class_names"])] if real else []
        rows.append(
            row
            + [
                (fill(label, 40), pixels(samples, "images"), samples["class_names"])
                for label, samples in found.items()
            ]
        )
    return draw_grids(rows, path)


def draw_neighbours(lines: list[Line], path: Path) -> bool:
    """Draw generated images, each with the nearest training image at its right: memorised images show
    here."""
    rows = []
    for data, found in samples_of(
        [line for line in lines if line["source"] in ("generator", "file", "condensed")]
    ).items():
        rows.append([])
        for label, samples in found.items():
            if samples.get("nearest"):
                pairs = np.concatenate([pixels(samples, "images"), pixels(samples, "nearest")], 3)
                pairs = np.pad(
                    pairs, ((0, 0), (0, 0), (0, 0), (0, samples["size"] // 4), (0, 0)), constant_values=255
                )
                ratio = samples.get("distance_ratio")
                title = f"{data}, {label}, each with its nearest real one" + (
                    f", distance ratio {ratio:.2f}" if ratio else ""
                )
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
    parser.add_argument("--out", help="folder for the figures")
    parser.add_argument("--record", help="JSON file to keep the rows in")
    parser.add_argument("--command", nargs="+", default=[], help="--record: the commands that made the rows")
    parser.add_argument(
        "--hardware", default=platform.processor() or platform.machine(), help="--record: what they ran on"
    )
    return parser.parse_args(argv)


# Each figure, and what it needs.
FIGURES = {
    "curves": (draw_curves, "a row with a curve: validate.py --curve N"),
    "bytes": (
        draw_bytes,
        "a row that says its bytes, other than all real images: validate.py --source generator random-real",
    ),
    "architectures": (
        draw_architectures,
        "rows of two classifiers at the same budget and ipc: validate.py --eval-model A B",
    ),
    "samples": (
        draw_samples,
        "a row with samples, in the results and not in a record: validate.py --samples N",
    ),
    "neighbours": (
        draw_neighbours,
        "samples of generated images with neighbours: validate.py --samples N with the training set at hand",
    ),
    "confusion": (draw_confusion, "a row with a confusion matrix, which results older than it do not have"),
}


@cli
def main(args: argparse.Namespace) -> list[dict]:
    if bool(args.results) == bool(args.kept):
        raise UsageError("expected either folders of results or --from RECORD")
    mpl.use("Agg")
    rows = unique(
        [row for given in args.results for row in read_named(given)] if args.results else read_rows(args.kept)
    )
    lines = lines_of(rows)
    print("\n".join(table(lines, args.record or args.kept)))
    if args.record:
        kept = [{name: value for name, value in row.items() if name != "samples"} for row in rows]
        seconds = sum(
            row["n"] * ((row.get("seconds_train") or 0) + (row.get("seconds_generate") or 0)) for row in rows
        )
        about = {
            "date": datetime.date.today().isoformat(),
            "hardware": args.hardware,
            "commands": args.command,
        }
        write_json(Path(args.record), about | {"minutes": round(seconds / 60, 1), "rows": kept})
    if args.out:
        make_folder(Path(args.out))
        for name, (draw, needed) in FIGURES.items():
            if not draw(lines, Path(args.out) / f"{name}.png"):
                print(f"{name}.png: left out, it needs {needed}", file=sys.stderr)
    return rows


if __name__ == "__main__":
    main(parse_args())
