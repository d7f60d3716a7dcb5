"""Compare our continual learners with those of avalanche-lib 0.6.0 on the same stream, networks, memory and
seeds.

    pip install -r benchmarks/requirements-avalanche.txt
    python benchmarks/avalanche_check.py --data mnist --network mlp_w100 --out results/avalanche_mnist.json

Prints the final class-incremental average accuracy of both, as mean and sample standard deviation over seeds,
and their difference. Both start from the same initial weights and train on the same tasks in natural order
with plain SGD. Batches, random draws and buffers are each library's own. --out keeps the rows, and the same
command continues with those that are missing.
"""

import argparse
import contextlib
import datetime
import io
import json
import platform
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import mean, stdev

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Ctrl-C during the imports ends the process without a traceback

import torch
from torch.utils.data import TensorDataset

import continual
import data as datasets
from data import Data, load_data, to_float
from engine.environment import environment
from engine.files import write_json
from engine.runtime import make_runtime
from models import network_name
from replay.learner import Learner
from replay.metrics import accuracies, average_accuracy
from replay.tasks import split_classes
from utils import Parser, UsageError, cli, count, positive, positive_int

# Our name of a method -> the name of Avalanche's strategy.
STRATEGIES = {
    "finetune": "Naive",
    "joint": "JointTraining",
    "er": "Replay",
    "der++": "DER",
    "er-ace": "ER_ACE",
    "gdumb": "GDumb",
}
ALPHA, BETA = 0.5, 0.5  # of DER++


def avalanche_accuracy(method: str, args: argparse.Namespace, data: Data, seed: int) -> float:
    """Final average accuracy of Avalanche's strategy."""
    try:
        from avalanche.benchmarks import class_incremental_benchmark, with_task_labels
        from avalanche.benchmarks.utils import DataAttribute, make_avalanche_dataset
        from avalanche.training import supervised
    except ImportError as error:
        raise UsageError(
            f"avalanche-lib is not installed ({error}): pip install -r benchmarks/requirements-avalanche.txt"
        ) from None

    def dataset(images):
        tensors = TensorDataset(to_float(images.images), images.labels)
        labels = DataAttribute(images.labels.tolist(), "targets")
        tasks = DataAttribute(
            [0] * len(images), "targets_task_labels", use_in_getitem=True
        )  # DER and ER-ACE of Avalanche unpack it
        return make_avalanche_dataset(tensors, data_attributes=[labels, tasks])

    classes = split_classes(data.info.num_classes, args.num_tasks, None)
    order = [label for labels in classes for label in labels]
    sizes = {i: len(labels) for i, labels in enumerate(classes)}
    benchmark = class_incremental_benchmark(
        {"train": dataset(data.train), "test": dataset(data.test)},
        class_order=order,
        num_classes_per_exp=list(sizes.values()),
    )
    benchmark = with_task_labels(benchmark)
    learner = Learner(
        0,
        network_name(args.network, "--network"),
        data.info,
        args.lr,
        None,
        seed,
        make_runtime("cpu", False, False),
    )
    torch.manual_seed(seed)
    settings = {
        "model": learner.model,
        "optimizer": learner.optim,
        "train_mb_size": args.batch_size,
        "train_epochs": args.epochs,
    }
    settings |= {"criterion": torch.nn.CrossEntropyLoss(), "device": "cpu", "evaluator": None}
    if method in ("er", "der++", "er-ace", "gdumb"):
        settings |= {"mem_size": args.buffer_size}
    if method in ("der++", "er-ace"):
        settings |= {"batch_size_mem": args.batch_size}
    if method == "der++":
        settings |= {"alpha": ALPHA, "beta": BETA}
    if method == "gdumb":
        settings |= {"train_epochs": args.gdumb_epochs}
    strategy = getattr(supervised, STRATEGIES[method])(**settings)
    if method == "joint":
        strategy.train(benchmark.train_stream)
    else:
        for experience in benchmark.train_stream:
            strategy.train(experience)
    return average_accuracy(
        [accuracies(strategy.model, data.test, classes, data.info.num_classes)["class-il"]]
    )


