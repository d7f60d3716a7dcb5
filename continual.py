"""Stage 4: learn the classes of an image set task by task, with a generator as memory or another method of replay.

    python continual.py --tag dim --data mnist --method dim --memory-bytes 600000

Prints the accuracy over the tasks so far after each one. Writes results/TAG/: results.json with the matrix of accuracies, its
metrics, bytes and seconds; args.json, metrics.jsonl, TensorBoard events, samples of every class after every task in outputs/, and
last.pth. Stopped anywhere, the same command continues.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from statistics import mean

import torch
from torch import nn
from tqdm import tqdm

import data as datasets
from augment import parse_strategy
from data import Data, DataInfo, ImageSet, load_data
from learner import Continual, Options, picture
from losses import MATCH_WEIGHTS
from memory import LAYOUTS, Buffer, GeneratorMemory, Memory, generator_bytes, training_bytes, widest
from methods import METHODS, Ensemble, Learner, Method
from metrics import SETTINGS, accuracies, summary
from models import GANS, network_name
from run_folder import START, Position, RunFolder, Step, run_path
from runtime import Runtime, device_name, make_runtime
from storage import BYTES, CODECS, num_bytes
from utils import (
    Parser,
    UsageError,
    cli,
    count,
    decay,
    derive_seed,
    environment,
    jpeg_quality,
    nonnegative,
    positive,
    positive_int,
    probability,
    two_or_more,
    write_json,
)

TRACKS = {"offline": 5, "online": 1}  # passes over a task where --epochs is not given
REPLAY_LOSSES = ("er", "er-ace", "cls-er")
FREE_FLAGS = {"tag", "results_dir", "data_dir", "device", "amp", "channels_last", "graphs", "compile", "save_interval", "print_freq"}


def train_tasks(continual: Continual, start: Position = START) -> Iterator[Step]:
    """Learn task after task, one yield a step; `start` is where an earlier run stopped. Phases without steps are left out.

    Of each task: the generator as a GAN, the generator by matching, then the networks, either on the stream beside what the
    memory of the earlier tasks gives, or from scratch on the memory of all tasks so far.
    """
    for task in range(start.epoch, len(continual.tasks)):
        done = start.step if task == start.epoch else 0
        if done == 0:
            continual.begin(task)
        phases = {
            "gan": continual.gan_steps,
            "match": continual.match_steps,
            "stream": continual.stream_steps,
            "retrain": continual.retrain_steps,
        }
        first = 0
        for phase, length in continual.lengths(task).items():
            if done < first + length:
                already = max(0, done - first)
                if phase != "retrain":
                    continual.prepare_replay(task)
                for i, losses in enumerate(itertools.islice(phases[phase](task, already), length - already), first + already):
                    yield Step(task, i + 1, losses)
            first += length


def evaluate(continual: Continual, images: ImageSet, classes: Sequence[Sequence[int]]) -> None:
    """Add a row to the matrix of each network, and to that of the ensemble where there are several."""
    models: dict[str, nn.Module] = {learner.name: learner.deployed for learner in continual.learners}
    if len(models) > 1:
        models["ensemble"] = Ensemble(list(models.values()))
    for name, model in models.items():
        rows = continual.acc.setdefault(name, {setting: [] for setting in SETTINGS})
        for setting, row in accuracies(model, images, classes, continual.info.num_classes).items():
            rows[setting].append(row)


def split_classes(num_classes: int, num_tasks: int, order_seed: int | None) -> list[list[int]]:
    """The classes of each task: consecutive ones of the natural order, or of a random one. Raises UsageError for too many tasks."""
    if num_tasks > num_classes:
        raise UsageError(f"--num-tasks {num_tasks}: expected at most the {num_classes} classes")
    order = torch.arange(num_classes)
    if order_seed is not None:
        order = torch.randperm(num_classes, generator=torch.Generator().manual_seed(derive_seed(order_seed, "class order")))
    return [part.tolist() for part in order.tensor_split(num_tasks)]


def split_tasks(train: ImageSet, classes: Sequence[Sequence[int]]) -> list[ImageSet]:
    """The images of each task, copies."""
    device = train.labels.device
    return [train[torch.isin(train.labels, torch.tensor(labels, device=device)).nonzero().flatten()] for labels in classes]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0])
    # data and scenario
    parser.add_argument("--data", choices=datasets.NAMES, default="cifar10", help="image set")
    parser.add_argument("--data-dir", default="datasets", help="where its files lie or are downloaded to; for folder, PATH")
    parser.add_argument("--image-size", type=int, choices=(28, 32), help="pixels of --data folder (default 32)")
    parser.add_argument("--val-size", type=count, default=0, help="test on this many held-out training images instead of the test set")
    parser.add_argument("--num-tasks", type=positive_int, default=5, help="parts that the classes are split into")
    parser.add_argument("--class-order", type=count, help="seed of a random order of the classes (default: the natural order)")
    parser.add_argument("--track", choices=TRACKS, default="offline", help="online: each image of a task is seen once")
    parser.add_argument("--epochs", type=positive_int, help="passes over a task (default: 5; online always 1)")
    parser.add_argument("--seed", type=count, default=0, help="of everything random but the class order")
    # method and networks
    methods = "; ".join(f"{name}: {method.about}" for name, method in METHODS.items())
    parser.add_argument("--method", choices=METHODS, default="dim", help=methods)
    parser.add_argument("--pool", nargs="+", default=["convnet"], help="networks, each trained continually from the same memory")
    parser.add_argument("--lr", type=positive, default=0.03, help="their rate; plain SGD")
    parser.add_argument("--batch-size", type=two_or_more, default=32, help="images of the task at a step")
    parser.add_argument("--dsa-strategy", default="none", help="augmentation of stream and replay, such as crop_flip")
    parser.add_argument("--alpha", type=nonnegative, default=0.5, help="der++: weight of the distance to stored logits")
    parser.add_argument("--beta", type=nonnegative, default=0.5, help="der++: weight of the second draw's cross-entropy")
    parser.add_argument("--consistency", type=nonnegative, default=0.1, help="cls-er: weight of the distance to the averaged copies")
    parser.add_argument("--average-decay", type=decay, default=0.999, help="cls-er: of its copies; their code's, for some thousand steps")
    # memory
    parser.add_argument("--memory-bytes", type=positive_int, help="budget of all that is kept between tasks; sizes buffer and generator")
    parser.add_argument("--buffer-size", type=positive_int, help="images in the buffer, instead of a budget in bytes")
    parser.add_argument("--codec", choices=CODECS, default="raw", help="how the buffer stores its images")
    parser.add_argument("--quality", type=jpeg_quality, default=75, help="of --codec jpeg")
    parser.add_argument(
        "--offer", choices=("step", "task"), default="step", help="when the buffer takes images: as they come, or at a task's end"
    )
    parser.add_argument("--buffer-share", type=probability, default=0.0, help="dgr, dim: share of --memory-bytes for real images")
    # generator
    parser.add_argument("--gan", choices=GANS, default="dim", help="DiM's pair, or a residual one with a projection discriminator")
    parser.add_argument("--width", type=positive_int, help="channels of both players (default: as many as the budget allows)")
    parser.add_argument("--z-dim", type=positive_int, help="latent size (default 100, or twice the classes if that is more)")
    parser.add_argument("--storage", choices=BYTES, default="int8", help="precision that generators are kept at")
    parser.add_argument(
        "--layout", choices=LAYOUTS, help="one generator carried on, or one for each task (default: dim per-task, dgr carried)"
    )
    parser.add_argument("--gan-steps", type=positive_int, default=1000, help="steps of stage 1 on a task")
    parser.add_argument("--gan-batch-size", type=two_or_more, default=64, help="images a step of stages 1 and 2")
    parser.add_argument("--gan-lr", type=positive, default=1e-3, help="Adam's rate for both players")
    parser.add_argument("--gan-lr-d", type=positive, help="its rate for the discriminator (default: the generator's)")
    parser.add_argument("--gp-weight", type=nonnegative, default=10.0, help="weight of DiM's gradient penalty")
    parser.add_argument("--ema", type=decay, default=0.999, help="decay of the generator's moving average; 0 = off")
    parser.add_argument("--restat", type=count, default=20, help="batches to estimate BatchNorm's statistics from at a task's end; 0 = off")
    parser.add_argument("--keep-discriminator", action="store_true", help="keep it and both optimisers between tasks, as memory")
    parser.add_argument("--oracle", action="store_true", help="a control: the generator is trained on all tasks before the first")
    # stage 2
    parser.add_argument("--match-steps", type=count, help="steps of stage 2 on a task (default: dim 100, dgr 0)")
    parser.add_argument("--match", choices=MATCH_WEIGHTS, default="logit", help="what is matched; none: go on as a GAN, a control")
    parser.add_argument(
        "--match-weight",
        type=nonnegative,
        help="weight of the matching term (default: 0.01 for logit, 0.001 for feat and grad, 1 for dist)",
    )
    parser.add_argument("--pool-steps", type=count, default=2, help="SGD steps of the pool network before each generator step")
    parser.add_argument("--pool-lr", type=positive, default=0.01, help="its rate")
    # replay
    parser.add_argument("--replay-batch-size", type=positive_int, help="images from memory at a step (default: --batch-size)")
    parser.add_argument("--replay-images", type=positive_int, help="generated images a class (default: as many as the task has)")
    parser.add_argument(
        "--replay-balance", choices=("classes", "equal"), default="classes", help="dgr, dim: weight of replay by classes seen, or one half"
    )
    parser.add_argument("--distill-weight", type=probability, help="share of distillation in replay's loss (default: dim 0.5, dgr 1)")
    parser.add_argument("--replay-loss", choices=REPLAY_LOSSES, help="dim: replay as this method replays real images (default: dgr's way)")
    parser.add_argument(
        "--filter", type=probability, default=0.0, help="redraw images that the last networks give their class less than this"
    )
    parser.add_argument("--retrain", action="store_true", help="train networks from scratch on memory alone at each task's end")
    parser.add_argument("--retrain-steps", type=positive_int, help="steps of that (default: as many as the stream had so far)")
    # run
    parser.add_argument("--tag", default="continual", help="name of the folder under --results-dir")
    parser.add_argument("--results-dir", default="results", help="where results go")
    parser.add_argument("--save-interval", type=count, default=250, help="steps between checkpoints inside a task; 0 = only at its end")
    parser.add_argument("--print-freq", type=positive_int, default=50, help="steps between readings of the losses")
    parser.add_argument("--device", type=device_name, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--amp", action=argparse.BooleanOptionalAction, help="bf16 autocast (default: where the device has bf16 instructions)"
    )
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, help="memory layout (default: on CUDA)")
    parser.add_argument("--graphs", action=argparse.BooleanOptionalAction, default=False, help="replay each step as one CUDA graph")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=False, help="fuse classifiers and pool networks by torch.compile"
    )
    return parser.parse_args(argv)


def layout_of(args: argparse.Namespace) -> str:
    """How generators are kept: --layout, or the method's default."""
    return args.layout or ("carried" if args.method == "dgr" or args.oracle else "per-task")


