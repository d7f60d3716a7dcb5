"""Stage 4: learn the classes of an image set task by task, with a generator as memory or another method of
replay.

    python continual.py --tag dim --data mnist --method dim --memory-bytes 600000

Prints the accuracy over the tasks so far after each one. Writes results/TAG/: results.json with the matrix of
accuracies, its metrics, bytes and seconds; args.json, metrics.jsonl, TensorBoard events, samples of every
class after every task in outputs/, nearest.png with the real images nearest to those in memory, and last.pth.
Stopped anywhere, the same command continues.
"""

import argparse
import dataclasses
import itertools
import signal
from collections.abc import Iterator
from statistics import mean

if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Ctrl-C during the imports ends the process at once, without a traceback

import torch
from tqdm import tqdm

import data as datasets
from augment import parse_strategy
from data import Data, add_folder_flags, load_data
from engine.environment import environment
from engine.files import run_path, save_picture, write_json
from engine.run_folder import RunFolder
from engine.runtime import Runtime, add_execution_flags, make_runtime
from engine.steps import START, Position, Step
from gen_condense import train_gan
from losses import LOSSES
from models import GANS, describe_networks, network_name
from models.condense import add_condense_flags
from models.matching import MATCH_RECIPES
from pool_match import train_match
from replay.checks import check_flags
from replay.continual import Continual
from replay.learner import Learner
from replay.memory import make_memory
from replay.methods import METHODS
from replay.metrics import SETTINGS
from replay.options import EFFECTS, LAYOUTS, STARTS, TABLES, Options, layout_of, make_options, tables_of
from replay.results import evaluate, neighbours, picture, print_results, results_of
from replay.tasks import check_sizes, describe_tasks, listed_classes, split_classes, split_tasks
from scoring.storage import BYTES, CODECS
from utils import (
    Parser,
    UsageError,
    cli,
    count,
    decay,
    jpeg_quality,
    nonnegative,
    positive,
    positive_int,
    probability,
    seed_number,
    two_or_more,
)

TRACKS = {"offline": 5, "online": 1}  # passes over a task where --epochs is not given
REPLAY_LOSSES = ("er", "er-ace", "cls-er")
FREE_FLAGS = {
    "tag",
    "results_dir",
    "data_dir",
    "device",
    "amp",
    "channels_last",
    "graphs",
    "compile",
    "save_interval",
    "print_freq",
}