def our_accuracy(method: str, args: argparse.Namespace, data: Data, seed: int) -> float:
    """Final average accuracy of our method."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--tag run --results-dir {folder} --data {args.data} --data-dir {args.data_dir} --num-tasks {args.num_tasks} --device cpu"
        flags += f" --method {method} --pool {args.network} --lr {args.lr} --batch-size {args.batch_size} --epochs {args.epochs}"
        flags += f" --seed {seed} --save-interval 0" + (
            f" --alpha {ALPHA} --beta {BETA}" if method == "der++" else ""
        )
        if method in ("er", "der++", "er-ace", "gdumb"):
            flags += f" --buffer-size {args.buffer_size}"
        if method in ("er", "der++"):
            flags += " --offer task"  # as Avalanche does
        if method == "gdumb":
            flags += f" --retrain-steps {args.gdumb_epochs * -(-args.buffer_size // args.batch_size)}"
        with contextlib.redirect_stdout(io.StringIO()):
            results = continual.main(continual.parse_args(flags.split()))
    return results["mean"]["class-il"]["average_accuracy"]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--data", choices=datasets.NAMES, default="digits", help="image set")
    parser.add_argument("--data-dir", default="datasets", help="where its files lie or are downloaded to")
    parser.add_argument(
        "--num-tasks", type=positive_int, default=5, help="parts that the classes are split into"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=STRATEGIES,
        default=list(STRATEGIES),
        help="methods to compare, by our names",
    )
    parser.add_argument("--network", default="mlp_w100", help="network to train")
    parser.add_argument("--buffer-size", type=positive_int, default=200, help="images in memory")
    parser.add_argument(
        "--batch-size",
        type=positive_int,
        default=32,
        help="images of the stream, and as many of the memory, in each step",
    )
    parser.add_argument("--epochs", type=positive_int, default=5, help="passes over a task")
    parser.add_argument(
        "--gdumb-epochs", type=positive_int, default=50, help="passes of GDumb over its buffer"
    )
    parser.add_argument("--lr", type=positive, default=0.03, help="SGD's learning rate")
    parser.add_argument("--repeats", type=positive_int, default=5, help="number of seeds")
    parser.add_argument("--seed", type=count, default=0, help="the first seed")
    parser.add_argument("--out", help="JSON file to keep the rows in")
    return parser.parse_args(argv)


@cli
def main(args: argparse.Namespace) -> list[dict]:
    data = load_data(args.data, args.data_dir)
    settings = {
        name: value
        for name, value in vars(args).items()
        if name not in ("out", "methods", "data_dir", "repeats")
    }
    path = Path(args.out) if args.out else None
    record = {
        "kind": "avalanche",
        "date": datetime.date.today().isoformat(),
        "hardware": platform.processor() or platform.machine(),
    }
    record |= {"commands": ["python " + " ".join(sys.argv)], "minutes": 0.0, "rows": []}
    try:
        record = json.loads(path.read_text()) if path and path.exists() else record
        rows, start = record["rows"], time.perf_counter()
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"--out {path}: expected a record of this benchmark, found something else") from None
    for method in args.methods:
        row = next((row for row in rows if row["method"] == method and row["settings"] == settings), None)
        if row is None:
            row = {
                "method": method,
                "settings": settings,
                "accs": [],
                "avalanche_accs": [],
                **environment(torch.device("cpu")),
            }
            rows.append(row)
        for seed in range(args.seed + len(row["accs"]), args.seed + args.repeats):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # warnings of the other library
                row["avalanche_accs"].append(round(avalanche_accuracy(method, args, data, seed), 4))
            row["accs"].append(round(our_accuracy(method, args, data, seed), 4))
            row["n"] = len(row["accs"])
            for prefix in ("", "avalanche_"):
                accs = row[prefix + "accs"]
                row |= {prefix + "mean": mean(accs), prefix + "std": stdev(accs) if len(accs) > 1 else None}
            record["minutes"] = round(record["minutes"] + (time.perf_counter() - start) / 60, 2)
            start = time.perf_counter()
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, record)
        ours, theirs = (f"{row[p + 'mean']:6.2f} ± {row[p + 'std'] or 0:.2f}" for p in ("", "avalanche_"))
        difference = row["mean"] - row["avalanche_mean"]
        print(
            f"{method:9} ours {ours}   avalanche {STRATEGIES[method]:14} {theirs}   {difference:+.2f}",
            flush=True,
        )
    return rows


if __name__ == "__main__":
    main(parse_args())
