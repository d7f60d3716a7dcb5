"""Panels of curves and the file of a record, for the figures of both kinds of results."""

import argparse
import datetime
import platform
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from engine.files import write_atomic, write_json

mpl.use("Agg")


@dataclass
class Curve:
    """A curve of accuracies with their spread; a horizontal line where it has no x."""

    label: str
    x: list[float]
    y: list[float]
    spread: list[float]
    color: str = ""

    def band(self) -> tuple[float, float]:
        """The lowest and the highest end of its error bars."""
        ends = list(zip(self.y, self.spread, strict=True))
        return min(y - spread for y, spread in ends), max(y + spread for y, spread in ends)


def draw_panels(panels: dict[str, list[Curve]], xlabel: str, ylabel: str) -> tuple:
    """A figure with a panel of each title, and its axes by title. A label has one color in all panels."""
    labels = list(dict.fromkeys(curve.label for curves in panels.values() for curve in curves))
    columns = min(4, len(panels))
    height = -(-len(panels) // columns)
    figure, axes = plt.subplots(height, columns, figsize=(1 + 4 * columns, 3.8 * height), squeeze=False)
    for spare in axes.flat[len(panels) :]:
        spare.axis("off")
    for ax, (title, curves) in zip(axes.flat, panels.items(), strict=False):
        for curve in curves:
            i = labels.index(curve.label)
            curve.color = f"C{i % 10}"
            style = {"color": curve.color, "label": curve.label, "linewidth": 1.3}
            if curve.x:
                dashes = "--" if "fixed" in curve.label else "-"
                marker = {"marker": "osD^vPX*"[i % 8], "markersize": 4, "linestyle": dashes}
                ax.errorbar(curve.x, curve.y, curve.spread, capsize=2, **marker, **style)
            else:
                ax.axhline(curve.y[0], linestyle=":", **style)
        ax.set(xscale="log", xlabel=xlabel)
        ax.set_title(title, fontsize=10)
        ax.grid(alpha=0.3)
        formatter = mpl.ticker.EngFormatter(sep="")
        ax.xaxis.set(major_locator=mpl.ticker.LogLocator(subs=(1, 2, 5)), major_formatter=formatter)
        ax.minorticks_off()
    axes[0, 0].set_ylabel(ylabel)
    return figure, dict(zip(panels, axes.flat, strict=False))


def save(figure, path: Path) -> None:
    """Add one legend for all panels, write the figure atomically, and close it."""
    handles = {}
    for ax in figure.axes:
        handles |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.tight_layout()
    if handles:
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0)}
        figure.legend(handles.values(), handles.keys(), ncols=5 if len(handles) < 6 else 2, **place)
    write_atomic(
        path, lambda temporary: figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight")
    )
    plt.close(figure)


def add_record_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a record."""
    parser.add_argument("--record", help="JSON file to keep the rows in")
    parser.add_argument("--command", nargs="+", default=[], help="--record: the commands that made the rows")
    parser.add_argument(
        "--hardware", default=platform.processor() or platform.machine(), help="--record: what they ran on"
    )


def write_record(path: str, rows: list[dict], seconds: float, **more) -> None:
    """Write the rows with the date, the minutes and what else is said of them."""
    date = datetime.date.today().isoformat()
    write_json(Path(path), more | {"date": date, "minutes": round(seconds / 60, 1), "rows": rows})
