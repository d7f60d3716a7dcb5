"""Compare the scores that ddranking 0.2.0 gives an exported CIFAR-10 set with those of our own evaluation by
the same formulas.

    pip install -r benchmarks/requirements-ddranking.txt    # in an environment of its own: it needs numpy < 2
    python benchmarks/ddranking_check.py --set results/cifar10_export/ipc10.pt --out results/ddranking.json

DD-Ranking (Li et al. 2025, arXiv:2505.13300) with hard labels takes the accuracies of ConvNet-3 (width 128)
trained on the set (syn), on as many random real images (random), and on all real images (full: given, not
trained here). With score(x) = (e^x - e^-1) / (e - e^-1),
    label-robust score         LRS = score(lambda (syn - random) - (1 - lambda) (full - syn))
    augmentation-robust score  ARS = score(lambda (syn - random) + (1 - lambda) (syn' - random')), ' = without
    augmentation
and lambda = 1/2. If accuracies are fractions, a score lies in 0..1; the package puts percentages into e^x.
The package draws its seed from the clock, tests on the test set during training and reports the best epoch
there, and gives the random images the best of five learning rates there. Ours uses the seeds of --seed, the
last epoch, and one learning rate for both. The package trains on each set anew for each score; ours uses the
trainings with augmentation for both scores.
"""

import argparse
import contextlib
import datetime
import io
import json
import math
import os
import platform
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import mean, stdev
from unittest import mock

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Ctrl-C during the imports ends the process without a traceback

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data import Data, ImageSet, load_data, to_float
from engine.environment import environment
from engine.files import write_json
from engine.runtime import make_runtime
from engine.seeds import derive_seed
from scoring.distilled import read_distilled
from scoring.evaluation import validate_group
from scoring.recipes import Recipe
from scoring.sources import Fixed, Real
from utils import Parser, UsageError, cli, count, number, positive, positive_int

# ConvNet-3 on all of CIFAR-10, as the condensation papers report it (DC, arXiv:2006.05929, and those after
# it)
FULL = 84.8
STRATEGY = "color_crop_cutout_flip_scale_rotate"  # one of them for each batch, as in the package's DSA
DSA = {
    "flip": 0.5,
    "brightness": 1.0,
    "saturation": 2.0,
    "contrast": 0.5,
    "crop": 0.125,
    "cutout": 0.5,
    "scale": 1.2,
    "rotate": 15.0,
}
MEAN, STD = (
    torch.tensor(values).view(1, 3, 1, 1) for values in ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
)  # the package's
PATCHED = (
    "torchvision's CIFAR10, which it would download: the images of --data-dir, as pictures",
    "both: test_interval, fixed at 10 (label) and 20 (augmentation) epochs, is --test-interval",
    "AugmentationRobustScore with hard labels: teacher_models and test_loader_real are read and never set; "
    "set to None and test_loader_syn",
    "AugmentationRobustScore with tensors: get_random_data_tensors is called without its class_map; passed",
    "LabelRobustScoreHard: each score is put down twice, with which its file of results cannot be written; "
    "not written",
    "both: fewer test images, as --test-images says, the same for ours",
    "LabelRobustScoreHard: the accuracy of the whole set, which its cache lacks, is --full-accuracy",
)
# method of the package -> the accuracies that its calls return, in their order; one method for LRS, two for
# ARS
TRAININGS = {
    "_compute_hard_label_metrics_helper": ("syn", "random"),
    "_compute_with_aug_metrics_helper": ("syn_aug", "random_aug"),
    "_compute_without_aug_metrics_helper": ("syn_plain", "random_plain"),
}
RUNS = tuple(name for names in TRAININGS.values() for name in names)


def score(x: float) -> float:
    """(e^x - e^-1) / (e - e^-1): 0 at -1, 1 at 1."""
    return (math.exp(x) - math.exp(-1)) / (math.exp(1) - math.exp(-1))


def scores(accs: dict[str, float], full: float, weight: float = 0.5) -> dict[str, float]:
    """LRS and ARS from accuracies in one unit, fractions or percent.

    accs: syn and random with augmentation, syn_plain and random_plain without. full: accuracy on all real
    images. weight: lambda.
    """
    gain, plain = accs["syn"] - accs["random"], accs["syn_plain"] - accs["random_plain"]
    return {
        "lrs": score(weight * gain - (1 - weight) * (full - accs["syn"])),
        "ars": score(weight * gain + (1 - weight) * plain),
    }