def check_flags(args: argparse.Namespace, method: Method) -> None:
    """Raise UsageError for flags that contradict each other."""
    kept = "nothing" if method.memory is None else "every image" if method.unlimited else None
    for flag, value in (("--memory-bytes", args.memory_bytes), ("--buffer-size", args.buffer_size)):
        if kept and value:
            raise UsageError(f"{flag} {value}: --method {args.method} keeps {kept}")
    if method.memory == "buffer" and not kept and (args.memory_bytes is None) == (args.buffer_size is None):
        raise UsageError(f"--method {args.method} needs --memory-bytes or --buffer-size, and not both")
    generator_flags = {  # None where not given
        "--oracle": args.oracle or None,
        "--retrain": args.retrain or None,
        "--keep-discriminator": args.keep_discriminator or None,
        "--buffer-share": args.buffer_share or None,
        "--filter": args.filter or None,
        "--match-steps": args.match_steps,
        "--layout": args.layout,
        "--width": args.width,
        "--replay-images": args.replay_images,
        "--distill-weight": args.distill_weight,
        "--z-dim": args.z_dim,
        "--gan-lr-d": args.gan_lr_d,
        "--match-weight": args.match_weight,
        "--replay-loss": args.replay_loss,
    }
    if method.memory != "generator":
        for flag, value in generator_flags.items():
            if value is not None:
                raise UsageError(f"{flag} is of the methods with a generator, dgr and dim; found --method {args.method}")
    elif args.layout and args.method == "dgr" and args.layout != "carried":
        raise UsageError(f"--layout {args.layout}: --method dgr carries one generator on, --method dim takes either")
    elif args.replay_loss and args.method == "dgr":
        raise UsageError(f"--replay-loss {args.replay_loss} is of --method dim; dgr distils")
    elif args.track == "online":
        raise UsageError(f"--track online: --method {args.method} goes over a task's images several times, expected --track offline")
    if args.replay_loss and args.retrain:
        raise UsageError(f"--replay-loss {args.replay_loss}: --retrain learns from memory alone, nothing is replayed beside a task")
    if args.replay_loss and (args.distill_weight or args.replay_balance != "classes"):
        found = f"--distill-weight {args.distill_weight}" if args.distill_weight else f"--replay-balance {args.replay_balance}"
        raise UsageError(f"{found} weighs the loss that --replay-loss {args.replay_loss} replaces, expected one of the two")
    if args.buffer_share and (args.memory_bytes is None or args.buffer_share == 1):
        raise UsageError(f"--buffer-share {args.buffer_share}: expected a share below 1 of --memory-bytes")
    if args.memory_bytes and args.buffer_size:
        raise UsageError(f"--buffer-size {args.buffer_size}: expected --memory-bytes or --buffer-size, and not both")
    if args.track == "online" and args.epochs not in (None, 1):
        raise UsageError(f"--epochs {args.epochs}: --track online sees each image once, expected 1 or --track offline")
    if args.oracle and args.layout == "per-task":
        raise UsageError(f"--oracle is one generator of all classes, found --layout {args.layout}")
    if args.keep_discriminator and (args.oracle or layout_of(args) != "carried"):
        raise UsageError("--keep-discriminator is for a generator that is carried on: --method dgr or --layout carried, without --oracle")
    if args.retrain and args.filter and args.layout != "carried":
        raise UsageError(f"--filter {args.filter}: --retrain replays only to a carried generator, expected --layout carried")
    if args.track == "online" and args.offer == "task" and not method.retrains:
        raise UsageError("--offer task goes over a task's images again, expected --track offline")
    if args.codec != "raw" and not (args.buffer_size or args.buffer_share or (method.memory == "buffer" and args.memory_bytes)):
        raise UsageError(f"--codec {args.codec}: there is no buffer of real images to store")
    if args.retrain_steps and not (method.retrains or args.retrain):
        raise UsageError(f"--retrain-steps {args.retrain_steps} is of --method gdumb and --retrain, found neither")


