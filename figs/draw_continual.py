"""Tables and figures of continual-learning runs, from their results.json alone.

    python figs/draw_continual.py results/mnist_* --out figs/split_mnist --record
    benchmarks/results/DATE_split_mnist.json

Runs that differ only in their seed are one row, named by their folder without data set, bytes and seed.
Prints a Markdown table: of the results, with --front of the accuracy of each method at each budget, with
--against NAME of the differences to the row of that name at the same budget, with --nearness of how near the
images in memory are to those that were learnt. --out draws FOLDER/bytes.png (accuracy and seconds against
stored bytes, mean and sample standard deviation), matrices.png, tasks.png (accuracy on each task after each
task) and samples.png (what the generators make after every task). --record keeps the rows. --from RECORD
prints and draws a kept record again, except for the samples.
"""

import argparse
import datetime
import json
import platform
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Ctrl-C during the imports ends the process without a traceback

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from PIL import Image

from engine.files import make_folder, write_atomic, write_json
from figs.rows import front_of, label_of, read_runs, rows_of
from figs.tables import differences_table, front_table, nearness_table, results_table
from replay.methods import METHODS
from utils import Parser, UsageError, cli


def save(figure, path: Path) -> None:
    """Write a figure, atomically, and close it."""
    write_atomic(
        path, lambda temporary: figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight")
    )
    plt.close(figure)


def bytes_of(row: dict) -> float:
    """The budget of a row, or what it keeps if it has none."""
    return row["memory_bytes"] or row["num_bytes"]["total"]


def draw_bytes(rows: list[dict], path: Path) -> None:
    """Draw final average accuracy against the budget, a line for each method, and beside it the seconds of a
    run.

    Points of one budget stand side by side. A method without a budget is a horizontal line. Where several
    rows are of a method at a budget, the one with the most seeds is drawn. Seconds of runs on a GPU are
    hollow points, joined by no line.
    """
    lines = {
        name: [rows[number] for number in numbers.values()] for (_, name), numbers in front_of(rows).items()
    }
    rows = [row for own in lines.values() for row in own]
    figure, (axes, beside) = plt.subplots(1, 2, figsize=(14, 5.5), width_ratios=(3, 2))
    labels, colors = (
        sorted(lines, key=lambda label: -max(row["mean"] for row in lines[label])),
        plt.get_cmap("tab20").colors,
    )
    within = [row["mean"] - (row["std"] or 0) for row in rows if row["memory_bytes"] is not None]
    floor = min(within, default=0) - 1
    for i, label in enumerate(labels):
        own = sorted(lines[label], key=bytes_of)
        sized = all(row["num_bytes"]["total"] for row in own) and not any(
            METHODS[row["method"]].unlimited for row in own
        )
        budgets = [bytes_of(row) * sized for row in own]
        means, deviations, seconds = zip(
            *((row["mean"], row["std"] or 0, row["seconds"]) for row in own), strict=True
        )
        color, marker = colors[i % 20], "osD^vPX*"[i % 8]
        if not budgets[0]:
            below = f", {means[0]:.1f}: below" if means[0] < floor else ""
            axes.axhline(
                means[0], color=color, linestyle=":", linewidth=1.2, label=f"{label} (no budget{below})"
            )
            beside.axhline(seconds[0], color=color, linestyle=":", linewidth=1.2)
            continue
        places = np.array(budgets) / 1e6 * 1.015 ** (i - len(labels) / 2)
        axes.errorbar(
            places, means, deviations, color=color, marker=marker, capsize=3, linewidth=1.2, label=label
        )
        on_gpu = np.array([not row["device"].startswith("cpu") for row in own])
        beside.plot(places[~on_gpu], np.array(seconds)[~on_gpu], color=color, marker=marker, linewidth=1.2)
        beside.plot(
            places[on_gpu],
            np.array(seconds)[on_gpu],
            color=color,
            marker=marker,
            linestyle="",
            fillstyle="none",
        )
    sizes = sorted({row["memory_bytes"] / 1e6 for row in rows if row["memory_bytes"]})
    axes.set(ylabel="final average accuracy (class-il), %", title=title(rows))
    axes.set_ylim(bottom=floor if within else None)
    beside.set(yscale="log", ylabel="seconds of a run")
    figure.supxlabel("budget of what is kept between tasks, MB (methods side by side)", fontsize=10)
    for ax in (axes, beside):
        ax.set_xscale("log"), ax.grid(alpha=0.3)
        if sizes:
            (
                ax.set_xticks(sizes, [f"{size:g}" for size in sizes]),
                ax.xaxis.set_minor_locator(plt.NullLocator()),
            )
    figure.legend(
        *axes.get_legend_handles_labels(), fontsize=8, bbox_to_anchor=(0.92, 0.88), loc="upper left"
    )
    save(figure, path)


def title(rows: list[dict]) -> str:
    """The title of a figure: what all rows share."""
    numbers = sorted({row["n"] for row in rows})
    return f"{rows[0]['data']}, {rows[0]['num_tasks']} tasks, {rows[0]['track']}, n = {'/'.join(map(str, numbers))}"