class Binary(torch.utils.data.Dataset):
    """A replacement for torchvision's CIFAR10 that serves images already in memory."""

    data: Data

    def __init__(self, root, train: bool = True, transform=None, **options):
        images = self.data.train if train else self.data.test
        self.images, self.targets, self.transform = (
            images.images.permute(0, 2, 3, 1).numpy(),
            images.labels.tolist(),
            transform,
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple:
        return self.transform(Image.fromarray(np.ascontiguousarray(self.images[index]))), self.targets[index]


@contextlib.contextmanager
def quiet_folder():
    """Run the block in a temporary folder where the package may write, and hide its output and warnings."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                yield
        finally:
            os.chdir(before)


def listen(scorer, heard: dict[str, list[float]]) -> None:
    """Record in `heard` the accuracies that each method of TRAININGS returns; `scorer` otherwise works as
    before."""

    def listening(name: str, method):
        def call(**given):
            found = method(**given)
            heard[name].append(found[0])
            return found

        return call

    for name in TRAININGS.keys() & set(dir(scorer)):
        setattr(scorer, name, listening(name, getattr(scorer, name)))


def package_scores(images: Tensor, data: Data, args: argparse.Namespace) -> dict[str, list[float]]:
    """Run the package on images uint8 (N, 3, 32, 32), sorted by class; return each accuracy and score of each
    run."""
    try:
        from ddranking import metrics
        from ddranking.metrics import aug_robust, hard_label
        from torchvision import datasets
    except ImportError as error:
        raise UsageError(
            f"ddranking is not installed ({error}): pip install -r benchmarks/requirements-ddranking.txt"
        ) from None
    Binary.data = data
    found: dict[str, list[float]] = {name: [] for name in (*RUNS, "lrs", "ars")}
    draw = hard_label.get_random_data_tensors
    common = {
        "ipc": len(images) // 10,
        "data_aug_func": "dsa",
        "num_eval": 1,
        "num_epochs": args.epochs,
        "device": "cpu",
        "num_workers": 0,
    }
    common |= {
        "lr_scheduler": "cosineannealing",
        "random_data_format": "tensor",
    }  # the ARS's default, step, is called without a step_size
    normal = (images.float() / 255 - MEAN) / STD
    patches = (mock.patch.object(datasets, "CIFAR10", Binary), mock.patch.object(hard_label, "save_results"))
    patches += (mock.patch.dict(hard_label.REAL_DATA_ACC_CACHE, {"CIFAR10-ConvNet-3": args.full_accuracy}),)
    patches += (
        mock.patch.object(
            aug_robust, "get_random_data_tensors", lambda *given: draw(*given[:4], range(10), *given[4:])
        ),
    )
    for _ in range(args.repeats):
        with quiet_folder(), contextlib.ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            heard: dict[str, list[float]] = {name: [] for name in TRAININGS}
            label = metrics.LabelRobustScoreHard(**common, aug_params=dict(DSA))
            label.test_interval = args.test_interval
            listen(label, heard)
            found["lrs"].append(
                float(label.compute_metrics(image_tensor=normal, syn_lr=args.lr)["label_robust_score_mean"])
            )
            augmented = metrics.AugmentationRobustScore(**common, aug_params=dict(DSA), label_type="hard")
            augmented.teacher_models, augmented.test_loader_real = None, augmented.test_loader_syn
            augmented.test_interval = args.test_interval
            listen(augmented, heard)
            found["ars"].append(
                float(
                    augmented.compute_metrics(image_tensor=normal, syn_lr=args.lr)[
                        "augmentation_robust_score_mean"
                    ]
                )
            )
        for method, names in TRAININGS.items():
            for name, acc in zip(names, heard[method], strict=True):
                found[name].append(acc)
    return found


def our_scores(
    images: Tensor, labels: Tensor, data: Data, args: argparse.Namespace
) -> dict[str, list[float]]:
    """Our evaluation: for each seed the accuracies in percent and the scores of fractions."""
    runtime = make_runtime("cpu", False, False)
    recipe = Recipe(args.epochs, 256, args.lr, "cosine", STRATEGY, "dc", -1.0)
    plain = Recipe(args.epochs, 256, args.lr, "cosine", "none", "dc", -1.0)
    seeds = [derive_seed(args.seed, "ddranking", i) for i in range(args.repeats)]
    sources = {
        "syn": Fixed(to_float(images), labels),
        "random": Real(data.train, len(labels) // 10, 10, fixed=True),
    }
    found = {}
    for name, source in sources.items():
        for suffix, how in (("", recipe), ("_plain", plain)):
            outcomes = [validate_group("convnet", source, data, how, [seed], runtime)[0] for seed in seeds]
            found[name + suffix] = [outcome.accuracy for outcome in outcomes]
    runs = [{name: accs[i] / 100 for name, accs in found.items()} for i in range(args.repeats)]
    each = [scores(run, args.full_accuracy / 100) for run in runs]
    return found | {name: [one[name] for one in each] for name in ("lrs", "ars")}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--set", required=True, help="CIFAR-10 set to score: an ipcN.pt that validate.py --export wrote"
    )
    parser.add_argument("--data-dir", default="datasets", help="where CIFAR-10 lies, in any of its versions")
    parser.add_argument("--epochs", type=positive_int, default=300, help="epochs of each network")
    parser.add_argument(
        "--test-interval",
        type=positive_int,
        default=20,
        help="epochs between the package's tests on the test set",
    )
    parser.add_argument(
        "--test-images",
        type=positive_int,
        default=10_000,
        help="test images to use, the first of the test set",
    )
    parser.add_argument(
        "--lr",
        type=positive,
        default=0.01,
        help="SGD's learning rate in our runs, and in the package's on the set",
    )
    parser.add_argument(
        "--full-accuracy",
        type=number(float, 0, 100),
        default=FULL,
        help="accuracy of ConvNet-3 on all real images, %%",
    )
    parser.add_argument("--repeats", type=positive_int, default=5, help="runs of each evaluation")
    parser.add_argument("--seed", type=count, default=0, help="seed of our runs")
    parser.add_argument("--out", help="JSON file to keep the rows in")
    return parser.parse_args(argv)


@cli
def main(args: argparse.Namespace) -> list[dict]:
    if args.test_interval > args.epochs:
        raise UsageError(
            f"--test-interval {args.test_interval}: the package would never test in {args.epochs} epochs, "
            "and report 0"
        )
    data = load_data("cifar10", args.data_dir)
    found = read_distilled(args.set, data.info)[0]
    if found.soft:
        raise UsageError(f"{args.set}: holds soft labels, expected hard ones")
    order = found.labels.argsort(stable=True)  # the package infers labels from the order
    images, labels = ((found.images[order] + 1) * 127.5).round().clamp(0, 255).byte(), found.labels[order]
    data = Data(
        data.info,
        data.train,
        None,
        ImageSet(data.test.images[: args.test_images], data.test.labels[: args.test_images]),
    )
    start, rows = time.perf_counter(), []
    for name, runs in (
        ("ddranking 0.2.0", package_scores(images, data, args)),
        ("ours", our_scores(images, labels, data, args)),
    ):
        settings = {key: value for key, value in vars(args).items() if key not in ("out", "data_dir", "set")}
        row = {
            "scored_by": name,
            "settings": settings,
            "set": Path(args.set).name,
            "set_sha256": found.sha256(),
            "ipc": found.ipc,
        }
        row |= {
            "n": args.repeats,
            "accs": runs["syn"],
            "mean": mean(runs["syn"]),
            "std": stdev(runs["syn"]) if args.repeats > 1 else None,
        }
        rows.append(
            row
            | {
                "runs": runs,
                "scores": {key: mean(runs[key]) for key in ("lrs", "ars")},
                **environment(torch.device("cpu")),
            }
        )
    report(rows, args.full_accuracy)
    if args.out:
        about = {
            "kind": "ddranking",
            "date": datetime.date.today().isoformat(),
            "hardware": platform.processor() or platform.machine(),
        }
        about |= {
            "commands": ["python " + " ".join(sys.argv)],
            "minutes": round((time.perf_counter() - start) / 60, 1),
            "patched": PATCHED,
        }
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(args.out), json.loads(json.dumps(about)) | {"rows": rows})
    return rows


def report(rows: list[dict], full: float) -> None:
    """Print both side by side, also the scores of the package's accuracies as fractions, and what was
    patched."""
    theirs, ours = (row["runs"] for row in rows)

    def cell(values: list[float] | None) -> str:
        if not values:
            return ""
        return f"{mean(values):.4g}" + (f" ± {stdev(values):.2g}" if len(values) > 1 else "")

    fractions: dict[str, list[float]] = {"lrs": [], "ars": []}
    for i in range(rows[0]["n"]):
        run = {name: theirs[name][i] / 100 for name in RUNS}
        fractions["lrs"].append(scores(run, full / 100)["lrs"])
        fractions["ars"].append(
            scores(run | {"syn": run["syn_aug"], "random": run["random_aug"]}, full / 100)["ars"]
        )
    ours = ours | {"syn_aug": ours["syn"], "random_aug": ours["random"]}
    labels = {"syn": "set, for LRS, %", "random": "random real, for LRS, %", "syn_aug": "set, for ARS, %"}
    labels |= {"random_aug": "random real, for ARS, %", "syn_plain": "set, no augmentation, %"}
    labels |= {
        "random_plain": "random real, no augmentation, %",
        "lrs": "label-robust score",
        "ars": "augmentation-robust score",
    }
    lines = [("", "ddranking 0.2.0", "its runs, fractions", "ours")]
    lines += [
        (label, cell(theirs.get(name)), cell(fractions.get(name)), cell(ours.get(name)))
        for name, label in labels.items()
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    print(
        f"mean ± sample standard deviation over {rows[0]['n']} runs; all real images: {full} % on both "
        "sides, given and not trained"
    )
    print("\n".join(f"patched: {line}" for line in PATCHED))


if __name__ == "__main__":
    main(parse_args())
