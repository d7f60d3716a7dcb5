"""Time the parts of the four stages, eager and compiled, against two plain loops and the arithmetic limit, in
alternating runs.

    python benchmarks/speed.py --device cpu --out benchmarks/results/DATE_speed_cpu.json

The variants of a row are timed in turn, each in a process of its own:
    ours      the flags below, uncompiled
    compiled  ours with --compile
    eager     the same loop in plain PyTorch on resident tensors, in float32 (on CUDA with TF32 in
    convolutions) loader    steps of the stages only: eager, fed by a DataLoader of four workers that is
    restarted for each pass and each round of pool
              updates, with the losses read at each step, as in the original code
Compilation is timed separately, with an empty cache and again with the cache that it left. Prints a table.
--out keeps it as JSON, written after each row, so that the same command continues. --table FILE prints a kept
table again.
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
    sys.path[0] = str(
        Path(__file__).resolve().parent.parent
    )  # not this folder, whose profile.py would hide Python's
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Ctrl-C during the imports ends the process without a traceback

import torch

from benchmarks.parts import COMPILED, POOL, ROWS
from benchmarks.timing import hardware, product_rate, time_row
from data import load_data
from engine.environment import environment
from engine.files import write_json
from engine.precision import multiplies_bf16
from engine.runtime import find_device
from models import network_name
from utils import Parser, UsageError, cli, device_name, positive_int, tell


def print_table(record: dict) -> None:
    """Print Markdown: medians, ratios with their spread, the cost of compilation, and the share of the
    arithmetic limit that is reached.

    The share is the limit, in time, divided by the time of the faster of ours and compiled.
    """
    heads = (
        "part",
        "batch",
        "width",
        "ours, ms",
        "ours / compiled",
        "compiling, s, cold / warm",
        "break-even, cold / warm",
    )
    heads += ("eager / ours", "loader / ours", "limit, ms", "share", "memory ours / eager, MB")
    print(f"| {' | '.join(heads)} |")
    print(f"|{'---|' * len(heads)}")
    for row in record["rows"]:
        name = f"{row['part']}, {row['network']}" if row["network"] else row["part"]
        eager, loader, compiled = (
            f"{r['median']:.2f} ({r['min']:.2f}–{r['max']:.2f})" if (r := row["ratio"].get(variant)) else ""
            for variant in ("eager", "loader", "compiled")
        )
        rate = row["product_flops_per_second"]  # None in a record whose machine was measured wrongly
        limit = row["flops"] / rate * 1000 if rate else None
        best = (
            min(
                row["seconds"][variant]["median"]
                for variant in ("ours", "compiled")
                if variant in row["seconds"]
            )
            * 1000
        )
        compiling = " / ".join(f"{s:.0f}" for s in row.get("compile_seconds", {}).values())
        pays = " / ".join("never" if n is None else f"{n:,}" for n in row.get("pays_from_units", {}).values())
        memory = " / ".join(f"{row['memory'][variant] / 1e6:,.0f}" for variant in ("ours", "eager"))
        cells = (
            name,
            row["batch_size"],
            row["width"] or "",
            f"{row['seconds']['ours']['median'] * 1000:.4g}",
            compiled,
            compiling,
            pays,
            eager,
            loader,
            f"{limit:.3g}" if rate else "",
            f"{limit / best:.0%}" if rate else "",
            memory,
        )
        print(f"| {' | '.join(map(str, cells))} |")
    for name, seconds in record.get("load_seconds", {}).items():
        print(f"\nReading {name}: {seconds:.2f} s.")


def read_record(path: Path) -> dict:
    """Read a record that --out wrote. Raises UsageError if the file is something else."""
    try:
        record = json.loads(path.read_text())
        if record["kind"] != "speed":
            raise ValueError(f"kind {record['kind']}")
        return record
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = getattr(error, "strerror", None) or f"something else ({error})"
        raise UsageError(f"{path}: expected a result of this benchmark, found {found}") from None


def plan(args: argparse.Namespace) -> list[tuple[str, int, int, str]]:
    """(part, batch size, width, network) of every row."""
    sizes = [(batch, width) for width in args.width for batch in args.batch_size]
    network = network_name(args.network, "--network")
    rows = [("stage-1 step", batch, width, "") for batch, width in sizes]
    rows += [("stage-1 step, resnet", batch, width, "") for batch, width in sizes]
    rows += [
        ("stage-2 step", batch, width, network) for batch, width in sizes if batch <= args.stage2_batch_limit
    ]
    rows += [("matching step", 16, width, network) for width in args.width]
    rows += [("pool update", 64, 0, name) for name in dict.fromkeys([network, *POOL])]
    rows += [("classifier epoch", 128, 0, network), ("validation, n = 5", 128, args.width[0], network)]
    rows += [("generation", 500, width, "") for width in args.width]
    rows += [("ten stage-4 steps", 32, 0, network)]
    return [row for row in rows if row[0] in args.parts]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0])
    # what is timed
    parser.add_argument("--parts", nargs="+", choices=ROWS, default=list(ROWS), help="parts to time")
    parser.add_argument("--batch-size", nargs="+", type=positive_int, default=[64], help="real images a step")
    parser.add_argument(
        "--width", nargs="+", type=positive_int, default=[32, 64], help="channels of both players"
    )
    parser.add_argument(
        "--network", default="convnet", help="network of stage 2's pool and of the classifiers"
    )
    parser.add_argument(
        "--stage2-batch-limit", type=positive_int, default=512, help="largest batch of stage 2's rows"
    )
    parser.add_argument(
        "--data-dir",
        default="datasets",
        help="where CIFAR-10 lies, to time its reading; not needed for the rest",
    )
    # how
    parser.add_argument("--pairs", type=positive_int, default=5, help="turns of each variant of a row")
    parser.add_argument("--seconds", type=float, default=0.5, help="least duration of one timing, in seconds")
    parser.add_argument("--no-loader", action="store_true", help="leave the baseline `loader` out")
    parser.add_argument("--device", type=device_name, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=positive_int, help="CPU threads (default: torch's)")
    parser.add_argument(
        "--amp",
        action=argparse.BooleanOptionalAction,
        help="of ours: bf16 (default: where the device has the instructions)",
    )
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="time ours compiled, too"
    )
    parser.add_argument(
        "--channels-last",
        action=argparse.BooleanOptionalAction,
        help="of ours: memory layout (default: on CUDA)",
    )
    parser.add_argument(
        "--graphs", action=argparse.BooleanOptionalAction, help="of ours: CUDA graphs (default: on CUDA)"
    )
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
    name = str(find_device(args.device))
    on_cuda = name != "cpu"
    amp = multiplies_bf16(torch.device(name)) if args.amp is None else args.amp
    execution = {
        "amp": amp,
        "channels_last": args.channels_last,
        "graphs": on_cuda if args.graphs is None else args.graphs,
    }
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["continual"] if on_cuda else ["continual", "torch._dynamo"]
    )  # which the first optimiser would import
    settings = {
        **environment(torch.device(name)),
        "execution": execution,
        "threads": args.threads or torch.get_num_threads(),
        "least_seconds": args.seconds,
    }
    record = {"kind": "speed", "date": str(datetime.date.today()), "hardware": hardware(name), "rows": []}
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        record = read_record(args.out) if args.out.exists() else record
    record["commands"] = [*record.get("commands", []), "python " + " ".join(sys.argv)]
    precision = torch.bfloat16 if amp else torch.float32
    settings |= {
        "precision": str(precision),
        "product_flops_per_second": product_rate(name, precision, args.threads, 4 * args.seconds),
    }
    if not record.get("load_seconds"):
        if any(Path(args.data_dir).glob("cifar-10-batches-*")):
            start = time.perf_counter()
            load_data("cifar10", args.data_dir)
            record["load_seconds"] = {"CIFAR-10": time.perf_counter() - start}
        else:
            tell(f"reading CIFAR-10 is not timed: it is not in --data-dir {args.data_dir}")
    start, before = time.perf_counter(), record.get("minutes", 0)
    for part, batch, width, network in plan(args):
        key = {"part": part, "batch_size": batch, "width": width, "network": network}
        if any(all(row[k] == v for k, v in key.items()) for row in record["rows"]):
            continue
        variants = ["ours", *(["compiled"] if args.compile and part in COMPILED else []), "eager"] + (
            ["loader"] if part.startswith("stage") and not args.no_loader else []
        )
        task = (part, (batch, width, network), name, execution, args.threads)
        tell(f"{part}, batch {batch}, width {width}, {network}")
        try:
            row = time_row(context, task, variants, args.pairs, args.seconds)
        except MemoryError as error:
            tell(f"left out: {error}")
            continue
        record["rows"].append({**key, **settings, **row})
        record["minutes"] = before + (time.perf_counter() - start) / 60
        if args.out:
            write_json(args.out, record)
    print_table(record)
    return record


if __name__ == "__main__":
    main(parse_args())