def panels(number: int, width: float = 3.2, height: float = 2.9) -> tuple:
    """A figure with `number` axes of width x height inches each, and these axes."""
    columns = min(4, number)
    rows = -(-number // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    for spare in axes.flat[number:]:
        spare.axis("off")
    return figure, axes.flat


def draw_matrices(rows: list[dict], path: Path) -> None:
    """Draw acc[i, j] of each row as a heat map."""
    figure, axes = panels(len(rows))
    for ax, row in zip(axes, rows, strict=False):
        acc = np.array(row["acc"])
        ax.imshow(acc, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        for (i, j), value in np.ndenumerate(acc):
            ax.text(
                j,
                i,
                f"{value:.0f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if value < 60 else "black",
            )
        ax.set_title(f"{row['label']}, {row['num_bytes']['total'] / 1e6:.2f} MB", fontsize=9)
        ax.set(
            xlabel="tested on task",
            ylabel="after task",
            xticks=range(acc.shape[1]),
            yticks=range(acc.shape[0]),
        )
        ax.set_xticklabels(range(1, acc.shape[1] + 1)), ax.set_yticklabels(range(1, acc.shape[0] + 1))
    figure.tight_layout()
    save(figure, path)


def draw_tasks(rows: list[dict], path: Path) -> None:
    """Draw the accuracy on each task after each task, from the task itself on."""
    rows = [row for row in rows if len(row["acc"]) == row["num_tasks"]]
    if not rows:
        return
    figure, axes = panels(len(rows))
    for ax, row in zip(axes, rows, strict=False):
        for task in range(row["num_tasks"]):
            ax.plot(
                range(task + 1, row["num_tasks"] + 1),
                [line[task] for line in row["acc"][task:]],
                marker="o",
                markersize=3,
            )
        ax.set(ylim=(0, 101), xticks=range(1, row["num_tasks"] + 1), xlabel="after task", ylabel="%")
        ax.set_title(f"{row['label']}, {row['num_bytes']['total'] / 1e6:.2f} MB", fontsize=9)
        ax.grid(alpha=0.3)
    figure.tight_layout()
    save(figure, path)


def draw_samples(runs: list[dict], path: Path) -> None:
    """Draw what the generators of each row's first seed make after every task, which shows whether they
    forget.

    If no run has a generator, draw what the buffers hold.
    """
    runs = [run for run in runs if run["generator"]] or runs
    first = {label_of(run): run for run in reversed(runs)}
    pictures = {label: sorted((run["folder"] / "outputs").glob("img_*.png")) for label, run in first.items()}
    pictures = {label: paths for label, paths in reversed(pictures.items()) if paths}
    if not pictures:
        return
    columns = max(map(len, pictures.values()))
    figure, axes = plt.subplots(
        len(pictures), columns, figsize=(2.2 * columns, 2.3 * len(pictures)), squeeze=False
    )
    for line, (label, paths) in zip(axes, pictures.items(), strict=True):
        for ax in line:
            ax.axis("off")
        for task, (ax, picture) in enumerate(zip(line, paths, strict=False), 1):
            ax.imshow(Image.open(picture), cmap="gray")
            ax.set_title(f"{label}, task {task}", fontsize=8)
    figure.tight_layout()
    save(figure, path)


def printed_table(
    rows: list[dict], places: list[tuple[str, int]] | None, args: argparse.Namespace
) -> list[str]:
    """The table that the flags ask for."""
    if args.against is not None:
        return differences_table(rows, args.against, places)
    table = front_table if args.front else nearness_table if args.nearness else results_table
    return table(rows, places)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument(
        "runs", nargs="*", default=[], help="folders of continual.py; unfinished runs are left out"
    )
    parser.add_argument(
        "--from", dest="kept", nargs="+", help="use records that --record wrote instead of runs"
    )
    parser.add_argument("--out", help="folder for the figures")
    tables = parser.add_mutually_exclusive_group()
    tables.add_argument(
        "--front", action="store_true", help="print the accuracy of each method at each budget"
    )
    tables.add_argument(
        "--against",
        help="print each row minus the one of this name at the same budget, seed by seed, in place of "
        "results",
    )
    tables.add_argument(
        "--nearness",
        action="store_true",
        help="print how near the images in memory are to those that were learnt",
    )
    parser.add_argument("--record", help="JSON file to keep the rows in")
    parser.add_argument("--command", nargs="+", default=[], help="--record: the commands that made the runs")
    parser.add_argument(
        "--hardware", default=platform.processor() or platform.machine(), help="--record: what they ran on"
    )
    return parser.parse_args(argv)


@cli
def main(args: argparse.Namespace) -> list[dict]:
    if bool(args.runs) == bool(args.kept):
        raise UsageError("expected either the folders of runs or --from RECORD")
    mpl.use("Agg")
    runs = [] if args.kept else read_runs(args.runs)
    try:
        records = {path: json.loads(Path(path).read_text())["rows"] for path in args.kept or ()}
        rows = [row for kept in records.values() for row in kept] or rows_of(runs)
        places = [(path, number) for path, kept in records.items() for number in range(len(kept))]
        places = [(args.record, number) for number in range(len(rows))] if args.record else places or None
        if not rows:
            raise ValueError("no rows")
        sets = sorted({row["data"] for row in rows})
        if args.out and len(sets) > 1:
            raise UsageError(f"--out {args.out}: a figure is of one image set, found {', '.join(sets)}")
        lines = printed_table(rows, places, args)
    except UsageError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{' '.join(args.kept or args.runs[:1])}: expected a record of continual runs, found something "
            f"else ({error})"
        ) from None
    print("\n".join(lines))
    if args.record:
        about = {
            "kind": "continual",
            "date": datetime.date.today().isoformat(),
            "hardware": args.hardware,
            "commands": args.command,
        }
        write_json(
            Path(args.record),
            about | {"minutes": round(sum(row["seconds"] * row["n"] for row in rows) / 60, 1), "rows": rows},
        )
    if args.out:
        folder = Path(args.out)
        make_folder(folder)
        draw_bytes(rows, folder / "bytes.png")
        draw_matrices(rows, folder / "matrices.png")
        draw_tasks(rows, folder / "tasks.png")
        draw_samples(runs, folder / "samples.png") if runs else None
    return rows


if __name__ == "__main__":
    main(parse_args())
