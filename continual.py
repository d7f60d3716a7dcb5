"""Stage 4: learn the classes of an image set task by task, with a generator, condensed images or real images
as memory.

    python continual.py dim --tag dim --data mnist --memory-bytes 600000

The first word is the method; `python continual.py METHOD --help` lists its flags. Prints the accuracy over
the tasks so far after each one. Writes results/TAG/: results.json with the matrix of accuracies, its metrics,
bytes and seconds; args.json, metrics.jsonl, TensorBoard events, samples of every class after every task in
outputs/, and last.pth. Stopped anywhere, the same command continues.
"""

import argparse
import dataclasses
import itertools
import signal
import sys
from collections.abc import Iterator
from statistics import mean
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__":
    # Ctrl-C during the imports ends the process at once, without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch
from tqdm import tqdm

from augment import parse_strategy
from data import Data, add_data_flags, load_data
from engine.args_file import FREE_FLAGS
from engine.environment import environment
from engine.files import run_path, write_json
from engine.run_folder import RunFolder, add_run_flags
from engine.runtime import Runtime, add_execution_flags, make_runtime
from engine.steps import START, Position, Step
from models import GANS, describe_networks, network_name
from models.condense import Condensing, add_condense_flags
from replay.continual import Continual
from replay.learner import Learner
from replay.memory import make_memory
from replay.methods import METHODS, Method, replay_losses
from replay.metrics import SETTINGS
from replay.plan import TRACKS, Plan, describe_tasks, listed_classes, split_classes, split_tasks
from replay.results import evaluate, picture, print_results, results_of
from scoring.storage import BYTES, CODECS, LOSSY
from utils import (
    Effect,
    Parser,
    UsageError,
    cli,
    count,
    decay,
    jpeg_quality,
    positive,
    positive_int,
    seed_number,
    two_or_more,
)

FREE = FREE_FLAGS - {"epochs"}  # flags that may differ when a run is continued


def train_tasks(continual: Continual, start: Position = START) -> Iterator[Step]:
    """Learn task after task, one yield a step; `start` is where an earlier run stopped.

    Of each task: the generator as a GAN, or the condensed images; then the networks, on the task beside what
    the memory of the earlier tasks gives; then the generator by matching, with the networks as its teachers;
    last the networks on the memory of all tasks so far, from scratch or for --rehearse-steps. Phases without
    steps are left out.
    """
    for task in range(start.epoch, len(continual.plan.tasks)):
        done = start.step if task == start.epoch else 0
        if done == 0:
            continual.begin(task)
        continual.replay.prepare(task)
        first = 0
        for phase, length in continual.plan.lengths(task).items():
            if length and done < first + length:
                already = max(0, done - first)
                steps = itertools.islice(continual.steps(phase, task, already), length - already)
                for number, losses in enumerate(steps, first + already + 1):
                    yield Step(task, number, losses)
            first += length


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(" ".join(__doc__.split("\n\n")[0].split()))
    methods = parser.add_subparsers(dest="method", metavar="METHOD", required=True, title="methods")
    for name, method in METHODS.items():
        texts = {"help": method.summary, "description": method.summary, "usage": "%(prog)s [flags]"}
        add_flags(methods.add_parser(name, **texts, effects=effects()), method)
    if "--method" in (sys.argv[1:] if argv is None else argv):
        parser.error("the method comes first: continual.py er --memory-bytes 50000; found --method")
    return parser.parse_args(argv)


def effects() -> list[Effect]:
    """Flags that have an effect only beside others."""
    return [
        *(
            Effect(
                tuple(method.flags),
                lambda args, name=name: getattr(args, "replay_loss", name) == name,
                f"without --replay-loss {name}",
            )
            for name, method in replay_losses().items()
        ),
        Effect(
            ("distill_weight",), lambda args: not getattr(args, "replay_loss", None), "with --replay-loss"
        ),
        Effect(("gan_lr", "ema"), lambda args: args.gan_steps, "without a GAN, with --gan-steps 0"),
        Effect(("match_batch",), lambda args: args.match_steps, "without --match-steps"),
        Effect(("rehearse_decay",), lambda args: args.rehearse_steps, "without --rehearse-steps"),
        Effect(("quality",), lambda args: args.codec in LOSSY, "without --codec jpeg or jpeg-scan"),
        Effect(("replay_batch_size",), lambda args: not getattr(args, "retrain", False), "with --retrain"),
        Effect(("epochs",), lambda args: not getattr(args, "retrain_steps", None), "with --retrain-steps"),
    ]


