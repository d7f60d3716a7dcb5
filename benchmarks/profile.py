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
    # not this folder, whose profile.py would hide Python's
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends without a traceback

from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from benchmarks.parts import PARTS, POOL
from engine.runtime import add_execution_flags, make_runtime
from models import network_name
from utils import Parser, cli, positive_int


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0])
    # what
    parser.add_argument("--part", choices=PARTS, default="stage-1 step", help="part of the stages to profile")
    parser.add_argument("--batch-size", type=positive_int, default=64, help="real images a step")
    parser.add_argument("--width", type=positive_int, default=64, help="channels of both players")
    parser.add_argument("--network", default=POOL[0], help="network of stage 2's pool and of the classifiers")
    parser.add_argument("--units", type=positive_int, default=5, help="units (steps, epochs) to profile")
    add_execution_flags(parser)
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
    network = network_name(args.network, "--network")
    unit = PARTS[args.part](runtime, args.batch_size, args.width, network)
    for _ in range(6 if runtime.graphs else 2):  # allocations, kernel choice, capture
        unit()
    runtime.synchronize()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda
    with profile(activities=activities, acc_events=True) as profiler:
        start = time.perf_counter()
        for _ in range(args.units):
            unit()
        issued = time.perf_counter() - start
        runtime.synchronize()
        seconds = time.perf_counter() - start
    averages = profiler.key_averages()
    order = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    print(averages.table(sort_by=order, row_limit=args.rows, max_name_column_width=60))
    milliseconds = seconds / args.units * 1000
    print(
        f"{args.part}, batch {args.batch_size}, width {args.width}: {milliseconds:.2f} ms with the profiler"
    )
    print(f"the host needs {issued / args.units * 1000:.2f} ms to issue one")
    if on_cuda:
        kernels = sorted((e.time_range.start, e.time_range.end) for e in profiler.events() if is_kernel(e))
        busy = reached = 0.0
        for begin, end in kernels:  # overlapping kernels count once
            busy += max(0.0, end - max(begin, reached))
            reached = max(reached, end)
        share = busy / 1e6 / seconds
        print(f"{len(kernels) / args.units:.0f} kernels each; the device works {share:.0%} of the time")
    else:
        inside = sum(event.self_cpu_time_total for event in averages) / 1e6
        print(f"operators take {inside / seconds:.0%} of the time, Python and what is between them the rest")
    if args.trace:
        profiler.export_chrome_trace(str(args.trace))


if __name__ == "__main__":
    main(parse_args())