def make_memory(args: argparse.Namespace, method: Method, info: DataInfo, learners: Sequence[Learner], runtime: Runtime) -> Memory:
    """The memory of the method, its parts sized to the budget. Raises UsageError where one does not fit."""
    budget, share, generators = args.memory_bytes, args.buffer_share, None
    layout = layout_of(args)
    copies = sum(num_bytes(average) for learner in learners for average in learner.averages)
    left = budget and budget - copies
    if left is not None and left <= 0:
        raise UsageError(f"--memory-bytes {budget}: the averaged copies of {args.method} take {copies}, expected more than that")
    try:
        if method.memory == "generator":
            config = {
                "gan": args.gan,
                "num_classes": info.num_classes,
                "channels": info.channels,
                "image_size": info.image_size,
                "z_dim": args.z_dim or max(100, 2 * info.num_classes),
            }
            generator_bytes(config | {"width": 1}, args.storage)  # refuses sizes that make no generator
            held = args.num_tasks if layout == "per-task" else 1

            def size(width: int) -> int:
                sized = config | {"width": width}
                return held * generator_bytes(sized, args.storage) + (training_bytes(sized) if args.keep_discriminator else 0)

            room = left and int(left * (1 - share))
            width = args.width or (widest(size, room) if left else GANS[args.gan].width)
            if left and size(width) > room:
                raise UsageError(f"--width {width}: its generators take {size(width)} bytes, expected at most {room}")
            generators = GeneratorMemory(config | {"width": width}, args.storage, layout)
        buffer = None
        if (method.memory == "buffer") or share or args.buffer_size:
            buffer = Buffer(
                info,
                runtime.device,
                max_bytes=left and (int(left * share) if generators else left),
                max_images=args.buffer_size,
                balanced=method.balanced,
                codec=args.codec,
                quality=args.quality,
                networks=len(learners) if method.keeps_logits else 0,
                seed=derive_seed(args.seed, "buffer"),
            )
    except UsageError as error:
        raise UsageError(f"--memory-bytes {budget}: {error}" if budget else str(error)) from None
    return Memory(budget, buffer, generators, copies)