def train_tasks(continual: Continual, start: Position = START) -> Iterator[Step]:
    """Learn task after task, one yield a step; `start` is where an earlier run stopped. Phases without steps
    are left out.

    Of each task: the generator as a GAN, the generator by matching, or the condensed images, then the
    networks, either on the stream beside what the memory of the earlier tasks gives, or from scratch on the
    memory of all tasks so far. The networks teach --latents and the generator of --recipe-match energy, which
    therefore come after the stream. --rehearse-steps end a task on the memory of all tasks.
    """
    for task in range(start.epoch, len(continual.tasks)):
        done = start.step if task == start.epoch else 0
        if done == 0:
            continual.begin(task)
        first = 0
        for phase, length in continual.plan.lengths(task).items():
            if length and done < first + length:
                already = max(0, done - first)
                if phase != "retrain":
                    continual.replay.prepare(task)
                for i, losses in enumerate(
                    itertools.islice(continual.steps(phase, task, already), length - already), first + already
                ):
                    yield Step(task, i + 1, losses)
            first += length


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0], EFFECTS)
    # data and scenario
    parser.add_argument("--data", choices=datasets.NAMES, default="cifar10", help="image set")
    parser.add_argument(
        "--data-dir",
        default="datasets",
        help="where the set lies or is downloaded to (--data folder: train/ and test/)",
    )
    add_folder_flags(parser)
    parser.add_argument(
        "--val-size",
        type=count,
        default=0,
        help="test on this many held-out training images instead of the test set",
    )
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
    parser.add_argument(
        "--track", choices=TRACKS, default="offline", help="online: each image of a task is seen once"
    )
    parser.add_argument(
        "--epochs", type=positive_int, help="passes over a task (default: 5; online always 1)"
    )
    parser.add_argument(
        "--seed", type=seed_number, default=0, help="seed of all random numbers but the class order"
    )
    # method and networks
    methods = "; ".join(f"{name}: {method.about}" for name, method in METHODS.items())
    parser.add_argument("--method", choices=METHODS, default="dim", help=methods)
    parser.add_argument(
        "--pool",
        nargs="+",
        default=["convnet"],
        help="networks, each trained continually from the same memory",
    )
    parser.add_argument("--lr", type=positive, default=0.03, help="learning rate of the networks (plain SGD)")
    parser.add_argument("--batch-size", type=two_or_more, default=32, help="images of the task per step")
    parser.add_argument(
        "--dsa-strategy", default="none", help="augmentation of stream and replay, such as crop_flip"
    )
    parser.add_argument(
        "--alpha", type=nonnegative, default=0.5, help="der++: weight of the distance to stored logits"
    )
    parser.add_argument(
        "--beta", type=nonnegative, default=0.5, help="der++: weight of the second draw's cross-entropy"
    )
    parser.add_argument(
        "--consistency",
        type=nonnegative,
        default=0.1,
        help="cls-er: weight of the distance to the averaged copies",
    )
    parser.add_argument(
        "--average-decay",
        type=decay,
        default=0.999,
        help="cls-er: decay of the averaged copies, for thousands of steps",
    )
    # memory
    parser.add_argument(
        "--memory-bytes",
        type=positive_int,
        help="bytes of all that is kept between tasks; its parts are sized to it",
    )
    parser.add_argument(
        "--buffer-size", type=positive_int, help="images in the buffer, instead of a budget in bytes"
    )
    parser.add_argument("--codec", choices=CODECS, default="raw", help="how the buffer stores its images")
    parser.add_argument(
        "--quality", type=jpeg_quality, default=75, help="JPEG quality of --codec jpeg and jpeg-scan"
    )
    parser.add_argument(
        "--offer",
        choices=("step", "task"),
        default="step",
        help="when the buffer takes images: at each step of the first pass, or at the end of a task",
    )
    parser.add_argument(
        "--fill-real",
        action="store_true",
        help="condensed: real images fill the room of those of later tasks",
    )
    parser.add_argument(
        "--buffer-share",
        type=probability,
        default=0.0,
        help="dgr, dim: share of --memory-bytes for real images",
    )
    # generator
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
        "--layout",
        choices=LAYOUTS,
        help="one generator carried on, or one for each task (default: dim per-task, dgr carried)",
    )
    parser.add_argument(
        "--class-tables",
        choices=TABLES,
        help="classes of which a generator has tables (default: those of its task with --layout per-task)",
    )
    parser.add_argument("--gan-steps", type=count, default=1000, help="steps of stage 1 on a task")
    parser.add_argument(
        "--gan-batch-size", type=two_or_more, default=64, help="images per step of stages 1 and 2"
    )
    parser.add_argument(
        "--gan-lr", type=positive, default=1e-3, help="learning rate of Adam for generator and discriminator"
    )
    parser.add_argument(
        "--gan-lr-d", type=positive, help="learning rate of the discriminator (default: the generator's)"
    )
    parser.add_argument(
        "--gp-weight", type=nonnegative, default=10.0, help="weight of DiM's gradient penalty"
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
    parser.add_argument(
        "--keep-discriminator",
        action="store_true",
        help="keep discriminator and optimisers, too; they count as memory",
    )
    parser.add_argument(
        "--oracle",
        action="store_true",
        help="control: train the generator on all tasks before the first task",
    )
    # stage 2
    parser.add_argument(
        "--recipe-match",
        choices=MATCH_RECIPES,
        default="paper",
        help="energy: matching alone, as in pool_match.py; needs --match-steps",
    )
    parser.add_argument("--match-steps", type=count, help="steps of stage 2 on a task (default: 0)")
    parser.add_argument(
        "--match-batch",
        type=count,
        default=32,
        help="images of each class in a step of --recipe-match energy",
    )
    parser.add_argument(
        "--teacher-weight",
        type=nonnegative,
        default=0.33,
        help="weight of the networks' cross-entropy in that recipe",
    )
    parser.add_argument(
        "--latents",
        type=count,
        default=0,
        help="dim: this many of each class are matched and stored; 0 = random ones",
    )
    parser.add_argument(
        "--latent-steps", type=positive_int, help="steps of matching the latents of a task (default: 200)"
    )
    parser.add_argument(
        "--generator-start",
        choices=STARTS,
        default="new",
        help="of a task's generator: new weights, or those of the last task's",
    )
    parser.add_argument(
        "--match",
        choices=[*LOSSES, "none"],
        default="logit",
        help="what is matched; none: GAN training alone, as a control",
    )
    parser.add_argument(
        "--match-weight",
        type=nonnegative,
        help="weight of it (default: 0.01 for logit, 0.001 for feat and grad, else 1)",
    )
    parser.add_argument(
        "--pool-steps", type=count, default=2, help="SGD steps of the pool network before each generator step"
    )
    parser.add_argument("--pool-lr", type=positive, default=0.01, help="learning rate of the pool network")
    add_condense_flags(parser)
    # replay
    parser.add_argument(
        "--replay-batch-size", type=positive_int, help="images from memory per step (default: --batch-size)"
    )
    parser.add_argument(
        "--replay-images",
        type=positive_int,
        help="generated images per class (default: --latents, or as the task has)",
    )
    parser.add_argument(
        "--replay-balance",
        choices=("classes", "equal"),
        default="classes",
        help="dgr, dim: replay loss weighted by the share of old classes, or by one half",
    )
    parser.add_argument(
        "--distilled-share",
        type=probability,
        default=0.0,
        help="dim, condensed: share of a task's images in each step that are distilled ones of its classes, "
        "in whole images",
    )
    parser.add_argument(
        "--distill-weight",
        type=probability,
        help="share of distillation in the replay loss (default: dim 0.5, dgr 1)",
    )
    parser.add_argument(
        "--replay-loss",
        choices=REPLAY_LOSSES,
        help="dim, condensed: loss of this method (default: that of dgr for dim, of er for condensed)",
    )
    parser.add_argument(
        "--filter",
        type=probability,
        default=0.0,
        help="redraw an image if the last networks give its class less than this probability",
    )
    parser.add_argument(
        "--retrain",
        action="store_true",
        help="train networks from scratch on memory alone at each task's end",
    )
    parser.add_argument(
        "--retrain-steps",
        type=positive_int,
        help="steps of --retrain or gdumb (default: those of all streams so far)",
    )
    parser.add_argument(
        "--rehearse-steps", type=count, default=0, help="steps on memory alone with which a task ends"
    )
    parser.add_argument(
        "--rehearse-decay",
        choices=("none", "linear"),
        help="learning rate of these steps: constant, or falling to 0 (default: none)",
    )
    # run
    parser.add_argument("--tag", default="continual", help="name of the folder under --results-dir")
    parser.add_argument("--results-dir", default="results", help="where results go")
    parser.add_argument(
        "--save-interval",
        type=count,
        default=250,
        help="steps between checkpoints inside a task; 0 = only at its end",
    )
    parser.add_argument(
        "--print-freq", type=positive_int, default=50, help="steps between readings of the losses"
    )
    add_execution_flags(parser)
    return parser.parse_args(argv)


def make_continual(
    args: argparse.Namespace,
    names: list[str],
    data: Data,
    classes: list[list[int]],
    options: Options,
    runtime: Runtime,
) -> Continual:
    """The learner that args describe, with networks of the kinds `names` and an empty memory, before the
    first task of `data`."""
    method = METHODS[args.method]
    if args.replay_loss:
        rule = METHODS[args.replay_loss]
        method = dataclasses.replace(method, loss=rule.loss, averaged=rule.averaged)
    learned = [list(itertools.chain(*classes))] if method.at_once else classes
    tasks = split_tasks(data.train, learned)
    check_sizes(tasks, options, method.memory == "generator", data.info.class_names)
    average_decay = args.average_decay if method.averaged else None
    learners = [
        Learner(i, name, data.info, args.lr, average_decay, args.seed, runtime)
        for i, name in enumerate(names)
    ]
    memory = make_memory(
        args.method,
        method,
        data.info,
        learners,
        runtime.device,
        max_bytes=args.memory_bytes,
        buffer_size=args.buffer_size,
        buffer_share=args.buffer_share,
        fill_real=args.fill_real,
        codec=args.codec,
        quality=args.quality,
        gan=args.gan,
        width=args.width,
        z_dim=args.z_dim,
        storage=args.storage,
        layout=layout_of(args.method, args.layout, args.oracle),
        tables=tables_of(args.method, args.layout, args.class_tables, args.oracle),
        classes=classes,
        latents=args.latents,
        keep_discriminator=args.keep_discriminator,
        seed=args.seed,
    )
    return Continual(
        method,
        options,
        tasks,
        learned,
        learners,
        memory,
        data.info,
        args.seed,
        runtime,
        train_gan,
        train_match,
    )


@cli
def main(args: argparse.Namespace) -> dict:
    check_flags(vars(args), METHODS[args.method])
    names = list(dict.fromkeys(network_name(name, "--pool") for name in args.pool))
    parse_strategy(args.dsa_strategy, "--dsa-strategy")
    options = make_options(vars(args), TRACKS)
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
    listed = args.tasks and listed_classes(args.tasks, data.info.class_names, args.class_order)
    classes = listed or split_classes(data.info.num_classes, args.num_tasks, args.class_order)
    data = data.to(runtime.device)
    data_lines = [data.describe(), describe_tasks(classes, data.info.class_names)]
    continual = make_continual(args, names, data, classes, options, runtime)
    data = Data(data.info, None, data.val, data.test)  # what is learnt comes from the tasks alone
    torch.manual_seed(runtime.own_seed(args.seed, "continual"))

    split, (images,) = (
        data.evaluation_split[0],
        split_tasks(data.evaluation_split[1], [list(itertools.chain(*classes))]),
    )
    header = {
        "stage": "continual",
        "info": data.info.to_dict(),
        "classes": classes,
        "val_size": args.val_size,
    }
    lengths = [sum(continual.plan.lengths(task).values()) for task in range(len(continual.tasks))]
    run = RunFolder(
        folder,
        vars(args),
        {"image set": data.info.to_dict()},
        [continual],
        header,
        runtime,
        lengths,
        "task",
        FREE_FLAGS,
    )
    if (folder / "results.json").exists() and not (folder / "last.pth").exists():
        raise UsageError(
            f"--tag {args.tag}: {folder / 'results.json'} is of another run, expected a folder of its own"
        )
    about = {
        "method": args.method,
        "data": data.info.name,
        "split": split,
        "track": args.track,
        "num_tasks": len(classes),
    }
    about |= {
        "classes": classes,
        "seed": args.seed,
        "memory_bytes": args.memory_bytes,
        "steps": lengths,
        "flags": vars(args),
    }
    about |= {"class_names": data.info.class_names, "chosen": runtime.chosen(), **environment(runtime.device)}
    if not continual.acc:
        evaluate(continual, images, classes)
    networks = describe_networks(
        [], data.info, **{learner.name: learner.model for learner in continual.learners}
    )
    first_lines = [*data_lines, networks, continual.memory.describe()]
    results = None
    for task, values in run.epochs(
        train_tasks(continual, run.position), args.print_freq, args.save_interval, first_lines
    ):
        with run.interruptible():
            evaluate(continual, images, classes)
        continual.finish(task - 1)
        learnt = len(classes) if continual.method.at_once else task
        last = {
            setting: [continual.acc[learner.name][setting][-1][:learnt] for learner in continual.learners]
            for setting in SETTINGS
        }
        class_il, task_il = (mean(mean(row) for row in last[setting]) for setting in SETTINGS)
        run.close_epoch(task, values | {"class_il": class_il, "task_il": task_il}, picture(continual), None)
        results = results_of(continual, about, run.seconds, images)
        write_json(folder / "results.json", results)
        tqdm.write(
            f"Accuracy for {learnt} task(s): \t [Class-IL]: {class_il:.2f} % \t [Task-IL]: {task_il:.2f} %"
        )
    results = results or results_of(continual, about, run.seconds, images)
    if not (folder / "results.json").exists():  # a kill came between the last checkpoint and it
        write_json(folder / "results.json", results)
    if not (folder / "nearest.png").exists() and (pairs := neighbours(continual)) is not None:
        save_picture(folder / "nearest.png", pairs)
    print_results(results)
    print(folder / "results.json")
    return results


if __name__ == "__main__":
    main(parse_args())
