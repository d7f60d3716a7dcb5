"""Time the parts of the four stages against plain loops and the arithmetic limit, in alternating runs.

    python benchmarks/speed.py --device cpu --out benchmarks/results/DATE_speed_cpu.json

The variants of a row are timed in alternation, each in a process of its own:
    ours      the flags below
    compiled  with --compile: ours, compiled; compiling is timed with an empty cache and with the one it left
    eager     the same loop as plain PyTorch runs it, in float32 (on CUDA with TF32 in convolutions)
Prints a table. --out keeps it as JSON, written after each row, so that the same command continues.
--table FILE prints a kept table again.
"""

import argparse
import datetime
import json
import multiprocessing
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    # not this folder, whose profile.py would hide Python's
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends without a traceback

import torch

from benchmarks.parts import NOTHING_TO_COMPILE, PARTS, POOL
from benchmarks.timing import hardware, product_rate, time_row
from engine.environment import environment
from engine.files import write_json
from engine.precision import multiplies_bf16
from engine.runtime import add_execution_flags, find_device
from models import network_name
from utils import Parser, UsageError, cli, positive_int, tell

COLUMNS = (
    "part",
    "batch",
    "width",
    "ours, ms",
    "ours / compiled",
    "compiling, s, cold / warm",
    "break-even, cold / warm",
    "eager / ours",
    "loader / ours",  # of records up to commit a21a69e: eager, with a DataLoader that is restarted each time
    "limit, ms",
    "share",
    "memory ours / eager, MB",
)


def print_table(record: dict) -> None:
    """Print Markdown: medians, ratios with their spread, the cost of compilation, and the arithmetic limit.

    The share is the limit, in time, divided by the time of the faster of ours and compiled.
    """
    print(f"| {' | '.join(COLUMNS)} |")
    print(f"|{'---|' * len(COLUMNS)}")
    for row in record["rows"]:
        ratio = {
            name: f"{values['median']:.2f} ({values['min']:.2f}–{values['max']:.2f})"
            for name, values in row["ratio"].items()
        }
        ms = {name: values["median"] * 1000 for name, values in row["seconds"].items()}
        limit = share = ""
        if rate := row["product_flops_per_second"]:  # None in a record whose machine was measured wrongly
            limit = row["flops"] / rate * 1000
            share = f"{limit / min(ms['ours'], ms.get('compiled', ms['ours'])):.0%}"
            limit = f"{limit:.3g}"
        compiling = row.get("compile_seconds", {}).values()
        break_even = row.get("pays_from_units", {}).values()
        cells = (
            f"{row['part']}, {row['network']}" if row["network"] else row["part"],
            row["batch_size"],
            row["width"] or "",
            f"{ms['ours']:.4g}",
            ratio.get("compiled", ""),
            " / ".join(f"{seconds:.0f}" for seconds in compiling),
            " / ".join("never" if units is None else f"{units:,}" for units in break_even),
            ratio["eager"],
            ratio.get("loader", ""),
            limit,
            share,
            " / ".join(f"{row['memory'][variant] / 1e6:,.0f}" for variant in ("ours", "eager")),
        )
        print(f"| {' | '.join(map(str, cells))} |")


def read_record(path: Path) -> dict:
    """Read a record that --out wrote. Raises UsageError if the file is something else."""
    try:
        record = json.loads(path.read_text())
        if record["kind"] != "speed":
            raise ValueError(f"kind {record['kind']}")
        return record
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or f"something else ({error})"
        raise UsageError(f"{path}: expected a result of this benchmark, found {reason}") from None


def plan(args: argparse.Namespace) -> list[tuple[str, int, int, str]]:
    """(part, batch size, width, network) of every row."""
    network = network_name(args.network, "--network")
    sizes = [(batch, width) for width in args.width for batch in args.batch_size]
    rows = [("stage-1 step", *size, "") for size in sizes]
    rows += [("stage-1 step, resnet", *size, "") for size in sizes]
    rows += [("stage-2 step", *size, network) for size in sizes]
    rows += [("matching step", 16, width, network) for width in args.width]
    rows += [("pool update", 64, 0, name) for name in dict.fromkeys([network, *POOL])]
    rows += [("classifier epoch", 128, 0, network), ("validation, n = 5", 128, args.width[0], network)]
    rows += [("generation", 500, width, "") for width in args.width]
    rows += [("ten stage-4 steps", 32, 0, network)]
    return [row for row in rows if row[0] in args.parts]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0])
    # what is timed
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to time")
    parser.add_argument("--batch-size", nargs="+", type=positive_int, default=[64], help="real images a step")
    parser.add_argument(
        "--width", nargs="+", type=positive_int, default=[32, 64], help="channels of both players"
    )
    parser.add_argument(
        "--network", default="convnet", help="network of stage 2's pool and of the classifiers"
    )
    # how
    parser.add_argument("--pairs", type=positive_int, default=5, help="rounds in which each variant is timed")
    parser.add_argument("--seconds", type=float, default=0.5, help="least duration of one timing, in seconds")
    parser.add_argument("--threads", type=positive_int, help="CPU threads (default: torch's)")
    add_execution_flags(parser)
    # result
    parser.add_argument("--out", type=Path, help="JSON file to write or to continue")
    parser.add_argument("--table", type=Path, help="print the table of a kept JSON file and exit")
    return parser.parse_args(argv)


@cli
def main(args: argparse.Namespace) -> dict:
    if args.table:
        record = read_record(args.table)
        print_table(record)
        return record
    device = find_device(args.device)
    name = str(device)
    amp = multiplies_bf16(device) if args.amp is None else args.amp
    ours = {"amp": amp, "channels_last": args.channels_last, "graphs": args.graphs}
    precision = torch.bfloat16 if amp else torch.float32
    threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    context = multiprocessing.get_context("forkserver")
    # torch._dynamo would be imported by the first optimiser
    context.set_forkserver_preload(["continual"] if name != "cpu" else ["continual", "torch._dynamo"])
    settings = {
        **environment(device),
        "execution": ours,
        "threads": threads,
        "least_seconds": args.seconds,
        "precision": str(precision),
        "product_flops_per_second": product_rate(name, precision, 4 * args.seconds),
    }
    record = {"kind": "speed", "date": str(datetime.date.today()), "hardware": hardware(name), "rows": []}
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        record = read_record(args.out) if args.out.exists() else record
    record["commands"] = [*record.get("commands", []), "python " + " ".join(sys.argv)]
    start = time.perf_counter()
    before = record.get("minutes", 0)
    for part, batch, width, network in plan(args):
        key = {"part": part, "batch_size": batch, "width": width, "network": network}
        if any(key.items() <= row.items() for row in record["rows"]):
            continue
        variants = {"ours": ours, "eager": None}
        if args.compile and part not in NOTHING_TO_COMPILE:
            variants["compiled"] = ours | {"compiled": True}
        tell(f"{part}, batch {batch}, width {width}, {network}")
        task = (part, (batch, width, network), name, threads)
        row = time_row(context, variants, task, args.pairs, args.seconds)
        record["rows"].append({**key, **settings, **row})
        record["minutes"] = before + (time.perf_counter() - start) / 60
        if args.out:
            write_json(args.out, record)
    print_table(record)
    return record


if __name__ == "__main__":
    main(parse_args())
