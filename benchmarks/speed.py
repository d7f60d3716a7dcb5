"""Time the parts of the four stages, eager and compiled, against two plain loops and the arithmetic limit, in alternating runs.

    python benchmarks/speed.py --device cpu --out benchmarks/results/DATE_speed_cpu.json

Each row is timed in one process a variant, in turn: `ours` (the flags below, uncompiled), `compiled` (that with --compile), `eager`
(the same loop on resident tensors in float32, as plain PyTorch runs it, on CUDA with TF32 in convolutions) and, for steps of the
stages, `loader` (that, fed by a DataLoader of four workers which is started again at each use, with the losses read at each step, in
the manner of the original code). Compiling is timed apart, with an empty cache and again with the cache that it left. Prints a
table; --out keeps it as JSON, added to after each row, so that the same command goes on. --table FILE prints a kept one again.
"""

import argparse
import datetime
import gc
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not this folder, whose profile.py is not Python's

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import flop_registry

import continual
from data import DATASETS, Data, ImageSet, load_data
from gen_condense import train_gan
from learner import Continual
from memory import Buffer, Memory
from methods import METHODS, Learner
from models import build_classifier, build_gan, network_name
from models.gan import GAN
from pool_match import Pool, train_match
from runtime import Draws, Runtime, device_name, find_device, make_runtime, multiplies_bf16, peak_memory
from sources import Generated, generate
from utils import FailedRun, Parser, UsageError, cli, environment, positive_int, tell, write_json
from validate import RECIPES, train_steps, validate_group

INFO = DATASETS["cifar10"].info
POOL = ["convnet", "resnet10", "resnet18_w32", "resnet10_ap", "resnet18_ap"]
FOREVER = 10**9
CONFIG = {"num_classes": 10, "channels": 3, "image_size": 32, "z_dim": 100}


class Pictures(Dataset):
    """Single images in [-1, 1], converted one by one as they are asked for."""

    def __init__(self, images: ImageSet):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.images.images[i].float() / 127.5 - 1, int(self.images.labels[i])


class Loaded:
    """Takes the place of an ImageSet: batches from a DataLoader, whatever is asked for."""

    def __init__(self, images: ImageSet, batch_size: int, device: torch.device, uses: int):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # four workers on fewer cores
            self.loader = DataLoader(Pictures(images), batch_size, shuffle=True, num_workers=4, drop_last=True)
        self.device, self.uses, self.left = device, uses, 0  # batches taken before the loader is started again

    def __len__(self) -> int:
        return len(self.loader.dataset)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        if self.left == 0:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.iterator, self.left = iter(self.loader), min(self.uses, len(self.loader))
        self.left -= 1
        images, labels = next(self.iterator)
        return images.to(self.device), labels.to(self.device)


class LoadedPool(Pool):
    """A pool whose updates take their batches from a loader of their own."""

    def train_step(self, train: ImageSet, index: Tensor, choices: torch.Generator) -> None:
        super().train_step(self.loaded, index, choices)


