"""Where the time of a step goes: operators, kernel launches, and how long the device waits for the host.

    python benchmarks/profile.py --part "stage-1 step" --batch-size 128 --width 196

Prints a table of the operators that take most of the time. --trace FILE keeps the timeline for
https://ui.perfetto.dev.
"""

import argparse
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

from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from benchmarks.parts import POOL, ROWS
from engine.runtime import make_runtime
from models import network_name
from utils import Parser, cli, device_name, positive_int


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0])
    # what
    parser.add_argument("--part", choices=ROWS, default="stage-1 step", help="part of the stages to profile")
    parser.add_argument("--batch-size", type=positive_int, default=64, help="real images a step")
    parser.add_argument("--width", type=positive_int, default=64, help="channels of both players")
    parser.add_argument("--network", default=POOL[0], help="network of stage 2's pool and of the classifiers")
    parser.add_argument(
        "--units",
        type=positive_int,
        default=5,
        help="units of work to profile: steps, epochs or whatever the part counts",
    )
    # how
    parser.add_argument("--device", type=device_name, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--amp",
        action=argparse.BooleanOptionalAction,
        help="bf16 autocast (default: where the device has the instructions)",
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="fuse classifiers and pool networks by torch.compile",
    )
    parser.add_argument(
        "--channels-last", action=argparse.BooleanOptionalAction, help="memory layout (default: on CUDA)"
    )
    parser.add_argument("--graphs", action=argparse.BooleanOptionalAction, default=False, help="CUDA graphs")
    # result
    parser.add_argument("--rows", type=positive_int, default=20, help="operators in the table")
    parser.add_argument("--trace", type=Path, help="write the timeline here")
    return parser.parse_args(argv)


def is_kernel(event: FunctionEvent) -> bool:
    """Whether the event is work of the device, not a range that the host marked."""
    return event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)


@cli
def main(args: argparse.Namespace) -> None:
    runtime = make_runtime(args.device, args.amp, args.channels_last, args.graphs, args.compile)
    on_cuda = runtime.device.type == "cuda"
    unit = ROWS[args.part](
        "ours", runtime, args.batch_size, args.width, network_name(args.network, "--network")
    )
    for _ in range(6 if runtime.graphs else 2):  # allocations, kernel choice, capture
        unit()
    runtime.synchronize()
    with profile(
        activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda, acc_events=True
    ) as profiler:
        start = time.perf_counter()
        for _ in range(args.units):
            unit()
        issued = time.perf_counter() - start
        runtime.synchronize()
        seconds = time.perf_counter() - start
    averages = profiler.key_averages()
    print(
        averages.table(
            sort_by="self_device_time_total" if on_cuda else "self_cpu_time_total",
            row_limit=args.rows,
            max_name_column_width=60,
        )
    )
    print(
        f"{args.part}, batch {args.batch_size}, width {args.width}: {seconds / args.units * 1000:.2f} ms "
        "each under the profiler"
    )
    print(f"the host needs {issued / args.units * 1000:.2f} ms to issue one")
    if on_cuda:
        kernels = sorted((e.time_range.start, e.time_range.end) for e in profiler.events() if is_kernel(e))
        busy = reached = 0.0
        for begin, end in kernels:  # overlapping kernels count once
            busy += max(0.0, end - max(begin, reached))
            reached = max(reached, end)
        print(
            f"{len(kernels) / args.units:.0f} kernels each; the device works {busy / 1e6 / seconds:.0%} of "
            "the time and waits for the rest"
        )
    else:
        inside = sum(event.self_cpu_time_total for event in averages) / 1e6
        print(f"operators take {inside / seconds:.0%} of the time, Python and what is between them the rest")
    if args.trace:
        profiler.export_chrome_trace(str(args.trace))


if __name__ == "__main__":
    main(parse_args())