def add_flags(parser: Parser, method: Method) -> None:
    """Declare the flags of a method."""
    streams = method.memory is not None and not method.retrains  # it replays beside a task
    # data and scenario
    add_data_flags(parser, "cifar10")
    split = parser.add_mutually_exclusive_group()
    split.add_argument(
        "--num-tasks", type=positive_int, default=5, help="number of tasks that the classes are split into"
    )
    split.add_argument(
        "--tasks",
        nargs="+",
        help="the classes of each task, by name or number, such as 0,1,2 3,4; others are left out",
    )
    parser.add_argument(
        "--class-order",
        type=seed_number,
        help="seed of a random order of the classes (default: the natural order)",
    )
    passes = "default: 5"
    if method.memory != "generator" and not method.condenses:
        passes = "default: 5; online always 1"
        parser.add_argument(
            "--track", choices=TRACKS, default="offline", help="online: each image of a task is seen once"
        )
    parser.add_argument("--epochs", type=positive_int, help=f"passes over a task ({passes})")
    parser.add_argument(
        "--seed", type=seed_number, default=0, help="seed of all random numbers but the class order"
    )
    # networks
    parser.add_argument(
        "--pool",
        nargs="+",
        default=["convnet"],
        help="networks, each trained continually from the same memory",
    )
    parser.add_argument("--lr", type=positive, default=0.03, help="learning rate of the networks (plain SGD)")
    parser.add_argument("--batch-size", type=two_or_more, default=32, help="images of the task per step")
    parser.add_argument(
        "--dsa-strategy", default="none", help="augmentation of task and replay, such as crop_flip"
    )
    own_flags = dict(method.flags)
    if method.takes_loss:
        losses = replay_losses()
        default = "er" if method.condenses else "distillation"
        parser.add_argument(
            "--replay-loss", choices=losses, help=f"learn as this method does (default: {default})"
        )
        for name, other in losses.items():
            own_flags |= {
                flag: spec._replace(help=f"{name}: {spec.help}") for flag, spec in other.flags.items()
            }
    for flag, spec in own_flags.items():
        parser.add_argument(
            f"--{flag.replace('_', '-')}", type=spec.type, default=spec.default, help=spec.help
        )
    # memory
    if method.memory == "buffer" and not method.unlimited:
        size = parser.add_mutually_exclusive_group(required=True)
        size.add_argument("--memory-bytes", type=positive_int, help="bytes of all that is kept between tasks")
        size.add_argument("--buffer-size", type=positive_int, help="images in memory")
        parser.add_argument("--codec", choices=CODECS, default="raw", help="how the images are stored")
        parser.add_argument(
            "--quality", type=jpeg_quality, default=75, help="JPEG quality of --codec jpeg and jpeg-scan"
        )
    if method.condenses:
        parser.add_argument(
            "--fill-real", action="store_true", help="real images fill the room of those of later tasks"
        )
        add_condense_flags(parser)
    if method.memory == "generator":
        add_generator_flags(parser)
    # learning from memory
    if streams:
        parser.add_argument(
            "--replay-batch-size",
            type=positive_int,
            help="images from memory per step (default: --batch-size)",
        )
        parser.add_argument(
            "--rehearse-steps", type=count, default=0, help="steps on memory alone with which a task ends"
        )
        parser.add_argument(
            "--rehearse-decay",
            choices=("none", "linear"),
            default="none",
            help="learning rate of these steps: constant, or falling to 0",
        )
    if method.condenses:
        parser.add_argument(
            "--retrain",
            action="store_true",
            help="train networks from scratch on memory alone at each task's end",
        )
    if method.condenses or method.retrains:
        parser.add_argument(
            "--retrain-steps",
            type=positive_int,
            help="steps from scratch (default: those of all passes over the tasks so far)",
        )
    # run
    add_run_flags(parser, "continual")
    add_execution_flags(parser)