def images_on(device: torch.device, count: int = 50_000) -> ImageSet:
    """Noise in the shape of CIFAR-10: what is in the images costs no time."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=draw)
    return ImageSet(images, torch.randint(10, (count,), generator=draw)).to(device)


def pair(width: int, runtime: Runtime, gan: str = "dim") -> GAN:
    return GAN(*(runtime.place(player) for player in build_gan(CONFIG | {"gan": gan, "width": width})), 1e-4)


def read_losses(steps: Iterator, at_each_step: bool) -> Callable[[], object]:
    """A unit of work: the next step, and as plain loops do, a look at its losses."""
    if at_each_step:
        return lambda: [loss.item() for loss in next(steps).losses.values()]
    return lambda: next(steps)


# Rows: what one unit of work is. Each takes (variant, runtime, batch_size, width, network).


def stage1(variant: str, runtime: Runtime, batch_size: int, width: int, network: str, gan: str = "dim") -> Callable[[], object]:
    images = images_on(torch.device("cpu") if variant == "loader" else runtime.device)
    train = Loaded(images, batch_size, runtime.device, FOREVER) if variant == "loader" else images
    steps = train_gan(pair(width, runtime, gan), train, epochs=FOREVER, batch_size=batch_size, gp_weight=10, seed=0, runtime=runtime)
    return read_losses(steps, variant == "loader")


def stage2(variant: str, runtime: Runtime, batch_size: int, width: int, network: str) -> Callable[[], object]:
    """With 16 pool updates."""
    images = images_on(torch.device("cpu") if variant == "loader" else runtime.device)
    pool = (LoadedPool if variant == "loader" else Pool)([network], INFO, 0.01, "color_crop", 0, runtime)
    if variant == "loader":
        pool.loaded, images = Loaded(images, batch_size, runtime.device, 16), Loaded(images, batch_size, runtime.device, FOREVER)
    matching = {"match": "logit", "match_weight": 0.01, "match_strategy": "color_crop_cutout", "metric": None, "bias": False, "fc": False}
    common = {"epochs": FOREVER, "batch_size": batch_size, "gp_weight": 10, "seed": 0, "runtime": runtime}
    return read_losses(train_match(pair(width, runtime), pool, images, pool_steps=16, **matching, **common), variant == "loader")


def pool_update(variant: str, runtime: Runtime, batch_size: int, width: int, network: str) -> Callable[[], object]:
    images = images_on(runtime.device)
    pool = Pool([network], INFO, 0.01, "color_crop", 0, runtime)
    pool.turn(0, 0, 1)
    index, choices = torch.arange(batch_size, device=runtime.device), torch.Generator()
    return lambda: pool.train_step(images, index, choices)


def classifier_epoch(variant: str, runtime: Runtime, batch_size: int, width: int, network: str) -> Callable[[], object]:
    """500 images resident on the device: IPC 50."""
    images, labels = images_on(runtime.device, 500).batch(torch.arange(500, device=runtime.device))
    recipe, draws = replace(RECIPES["dim"], epochs=FOREVER, batch_size=batch_size), Draws.seeded(0, runtime.device)
    classifier = runtime.place(build_classifier(network, INFO))
    steps = train_steps(classifier, iter(lambda: (images, labels), None), recipe, draws, runtime)
    return lambda: [next(steps) for _ in range(-(-500 // batch_size))]


def validation(
    variant: str, runtime: Runtime, batch_size: int, width: int, network: str, epochs: int | None = None, ipc: int = 10, tests: int = 1000
) -> Callable[[], object]:
    """Five classifiers of ten epochs (on CUDA a hundred) on the stream of a generator, IPC 10; ours with graphs side by side."""
    data, generator = Data(INFO, None, None, images_on(runtime.device, tests)), pair(width, runtime).generator
    source = Generated(generator, ipc, False, 0, runtime)
    recipe = replace(RECIPES["dim"], epochs=epochs or (100 if runtime.device.type == "cuda" else 10), batch_size=batch_size)
    groups = [range(5)] if runtime.graphs else [[seed] for seed in range(5)]
    return lambda: [validate_group(network, source, data, recipe, group, runtime) for group in groups]


def generation(variant: str, runtime: Runtime, batch_size: int, width: int, network: str) -> Callable[[], object]:
    """`batch_size` images."""
    generator, draws = pair(width, runtime).generator, Draws.seeded(0, runtime.device)
    labels = torch.arange(batch_size, device=runtime.device) % 10
    return lambda: generate(generator, labels, draws.device, runtime)


def continual_steps(variant: str, runtime: Runtime, batch_size: int, width: int, network: str) -> Callable[[], object]:
    """Ten steps of experience replay: `batch_size` images of the task and as many from a buffer of 500."""
    flags = continual.parse_args(["--method", "er", "--batch-size", str(batch_size), "--epochs", str(FOREVER)])
    memory = Memory(None, Buffer(INFO, runtime.device, max_images=500), None, 0)
    learners = [Learner(0, network, INFO, flags.lr, None, 0, runtime)]
    tasks, options = [images_on(runtime.device, 5000)], continual.make_options(flags)
    steps = Continual(METHODS["er"], options, tasks, [list(range(10))], learners, memory, INFO, 0, runtime).stream_steps(0, 0)
    return lambda: [next(steps) for _ in range(10)]


COMPILED = ("stage-2 step", "pool update", "classifier epoch", "validation, n = 5", "ten stage-4 steps")  # the rest has nothing to compile
ROWS = {
    "stage-1 step": stage1,
    "stage-1 step, resnet": partial(stage1, gan="resnet"),
    "stage-2 step": stage2,
    "pool update": pool_update,
    "classifier epoch": classifier_epoch,
    "validation, n = 5": validation,
    "generation": generation,
    "ten stage-4 steps": continual_steps,
}


class CountFlops(TorchDispatchMode):
    """Floating-point operations of the products and convolutions in the block, those of gradients of gradients too.

    (torch's FlopCounterMode follows modules as well, and refuses torch.autograd.grad within a step.)
    """

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def serve(pipe, variant: str, row: str, size: tuple, device: str, execution: dict, threads: int | None, cache: str) -> None:
    """A process of one variant of one row: answers ("run", n) with the seconds of n units, ("flops",), ("memory",).

    cache: folder for what torch.compile keeps.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    if variant in ("ours", "compiled"):
        runtime = make_runtime(device, **execution, compiled=variant == "compiled")
    else:
        runtime = Runtime(torch.device(device))
        if runtime.device.type == "cuda":
            torch.cuda.set_device(runtime.device)
    try:
        unit = ROWS[row](variant, runtime, *size)
        pipe.send("ready")
        while (request := pipe.recv())[0] != "end":
            if request[0] == "run":
                runtime.synchronize()
                start = time.perf_counter()
                for _ in range(request[1]):
                    unit()
                runtime.synchronize()
                pipe.send(time.perf_counter() - start)
            elif request[0] == "flops":
                with CountFlops() as counter:
                    unit()
                pipe.send(counter.total)
            else:
                pipe.send(peak_memory(runtime.device))
    except (FailedRun, RuntimeError, UsageError) as error:
        pipe.send(f"failed: {str(error).splitlines()[0]}")
    if variant == "loader":
        del unit  # its worker processes end with it
        gc.collect()


class Variant:
    """One process that times one variant of a row when it is asked to."""

    def __init__(self, context, *task):
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=serve, args=(end, *task))
        self.process.start()
        end.close()
        self.take()

    def take(self):
        """The process's answer."""
        try:
            answer = self.pipe.recv()
        except EOFError:
            raise RuntimeError("the process that times a row ended") from None
        if isinstance(answer, str) and answer.startswith("failed"):
            raise MemoryError(answer)
        return answer

    def ask(self, *request):
        self.pipe.send(request)
        return self.take()

    def end(self) -> None:
        if self.process.is_alive():
            self.pipe.send(("end",))
        self.process.join()


