"""Tables and the figure of continual-learning runs, from their results.json alone.

    python figs/draw_continual.py results/mnist_* --out figs/mine
    python figs/draw_continual.py --from benchmarks/results/2026-11-27_split_*_{h200,scan}.json --out figs

Runs that differ only in their seed are one row. Prints a Markdown table: of the results, with --front of the
accuracy of each memory at each budget, with --against NAME of the differences to that row at the same budget.
--out draws FOLDER/continual_front.png: accuracy against the budget, mean and sample standard deviation, a
panel for each image set. --record keeps the rows, --from RECORD prints and draws a kept record again.
"""

import argparse
import json
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    # Ctrl-C during the imports ends the process without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from engine.files import make_folder
from figs.names import SETS, names_of
from figs.panels import Curve, add_record_flags, draw_panels, save, write_record
from figs.rows import best_at_budgets, read_runs, rows_of
from figs.tables import check_settings, differences_table, front_table, results_table, size
from utils import Parser, UsageError, cli, positive_int

CURVES = ("condensed images", "CLS-ER", "ER-ACE", "ER", "generator")
KNOWN = (*CURVES, "DER++", "GDumb", "no memory", "all tasks at once", "every image", "real images")


def chosen_curves(names: list[str]) -> list[str]:
    """The curves of a figure: those of unknown methods, then in the order of KNOWN, then their variants."""

    def order(name: str) -> int:
        return KNOWN.index(name) if name in KNOWN else len(KNOWN) if name.startswith(KNOWN) else -1

    ordered = sorted(dict.fromkeys(names), key=order)
    if ordered[len(CURVES) :]:
        print(f"left out of the figure: {'; '.join(ordered[len(CURVES) :])}", file=sys.stderr)
    return ordered[: len(CURVES)]


def draw_front(rows: list[dict], path: Path) -> None:
    """Draw accuracy after the last task against the budget: a panel for each image set, a curve for each
    memory.

    A point is the best row of its memory at a budget. A method without a budget is a horizontal line. The
    generator may leave the panel at its bottom; its values there are written.
    """
    check_settings(rows)
    keys = [(row["data"], name.curve) for row, name in zip(rows, names_of(rows), strict=True)]
    best = best_at_budgets(rows, keys)
    panels: dict[str, list[Curve]] = {data: [] for data in sorted({row["data"] for row in rows})}
    for name in chosen_curves([name for _, name in keys]):
        for data, curves in panels.items():
            numbers = best.get((data, name), {})
            budgets = sorted(filter(None, numbers))
            own = [rows[numbers[budget]] for budget in budgets or numbers]
            if own:
                curves.append(
                    Curve(name, budgets, [row["mean"] for row in own], [row["std"] or 0 for row in own])
                )
    figure, axes = draw_panels(panels, "bytes kept between tasks", "accuracy after the last task, %")
    for data, curves in panels.items():
        ax = axes[data]
        budgets = sorted({budget for curve in curves for budget in curve.x})
        ax.set_xticks(budgets, map(size, budgets))
        ax.set_title(SETS.get(data, data))
        lows = [curve.band()[0] for curve in curves if curve.label != "generator"]
        if not lows:
            continue
        top = max(curve.band()[1] for curve in curves)
        margin = 0.08 * (top - min(lows)) or 1
        floor = min(lows) - margin
        ax.set_ylim(floor, top + margin)
        for curve in curves:
            for x, y in zip(curve.x, curve.y, strict=False):  # a level has no x
                if y < floor:
                    place = {"textcoords": "offset points", "ha": "center", "fontsize": 8}
                    ax.annotate(f"{y:.0f} ↓", (x, floor), (4, 4), color=curve.color, **place)
    save(figure, path)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument(
        "runs", nargs="*", default=[], help="folders of continual.py; unfinished runs are left out"
    )
    parser.add_argument(
        "--from", dest="kept", nargs="+", help="use records that --record wrote instead of runs"
    )
    parser.add_argument("--budgets", nargs="+", type=positive_int, help="use rows of these budgets alone")
    parser.add_argument("--out", help="folder for the figure")
    tables = parser.add_mutually_exclusive_group()
    tables.add_argument(
        "--front", action="store_true", help="print the accuracy of each memory at each budget"
    )
    tables.add_argument(
        "--against",
        help="print each row minus this one at the same budget, seed by seed; such as ER-ACE",
    )
    add_record_flags(parser)
    return parser.parse_args(argv)


@cli
def main(args: argparse.Namespace) -> list[dict]:
    if bool(args.runs) == bool(args.kept):
        raise UsageError("expected either the folders of runs or --from RECORD")
    runs = [] if args.kept else read_runs(args.runs)
    try:
        records = {path: json.loads(Path(path).read_text())["rows"] for path in args.kept or ()}
        records = records or {args.record: rows_of(runs)}
        kept = [(row, (path, number)) for path, own in records.items() for number, row in enumerate(own)]
        kept = [pair for pair in kept if not args.budgets or pair[0]["memory_bytes"] in args.budgets]
        rows = [row for row, _ in kept]
        places = [place for _, place in kept] if args.kept or args.record else None
        if not rows:
            raise ValueError("no rows")
        if args.against is not None:
            lines = differences_table(rows, args.against, places)
        else:
            lines = front_table(rows, places) if args.front else results_table(rows, places)
    except UsageError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{' '.join(args.kept or args.runs[:1])}: expected a record of continual runs, found something "
            f"else ({error})"
        ) from None
    print("\n".join(lines))
    if args.record:
        seconds = sum(row["seconds"] * row["n"] for row in rows)
        made = {"hardware": args.hardware, "commands": args.command}
        write_record(args.record, rows, seconds, kind="continual", **made)
    if args.out:
        make_folder(Path(args.out))
        draw_front(rows, Path(args.out) / "continual_front.png")
    return rows


if __name__ == "__main__":
    main(parse_args())