def make_options(args: argparse.Namespace) -> Options:
    """The run's values, defaults filled in."""
    ours = args.method == "dim"
    default = 0.0 if args.replay_loss else 0.5 if ours else 1.0
    distill = default if args.distill_weight is None else args.distill_weight
    return Options(
        epochs=args.epochs or TRACKS[args.track],
        batch_size=args.batch_size,
        replay_batch_size=args.replay_batch_size or args.batch_size,
        dsa_strategy=args.dsa_strategy,
        alpha=args.alpha,
        beta=args.beta,
        consistency=args.consistency,
        distill_weight=distill,
        replay_balance=args.replay_balance,
        replay_images=args.replay_images,
        offer=args.offer,
        filter=args.filter,
        retrain=args.retrain,
        retrain_steps=args.retrain_steps,
        gan_steps=args.gan_steps,
        gan_batch_size=args.gan_batch_size,
        gan_lr=args.gan_lr,
        gan_lr_d=args.gan_lr_d,
        gp_weight=args.gp_weight,
        ema=args.ema,
        restat=args.restat,
        keep_discriminator=args.keep_discriminator,
        oracle=args.oracle,
        match_steps=(100 if ours else 0) if args.match_steps is None else args.match_steps,
        match=args.match,
        match_weight=args.match_weight,
        pool_steps=args.pool_steps,
        pool_lr=args.pool_lr,
    )