def add_generator_flags(parser: Parser) -> None:
    """Declare the flags of the methods with a generator."""
    parser.add_argument(
        "--memory-bytes", type=positive_int, help="bytes of all generators; they are as wide as it allows"
    )
    parser.add_argument(
        "--gan",
        choices=GANS,
        default="resnet",
        help="dim: the networks of DiM; resnet: residual networks with a projection discriminator",
    )
    parser.add_argument(
        "--width", type=positive_int, help="channels of both networks (default: as many as the budget allows)"
    )
    parser.add_argument(
        "--z-dim", type=positive_int, help="latent size (default 100, or twice the number of classes if more)"
    )
    parser.add_argument(
        "--storage", choices=BYTES, default="int8", help="precision at which generators are stored"
    )
    parser.add_argument(
        "--replay-images",
        type=positive_int,
        help="generated images per class (default: as many as the task has)",
    )
    # stage 1
    parser.add_argument("--gan-steps", type=count, default=1000, help="steps of stage 1 on a task")
    parser.add_argument(
        "--gan-batch-size", type=two_or_more, default=64, help="images per step of stages 1 and 2"
    )
    parser.add_argument(
        "--gan-lr", type=positive, default=1e-3, help="learning rate of Adam for generator and discriminator"
    )
    parser.add_argument(
        "--ema", type=decay, default=0.999, help="decay of the generator's moving average; 0 = off"
    )
    parser.add_argument(
        "--restat",
        type=count,
        default=20,
        help="batches for estimating BatchNorm's statistics at a task's end; 0 = off",
    )
    # stage 2
    parser.add_argument(
        "--match-steps",
        type=count,
        default=0,
        help="steps of matching alone on a task, as by pool_match.py --recipe-match energy",
    )
    parser.add_argument(
        "--match-batch", type=two_or_more, default=32, help="images of each class in a step of matching"
    )