def time_row(context, task: tuple, variants: list[str], pairs: int, least: float) -> dict:
    """Median, least and most seconds of each variant's unit over `pairs` turns, and the ratios turn by turn."""
    with tempfile.TemporaryDirectory() as cache:
        return _time_row(context, (*task, cache), variants, pairs, least)


def _time_row(context, task: tuple, variants: list[str], pairs: int, least: float) -> dict:
    started, first = {}, {}
    try:
        if "compiled" in variants:
            cold = Variant(context, "compiled", *task)
            first["cold"] = cold.ask("run", 1)
            cold.end()
        for variant in variants:
            started[variant] = Variant(context, variant, *task)
        for variant, timed in started.items():
            first[variant] = timed.ask("run", 1)
            timed.ask("run", 4 if task[2].startswith("cuda") else 1)  # warm-up: allocations, kernel choice, capture
        units = {v: max(1, round(least / max(timed.ask("run", 1), 1e-9))) for v, timed in started.items()}
        seconds = {variant: [] for variant in variants}
        for _ in range(pairs):
            for variant, timed in started.items():
                seconds[variant].append(timed.ask("run", units[variant]) / units[variant])
        row = {"seconds": {v: spread(values) for v, values in seconds.items()}, "pairs": pairs}
        row["ratio"] = {v: spread([b / a for a, b in zip(seconds["ours"], seconds[v], strict=True)]) for v in variants if v != "ours"}
        if "compiled" in variants:  # how many times as fast as uncompiled
            row["ratio"]["compiled"] = spread([a / b for a, b in zip(seconds["ours"], seconds["compiled"], strict=True)])
        if "compiled" in variants:
            usual = row["seconds"]["compiled"]["median"]
            gained = row["seconds"]["ours"]["median"] - usual
            row["compile_seconds"] = {"cold": max(0.0, first["cold"] - usual), "warm": max(0.0, first["compiled"] - usual)}
            row["pays_from_units"] = {name: math.ceil(s / gained) if gained > 0 else None for name, s in row["compile_seconds"].items()}
        row["flops"] = started["eager"].ask("flops")
        row["memory"] = {v: timed.ask("memory") for v, timed in started.items()}
        return row
    finally:
        for timed in started.values():
            timed.end()