def check_sizes(tasks: Sequence[ImageSet], options: Options, generates: bool) -> None:
    """Raise UsageError where a batch is larger than a task."""
    flags = {"--batch-size": options.batch_size} | ({"--gan-batch-size": options.gan_batch_size} if generates else {})
    for flag, batch_size in flags.items():
        for place, task in enumerate(tasks, 1):
            if batch_size > len(task):
                raise UsageError(f"{flag} {batch_size}: larger than task {place}, which has {len(task)} images")


def results_of(continual: Continual, about: dict, seconds: float) -> dict:
    """What results.json holds: settings, bytes, cost, and of each network, of their mean and of their ensemble the matrices and metrics."""
    finished = continual.finished == len(continual.tasks)  # before that, tasks to come would count as failures
    networks = {}
    for name, settings in continual.acc.items():
        networks[name] = {}
        for setting, (initial, *acc) in settings.items():
            metrics = summary(acc, initial) if finished else dict.fromkeys(summary([initial], initial))
            networks[name][setting] = {"acc": acc, "initial": initial, **metrics}
    singles = [learner.name for learner in continual.learners]
    for name, spent in zip(singles, continual.clock.seconds, strict=True):
        networks[name]["seconds"] = round(spent, 2)
    names = [name for name, value in networks[singles[0]]["class-il"].items() if not isinstance(value, list)]

    def over_networks(setting: str, metric: str) -> float | None:
        values = [networks[name][setting][metric] for name in singles]
        return None if None in values else mean(values)

    buffer, generators = continual.memory.buffer, continual.memory.generators
    return about | {
        "tasks_done": continual.finished,
        "finished": finished,
        "num_bytes": continual.memory.num_bytes(),
        "buffer_images": len(buffer) if buffer is not None else 0,
        "generator": generators and {**generators.config, "storage": generators.storage, "layout": generators.layout},
        "images_generated": continual.images_generated,
        "seconds": round(seconds, 1),
        "networks": networks,
        "mean": {setting: {metric: over_networks(setting, metric) for metric in names} for setting in SETTINGS},
    }