# Of the flags that only some methods have, the values for the others.
NO_FLAGS = {
    **dict.fromkeys(("memory_bytes", "buffer_size", "replay_batch_size", "replay_loss", "retrain_steps")),
    **dict.fromkeys(("gan_steps", "match_steps", "rehearse_steps"), 0),
    **{"track": "offline", "rehearse_decay": "none", "retrain": False, "codec": "raw", "quality": 75},
}


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of Plan that the flags set. Raises UsageError if flags contradict each other."""
    method = METHODS[args.method]
    args = SimpleNamespace(**NO_FLAGS | vars(args))
    if args.track == "online" and args.epochs not in (None, 1):
        raise UsageError(
            f"--epochs {args.epochs}: --track online sees each image once, expected 1 or --track offline"
        )
    if args.retrain_steps and not (args.retrain or method.retrains):
        raise UsageError(f"--retrain-steps {args.retrain_steps}: expected it beside --retrain")
    if args.retrain and (args.replay_loss or args.rehearse_steps):
        other = f"--rehearse-steps {args.rehearse_steps}"
        if args.replay_loss:
            other = f"--replay-loss {args.replay_loss}"
        raise UsageError(
            f"{other}: --retrain learns from memory alone, nothing is replayed beside a task; expected one "
            "of the two"
        )
    if method.memory == "generator" and not (args.gan_steps or args.match_steps):
        raise UsageError("--gan-steps 0: without a GAN the generator needs --match-steps, found 0")
    if args.replay_loss:
        other = METHODS[args.replay_loss]
        method = dataclasses.replace(method, loss=other.loss, averaged=other.averaged, distils=other.distils)
    condensing = Condensing.of(vars(args)) if method.condenses else None
    return {"args": args, "method": method, "condensing": condensing}


def make_continual(
    names: list[str], settings: dict[str, Any], data: Data, classes: list[list[int]], runtime: Runtime
) -> Continual:
    """The learner that the flags describe, with networks of the kinds `names` and an empty memory, before the
    first task of `data`."""
    learned = [list(itertools.chain(*classes))] if settings["method"].at_once else classes
    tasks = split_tasks(data.train, learned)
    plan = Plan(**settings, tasks=tasks, classes=learned, info=data.info, runtime=runtime)
    plan.check_sizes()
    args = plan.args
    average_decay = args.average_decay if plan.method.averaged else None
    learners = [
        Learner(number, name, data.info, args.lr, average_decay, args.seed, runtime)
        for number, name in enumerate(names)
    ]
    return Continual(plan, learners, make_memory(plan, learners, classes))


@cli
def main(args: argparse.Namespace) -> dict:
    settings = settings_of(args)
    names = list(dict.fromkeys(network_name(name, "--pool") for name in args.pool))
    parse_strategy(args.dsa_strategy, "--dsa-strategy")
    folder = run_path(args.results_dir, args.tag)
    runtime = make_runtime(args.device, args.amp, args.channels_last, args.graphs, args.compile)
    if runtime.world_size > 1:
        raise UsageError(f"continual.py runs as one process, found {runtime.world_size} of torchrun")
    folder_flags = {
        "image_size": args.image_size,
        "background": args.background,
        "test_folder": args.test_folder,
    }
    data = load_data(args.data, args.data_dir, val_size=args.val_size, **folder_flags)
    info = data.info
    if args.tasks:
        classes = listed_classes(args.tasks, info.class_names, args.class_order)
    else:
        classes = split_classes(info.num_classes, args.num_tasks, args.class_order)
    data = data.to(runtime.device)
    data_lines = [data.describe(), describe_tasks(classes, info.class_names)]
    continual = make_continual(names, settings, data, classes, runtime)
    data = Data(info, None, data.val, data.test)  # what is learnt comes from the tasks alone
    torch.manual_seed(runtime.own_seed(args.seed, "continual"))

    split, images = data.evaluation_split
    (images,) = split_tasks(images, [list(itertools.chain(*classes))])
    header = {"stage": "continual", "info": info.to_dict(), "classes": classes, "val_size": args.val_size}
    plan = continual.plan
    lengths = [sum(plan.lengths(task).values()) for task in range(len(plan.tasks))]
    inputs = {"image set": info.to_dict()}
    run = RunFolder(folder, vars(args), inputs, [continual], header, runtime, lengths, "task", FREE)
    if (folder / "results.json").exists() and not (folder / "last.pth").exists():
        raise UsageError(
            f"--tag {args.tag}: {folder / 'results.json'} is of another run, expected a folder of its own"
        )
    run_settings = {
        "method": args.method,
        "data": info.name,
        "split": split,
        "track": plan.args.track,
        "num_tasks": len(classes),
        "classes": classes,
        "seed": args.seed,
        "memory_bytes": continual.memory.max_bytes,
        "steps": lengths,
        # in older runs the default of this flag was another way of matching
        "flags": vars(args) | ({"recipe_match": "energy"} if plan.args.match_steps else {}),
        "class_names": info.class_names,
        "chosen": runtime.chosen(),
        **environment(runtime.device),
    }
    if not continual.acc:
        evaluate(continual, images, classes)
    networks = describe_networks([], info, **{one.name: one.model for one in continual.learners})
    first_lines = [*data_lines, networks, continual.memory.describe()]
    results = None
    for task, values in run.epochs(
        train_tasks(continual, run.position), args.print_freq, args.save_interval, first_lines
    ):
        with run.interruptible():
            evaluate(continual, images, classes)
        continual.finish(task - 1)
        learnt = len(classes) if plan.method.at_once else task
        class_il, task_il = (
            mean(mean(continual.acc[name][setting][-1][:learnt]) for name in names) for setting in SETTINGS
        )
        run.close_epoch(task, values | {"class_il": class_il, "task_il": task_il}, picture(continual), None)
        results = results_of(continual, run_settings, run.seconds)
        write_json(folder / "results.json", results)
        tqdm.write(
            f"Accuracy for {learnt} task(s): \t [Class-IL]: {class_il:.2f} % \t [Task-IL]: {task_il:.2f} %"
        )
    results = results or results_of(continual, run_settings, run.seconds)
    if not (folder / "results.json").exists():  # a kill came between the last checkpoint and it
        write_json(folder / "results.json", results)
    print_results(results)
    print(folder / "results.json")
    return results


if __name__ == "__main__":
    main(parse_args())