def hardware(device: str) -> str:
    """The device's name; of a CPU also how many cores this process may use."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    cpus = Path("/proc/cpuinfo")
    models = (
        [line.partition(":")[2].strip() for line in cpus.read_text().splitlines() if line.startswith("model name")] if cpus.exists() else []
    )
    return f"{len(os.sched_getaffinity(0)) if models else os.cpu_count()} cores of {models[0] if models else platform.machine()}"


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def product_rate(device: str, dtype: torch.dtype, threads: int | None, seconds: float = 2.0) -> float:
    """FLOP a second of matrix products, the best of those that fit into about `seconds`, by whichever library is faster at them.

    On a CPU `@` and convolutions go through different ones. The matrices grow while the time allows: where bf16 is emulated a large
    product takes minutes.
    """
    if threads:
        torch.set_num_threads(threads)
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    best, end = 0.0, time.perf_counter() + seconds
    for n in (64, 128, 256, 512, 1024, 2048, 4096, 8192):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        picture, kernel = a.view(1, n, -1, 32), b.view(n, n, 1, 1)  # a 1 x 1 convolution is the same product
        longest = 0.0
        for product in (lambda: a @ b, lambda: F.conv2d(picture, kernel)):  # noqa: B023  called within the turn
            for _ in range(3):
                wait()
                start = time.perf_counter()
                with torch.no_grad():
                    product()
                wait()
                took = time.perf_counter() - start
                best, longest = max(best, 2 * n**3 / took), max(longest, took)
        if time.perf_counter() + 6 * 8 * longest > end:  # the next size has eight times the work
            break
    return best


def print_table(record: dict) -> None:
    """Markdown: medians, ratios with their spread, what compiling costs, and the share of the arithmetic limit that is reached.

    The share is the limit over the faster of ours and compiled.
    """
    heads = ("part", "batch", "width", "ours, ms", "ours / compiled", "compiling, s, cold / warm", "pays from, cold / warm")
    heads += ("eager / ours", "loader / ours", "limit, ms", "share", "memory ours / eager, MB")
    print(f"| {' | '.join(heads)} |")
    print(f"|{'---|' * len(heads)}")
    for row in record["rows"]:
        name = f"{row['part']}, {row['network']}" if row["network"] else row["part"]
        eager, loader, compiled = (
            f"{r['median']:.2f} ({r['min']:.2f}–{r['max']:.2f})" if (r := row["ratio"].get(variant)) else ""
            for variant in ("eager", "loader", "compiled")
        )
        limit = row["flops"] / row["product_flops_per_second"] * 1000
        best = min(row["seconds"][variant]["median"] for variant in ("ours", "compiled") if variant in row["seconds"]) * 1000
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
            f"{limit:.3g}",
            f"{limit / best:.0%}",
            memory,
        )
        print(f"| {' | '.join(map(str, cells))} |")
    for name, seconds in record.get("load_seconds", {}).items():
        print(f"\nReading {name}: {seconds:.2f} s.")


def read_record(path: Path) -> dict:
    """A record that --out wrote. Raises UsageError where it is none."""
    try:
        record = json.loads(path.read_text())
        if record["kind"] != "speed":
            raise ValueError(f"kind {record['kind']}")
        return record
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: expected a result of this benchmark, found something else ({error})") from None


def plan(args: argparse.Namespace) -> list[tuple[str, int, int, str]]:
    """(part, batch size, width, network) of every row."""
    sizes = [(batch, width) for width in args.width for batch in args.batch_size]
    network = network_name(args.network)
    rows = [("stage-1 step", batch, width, "") for batch, width in sizes]
    rows += [("stage-1 step, resnet", batch, width, "") for batch, width in sizes]
    rows += [("stage-2 step", batch, width, network) for batch, width in sizes if batch <= args.stage2_batch_limit]
    rows += [("pool update", 64, 0, name) for name in dict.fromkeys([network, *POOL])]
    rows += [("classifier epoch", 128, 0, network), ("validation, n = 5", 128, args.width[0], network)]
    rows += [("generation", 500, width, "") for width in args.width]
    rows += [("ten stage-4 steps", 32, 0, network)]
    return [row for row in rows if row[0] in args.parts]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0])
    # what is timed
    parser.add_argument("--parts", nargs="+", choices=ROWS, default=list(ROWS), help="which")
    parser.add_argument("--batch-size", nargs="+", type=positive_int, default=[64], help="real images a step")
    parser.add_argument("--width", nargs="+", type=positive_int, default=[32, 64], help="channels of both players")
    parser.add_argument("--network", default="convnet", help="of stage 2's pool and of the classifiers")
    parser.add_argument("--stage2-batch-limit", type=positive_int, default=512, help="largest batch of stage 2's rows")
    parser.add_argument("--data-dir", default="datasets", help="where CIFAR-10 lies, to time its reading; not needed for the rest")
    # how
    parser.add_argument("--pairs", type=positive_int, default=5, help="turns of each row")
    parser.add_argument("--seconds", type=float, default=0.5, help="least length of one timing")
    parser.add_argument("--no-loader", action="store_true", help="leave the baseline `loader` out")
    parser.add_argument("--device", type=device_name, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=positive_int, help="of the CPU (default: torch's)")
    parser.add_argument(
        "--amp", action=argparse.BooleanOptionalAction, help="of ours: bf16 (default: where the device has the instructions)"
    )
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="time ours compiled, too")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, help="of ours: memory layout (default: on CUDA)")
    parser.add_argument("--graphs", action=argparse.BooleanOptionalAction, help="of ours: CUDA graphs (default: on CUDA)")
    # result
    parser.add_argument("--out", type=Path, help="JSON to write, or to go on with")
    parser.add_argument("--table", type=Path, help="print a kept result and end")
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
    execution = {"amp": amp, "channels_last": args.channels_last, "graphs": on_cuda if args.graphs is None else args.graphs}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["continual"] if on_cuda else ["continual", "torch._dynamo"])  # the first optimiser imports it
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
    settings |= {"precision": str(precision), "product_flops_per_second": product_rate(name, precision, args.threads, 4 * args.seconds)}
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