def print_results(results: dict) -> None:
    """A line for each network, their mean and their ensemble."""
    heads = ("network", "average accuracy", "incremental", "forgetting", "task-il accuracy", "seconds")
    lines = [heads]
    networks = results["networks"] | ({"mean": results["mean"]} if len(results["networks"]) > 1 else {})
    for name, row in networks.items():
        by_class, by_task = (row[setting] for setting in SETTINGS)
        values = [by_class[metric] for metric in ("average_accuracy", "average_incremental_accuracy", "forgetting")]
        values += [by_task["average_accuracy"], row.get("seconds")]
        lines.append((name, *("" if value is None else f"{value:.2f}" for value in values)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for name, *values in lines:
        print("  ".join([name.ljust(widths[0]), *(value.rjust(width) for value, width in zip(values, widths[1:], strict=True))]))
    kept = ", ".join(f"{size:,} of {what}" for what, size in results["num_bytes"].items() if what != "total")
    split = "held-out training images" if results["split"] == "val" else "test set"
    print(f"{results['data']}, {results['method']}, {results['track']}, {split}: percent")
    print(f"kept between tasks: {results['num_bytes']['total']:,} bytes" + (f" ({kept})" if kept else ""))


@cli
def main(args: argparse.Namespace) -> dict:
    method = METHODS[args.method]
    check_flags(args, method)
    if args.replay_loss:
        rule = METHODS[args.replay_loss]
        method = dataclasses.replace(method, loss=rule.loss, averaged=rule.averaged)
    names = list(dict.fromkeys(network_name(name) for name in args.pool))
    parse_strategy(args.dsa_strategy)
    options = make_options(args)
    folder = run_path(args.results_dir, args.tag)
    runtime = make_runtime(args.device, args.amp, args.channels_last, args.graphs, args.compile)
    if runtime.world_size > 1:
        raise UsageError(f"continual.py runs as one process, found {runtime.world_size} of torchrun")
    data = load_data(args.data, args.data_dir, val_size=args.val_size, image_size=args.image_size)
    classes = split_classes(data.info.num_classes, args.num_tasks, args.class_order)
    data = data.to(runtime.device)
    learned = [[label for labels in classes for label in labels]] if method.at_once else classes
    tasks = split_tasks(data.train, learned)
    check_sizes(tasks, options, method.memory == "generator")
    data = Data(data.info, None, data.val, data.test)  # what is learnt comes from the tasks alone
    average_decay = args.average_decay if method.averaged else None
    learners = [Learner(i, name, data.info, args.lr, average_decay, args.seed, runtime) for i, name in enumerate(names)]
    memory = make_memory(args, method, data.info, learners, runtime)
    continual = Continual(method, options, tasks, learned, learners, memory, data.info, args.seed, runtime)
    torch.manual_seed(runtime.own_seed(args.seed, "continual"))

    split, images = data.referee
    header = {"stage": "continual", "info": data.info.to_dict(), "classes": classes, "val_size": args.val_size}
    lengths = [sum(continual.lengths(task).values()) for task in range(len(tasks))]
    run = RunFolder(folder, vars(args), {"image set": data.info.to_dict()}, [continual], header, runtime, lengths, "task", FREE_FLAGS)
    about = {
        "method": args.method,
        "data": data.info.name,
        "split": split,
        "track": args.track,
        "num_tasks": args.num_tasks,
        "classes": classes,
        "seed": args.seed,
        "memory_bytes": args.memory_bytes,
        "steps": lengths,
        "flags": vars(args),
        "chosen": runtime.chosen(),
        **environment(runtime.device),
    }
    if not continual.acc:
        evaluate(continual, images, classes)
    for task, values in run.epochs(train_tasks(continual, run.position), args.print_freq, args.save_interval):
        with run.interruptible():
            evaluate(continual, images, classes)
        continual.finish(task - 1)
        learnt = len(classes) if method.at_once else task
        last = {setting: [continual.acc[learner.name][setting][-1][:learnt] for learner in learners] for setting in SETTINGS}
        class_il, task_il = (mean(mean(row) for row in last[setting]) for setting in SETTINGS)
        run.close_epoch(task, values | {"class_il": class_il, "task_il": task_il}, picture(continual), None)
        write_json(folder / "results.json", results_of(continual, about, run.seconds))
        tqdm.write(f"Accuracy for {learnt} task(s): \t [Class-IL]: {class_il:.2f} % \t [Task-IL]: {task_il:.2f} %")
    results = results_of(continual, about, run.seconds)
    if not (folder / "results.json").exists():  # a kill came between the last checkpoint and it
        write_json(folder / "results.json", results)
    print_results(results)
    print(folder / "results.json")
    return results


if __name__ == "__main__":
    main(parse_args())
