"""Stage 2: fine-tune a generator so that networks drawn from a pool give generated images the logits of real
ones.

    python pool_match.py --tag match --match logit --match-aug --weight results/gan/last.pth

Writes results/TAG/ as gen_condense.py does. The last line printed is the checkpoint to go on with. Stopped,
the same command continues.
"""

import argparse
import signal
from collections.abc import Iterator, Sequence

if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Ctrl-C during the imports ends the process at once, without a traceback

import torch
import torch.nn.functional as F
from torch import Tensor

import data as datasets
from augment import COMPOSITIONS, draw_operations, parse_strategy
from data import ImageSet, add_folder_flags, epoch_order, load_data
from engine.files import file_hash, run_path
from engine.graphs import Losses
from engine.optim import ADAM_BETAS
from engine.run_folder import RunFolder
from engine.runtime import Runtime, add_execution_flags, make_runtime
from engine.seeds import derive_seed
from engine.steps import START, Position, Step
from engine.tensors import frozen
from losses import METRICS, generator_loss
from models import Classifier, describe_networks, network_name, read_gan
from models.gan import (
    GAN,
    LR_DECAYS,
    differentiable_augment,
    discriminator_step,
    estimate_statistics,
    length_of_decay,
    parse_diffaug,
    rate_factor,
    sample_grid,
)
from models.matching import EFFECTS, MATCH_RECIPES, MATCH_WEIGHTS, Matching
from models.pool import POOL_DATA, NetworkKey, Pool, shuffled_batches
from scoring.evaluation import BUDGETS, EVALUATIONS, evaluate_generator, warn_of_seen_images
from scoring.recipes import RECIPES, make_recipe
from scoring.teachers import make_teachers
from utils import (
    Parser,
    UsageError,
    cli,
    count,
    decay,
    nonnegative,
    positive,
    positive_int,
    probability_or_off,
    seed_number,
    two_or_more,
)


def train_match(
    gan: GAN,
    pool: Pool,
    train: ImageSet,
    *,
    epochs: int,
    batch_size: int,
    gp_weight: float,
    pool_steps: int,
    matching: Matching,
    seed: int,
    runtime: Runtime,
    gan_weight: float = 1.0,
    teachers: Sequence[Classifier] = (),
    teacher_weight: float = 0.0,
    pool_age: int | None = None,
    lr_decay: str = "none",
    diffaug: str = "none",
    classes: Tensor | None = None,
    pool_set: ImageSet | None = None,
    steps: int | None = None,
    start: Position = START,
) -> Iterator[Step]:
    """Fine-tune `gan` in place, one yield a step; Wang et al. 2023 (arXiv:2303.04707), second stage.

    Before each generator step the pool's network whose turn it is takes `pool_steps` SGD steps on its own
    shuffled passes over `train`; it is drawn anew after `pool_age` steps, None = an epoch. gan_weight: factor
    of the GAN's loss of the generator; 0 = matching alone, without a discriminator, and an epoch is then a
    pass in matching batches. teachers: trained classifiers, which take turns; the cross-entropy of their
    outputs for the generated images has the weight teacher_weight. classes (M,): those that `train` holds,
    None = all. pool_set: what the pool is trained on, None = `train`. steps: of an epoch, None = a pass.
    `start`: see Step.
    """
    generator, fresh = gan.train().generator, pool.untrained() if matching.fresh else None
    diffaug_operations = parse_diffaug(diffaug)

    def step(
        index: Tensor,
        groups: Tensor,
        network: NetworkKey,
        untrained: NetworkKey | None,
        teacher: int,
        operations,
    ) -> Losses:
        loss_g = loss_match = loss_teacher = torch.zeros((), device=index.device)
        if gan_weight:
            # loss_g = -E[D(fake)] + CE(fake), on fakes of the real labels; CE is DiM's alone
            real, y = train.batch(index)
            with runtime.autocast():
                fake = generator.sample(y)
                with frozen(gan.discriminator):
                    scores, logits = gan.discriminator(differentiable_augment(fake, diffaug_operations), y)
            loss_g = generator_loss(scores, logits, y)
        if matching.name != "none":
            # loss_match = match_weight * distance(pool(real), pool(fake)), on these images or on batches of
            # its own
            if matching.batch:
                real_groups, y_groups = train.batch(groups.flatten())
                with runtime.autocast():
                    fake_groups = generator.sample(y_groups)
            else:
                real_groups, y_groups, fake_groups = real, y, fake
            augment = (
                None
                if operations is None
                else draw_operations(operations, 1, real_groups.shape[-1], real_groups.device)
            )
            with runtime.autocast():
                num_groups = len(groups) if matching.batch else 0
                sides = (real_groups, fake_groups, y_groups, augment, runtime, num_groups)
                loss_match = matching.loss(pool.networks[network][0], *sides)
                if fresh is not None:
                    loss_match = loss_match + matching.fresh * matching.loss(
                        fresh.networks[untrained][0], *sides
                    )
            if teachers:
                # loss_teacher = teacher_weight * CE(teacher(fake)), under the same augmentation
                with runtime.autocast():
                    logits = runtime.call(teachers[teacher], fake_groups, augment)
                loss_teacher = teacher_weight * F.cross_entropy(logits, y_groups)
        gan.optim_g.zero_grad()
        (gan_weight * loss_g + loss_match + loss_teacher).backward(inputs=list(generator.parameters()))
        runtime.update(gan.optim_g)
        gan.update_ema()
        losses = {}
        if gan_weight:  # loss_d as in stage 1
            losses = {
                "loss_d": discriminator_step(gan, real, y, gp_weight, runtime, diffaug_operations, classes),
                "loss_g": loss_g,
            }
        return losses | {"loss_match": loss_match} | ({"loss_teacher": loss_teacher} if teachers else {})

    step = runtime.graphed(step)
    pool_set, num_steps = (
        pool_set or train,
        steps or matching.steps_per_epoch(train, batch_size, gan_weight, pool_steps),
    )
    for epoch in range(start.epoch, epochs):
        first = start.step if epoch == start.epoch else 0
        if first == num_steps:
            continue
        pool_batches = shuffled_batches(
            len(pool_set), batch_size, runtime.device, seed, epoch, skip=first * pool_steps
        )
        order = epoch_order(len(train), runtime.device, seed, "match", epoch)
        groups = matching.batches(train, runtime.device, seed, "groups", skip=epoch * num_steps + first)
        for i in range(first, num_steps):
            number = epoch * num_steps + i
            pool.turn(number, pool_age or num_steps)
            choices = torch.Generator().manual_seed(
                derive_seed(seed, "operations", epoch, i)
            )  # the same on every rank
            for _ in range(pool_steps if matching.name != "none" else 0):
                pool.train_step(pool_set, runtime.shard(next(pool_batches)), choices)
            gan.set_rates(rate_factor(lr_decay, number, epochs * num_steps))
            index = order[i * batch_size : (i + 1) * batch_size] if gan_weight else order[:batch_size]
            if fresh is not None:
                fresh.turn(number, 1)
            networks = {
                "network": pool.key,
                "untrained": fresh and fresh.key,
                "teacher": number % max(1, len(teachers)),
            }
            operations = matching.choose_operations(choices)
            yield Step(
                epoch,
                i + 1,
                step(runtime.shard(index), runtime.shard(next(groups)), **networks, operations=operations),
            )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0], [*EFFECTS, *EVALUATIONS])
    # what is fine-tuned
    parser.add_argument(
        "--weight",
        required=True,
        help="checkpoint of stage 1 or 2 or of the reference code; with --gan-weight 0 also .safetensors",
    )
    parser.add_argument(
        "--recipe-match",
        choices=MATCH_RECIPES,
        default="paper",
        help="defaults of the flags below; energy: matching alone, in minutes",
    )
    # data
    parser.add_argument(
        "--data", choices=datasets.NAMES, help="image set (default: the checkpoint's, or cifar10)"
    )
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
        help="held-out training images, class-balanced, that choose best.pth",
    )
    # training
    parser.add_argument(
        "--epochs",
        type=positive_int,
        default=100,
        help="passes over the set; a larger number continues a finished run",
    )
    parser.add_argument("--batch-size", type=two_or_more, default=64, help="real images per step")
    parser.add_argument(
        "--lr", type=positive, default=5e-6, help="learning rate of Adam for generator and discriminator"
    )
    parser.add_argument(
        "--lr-d", type=positive, help="learning rate of the discriminator (default: the generator's)"
    )
    parser.add_argument(
        "--lr-decay",
        choices=LR_DECAYS,
        default="none",
        help="linear: decay of both rates to zero over --epochs",
    )
    parser.add_argument(
        "--betas", type=decay, nargs=2, default=ADAM_BETAS, help="decays of the means of the generator's Adam"
    )
    parser.add_argument(
        "--gan-weight",
        type=nonnegative,
        default=1.0,
        help="weight of the GAN's losses; 0: no GAN, matching alone",
    )
    parser.add_argument(
        "--gp-weight", type=nonnegative, default=10.0, help="weight of DiM's gradient penalty"
    )
    parser.add_argument(
        "--diffaug",
        default="none",
        help="DiffAugment of real and generated images, such as color_crop_cutout",
    )
    parser.add_argument(
        "--ema", type=decay, default=0.0, help="decay of the generator's moving average; 0 = off"
    )
    parser.add_argument(
        "--restat",
        type=count,
        default=0,
        help="batches for estimating BatchNorm's statistics at the end of an epoch; 0 = off",
    )
    parser.add_argument("--seed", type=seed_number, default=0, help="seed of all random numbers")
    # matching
    parser.add_argument(
        "--match",
        choices=MATCH_WEIGHTS,
        default="logit",
        help="what is matched; none: GAN training alone, as a control",
    )
    parser.add_argument(
        "--metric",
        choices=METRICS,
        help="distance to match by (default: mean square for logit, l1 for feat and grad)",
    )
    parser.add_argument(
        "--match-weight",
        type=nonnegative,
        help="weight of it (default: 0.01 for logit, 0.001 for feat and grad, else 1)",
    )
    parser.add_argument(
        "--match-fresh",
        type=nonnegative,
        default=0.0,
        help="weight of a second network, untrained and new at each step",
    )
    parser.add_argument(
        "--match-aug",
        action="store_true",
        help="match under --match-strategy, one draw for real and generated images",
    )
    parser.add_argument("--match-strategy", default="color_crop_cutout", help="DSA operations of --match-aug")
    parser.add_argument(
        "--match-composition",
        choices=COMPOSITIONS,
        default="dim",
        help="how they combine; dc: one of them at a time",
    )
    parser.add_argument(
        "--match-batch",
        type=count,
        default=0,
        help="images of each class in batches for matching; 0: the GAN's batch",
    )
    parser.add_argument(
        "--match-classes",
        type=positive_int,
        help="classes in a batch of --match-batch, which take turns (default: 10, or all if fewer)",
    )
    parser.add_argument(
        "--bias", action="store_true", help="--match grad: include biases and normalisation layers"
    )
    parser.add_argument("--fc", action="store_true", help="--match grad: include the last layer")
    pool = ["convnet", "resnet10", "resnet18_w32", "resnet10_ap", "resnet18_ap"]
    parser.add_argument(
        "--pool",
        nargs="+",
        default=pool,
        help="networks, of which one is drawn and initialised anew when one is due",
    )
    parser.add_argument(
        "--pool-age",
        type=positive_int,
        help="steps after which a network is drawn anew (default: those of an epoch)",
    )
    parser.add_argument(
        "--pool-size",
        type=positive_int,
        default=1,
        help="networks in use at once, of different ages, which take turns",
    )
    parser.add_argument(
        "--pool-steps",
        type=count,
        default=16,
        help="SGD steps of the pool network before each generator step",
    )
    parser.add_argument(
        "--pool-data",
        choices=POOL_DATA,
        default="real",
        help="images that the pool's networks are trained on",
    )
    parser.add_argument("--pool-lr", type=positive, default=0.01, help="learning rate of the pool network")
    parser.add_argument(
        "--pool-strategy", default="color_crop", help="DSA operations in training the pool network, or none"
    )
    # teachers
    parser.add_argument(
        "--teacher-weight",
        type=nonnegative,
        default=0.0,
        help="weight of the teachers' cross-entropy; 0: no teachers",
    )
    parser.add_argument(
        "--teachers",
        nargs="+",
        default=["convnet_w32"],
        help="networks to train on real images before the first step",
    )
    parser.add_argument(
        "--teacher-epochs", type=positive_int, default=4, help="passes over the training set for a teacher"
    )
    # evaluation
    parser.add_argument(
        "--eval-interval", type=count, default=10, help="epochs between evaluations; 0 = never"
    )
    parser.add_argument(
        "--eval-model", nargs="+", default=["convnet"], help="networks to train on generated images"
    )
    parser.add_argument(
        "--budget",
        choices=BUDGETS,
        default="stream",
        help="fixed: ipc images per class, drawn once; stream: drawn anew at each epoch",
    )
    parser.add_argument(
        "--ipc", type=positive_int, default=50, help="images per class in an epoch of a classifier"
    )
    parser.add_argument(
        "--repeats", type=positive_int, default=1, help="number of classifiers at each evaluation"
    )
    parser.add_argument("--recipe", choices=RECIPES, default="dim", help="how a classifier is trained")
    parser.add_argument("--epochs-eval", type=positive_int, default=1000, help="epochs of a classifier")
    parser.add_argument(
        "--mix-p",
        type=probability_or_off,
        help="probability of CutMix for a batch; -1 = never (default: the recipe's)",
    )
    # run
    parser.add_argument("--tag", default="match", help="name of the folder under --results-dir")
    parser.add_argument("--results-dir", default="results", help="where results go")
    parser.add_argument(
        "--save-interval",
        type=count,
        default=250,
        help="steps between checkpoints inside an epoch; 0 = only at its end",
    )
    parser.add_argument(
        "--print-freq", type=positive_int, default=50, help="steps between readings of the losses"
    )
    add_execution_flags(parser)
    parser.set_defaults_by("--recipe-match", MATCH_RECIPES, argv)
    return parser.parse_args(argv)


@cli
def main(args: argparse.Namespace) -> RunFolder:
    networks, teachers, _ = (
        [network_name(name, flag) for name in names]
        for flag, names in (
            ("--eval-model", args.eval_model),
            ("--teachers", args.teachers),
            ("--pool", args.pool),
        )
    )
    for flag, strategy in (
        ("--match-strategy", args.match_strategy),
        ("--pool-strategy", args.pool_strategy),
        ("--diffaug", args.diffaug),
    ):
        parse_strategy(strategy, flag)
    folder = run_path(args.results_dir, args.tag)
    runtime = make_runtime(args.device, args.amp, args.channels_last, args.graphs, args.compile)
    runtime.check_batch_size(args.batch_size)
    strategy, sizes = (
        args.match_strategy if args.match_aug else None,
        (args.match_batch, args.match_classes, args.match_fresh),
    )
    matching = Matching(
        args.match,
        args.match_weight,
        strategy,
        args.match_composition,
        args.metric,
        args.bias,
        args.fc,
        *sizes,
    )
    matching.check(args.gan_weight, args.teacher_weight)
    if args.match_batch:
        runtime.check_batch_size(args.match_batch, "--match-batch")
    if args.pool_age and args.pool_age < args.pool_size:
        raise UsageError(
            f"--pool-age {args.pool_age}: expected a turn or more for each of the {args.pool_size} networks "
            "of --pool-size"
        )
    checkpoint = read_gan(args.weight)
    folder_flags = {
        "image_size": args.image_size,
        "background": args.background,
        "test_folder": args.test_folder,
    }
    data = load_data(
        checkpoint.data_name(args.data),
        args.data_dir,
        val_size=args.val_size,
        info=checkpoint.info,
        **folder_flags,
    )
    checkpoint.check_data(data.info)
    warn_of_seen_images(checkpoint, args.val_size)
    recipe = make_recipe(args.recipe, data.info.name, epochs=args.epochs_eval, mix_p=args.mix_p)
    num_steps = matching.steps_per_epoch(
        data.train, args.batch_size, args.gan_weight, args.pool_steps, data.info.class_names
    )
    players = checkpoint.players() if args.gan_weight else (checkpoint.trainee(), None)
    gan = GAN(
        *(player and runtime.place(player) for player in players),
        args.lr,
        args.ema,
        args.lr_d,
        tuple(args.betas),
    )
    trained_on = gan.generator if args.pool_data == "generated" else None
    pool = Pool(
        args.pool, data.info, args.pool_lr, args.pool_strategy, args.seed, runtime, args.pool_size, trained_on
    )
    torch.manual_seed(runtime.own_seed(args.seed, "match"))

    unseen = min(args.val_size, checkpoint.val_size or 0)  # the splits are nested
    header = {"stage": "match", "config": checkpoint.config, "info": data.info.to_dict(), "val_size": unseen}
    inputs = {
        "image set": data.info.to_dict(),
        "sha256 of --weight": file_hash(args.weight),
    } | length_of_decay(args.lr_decay, args.epochs)
    run = RunFolder(folder, vars(args), inputs, [gan, pool], header, runtime, num_steps)
    data = data.to(runtime.device)
    teachers = make_teachers(
        teachers if args.teacher_weight else [],
        args.teacher_epochs,
        data,
        folder,
        args.val_size,
        args.seed,
        runtime,
    )
    steps = train_match(
        gan,
        pool,
        data.train,
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr_decay=args.lr_decay,
        gp_weight=args.gp_weight,
        diffaug=args.diffaug,
        pool_steps=args.pool_steps,
        pool_age=args.pool_age,
        matching=matching,
        gan_weight=args.gan_weight,
        teachers=teachers,
        teacher_weight=args.teacher_weight,
        seed=args.seed,
        runtime=runtime,
        start=run.position,
    )
    first_lines = [data.describe(), describe_networks(pool.names, data.info, **gan.players)]
    for epoch, values in run.epochs(steps, args.print_freq, args.save_interval, first_lines):
        if args.restat:
            estimate_statistics(gan.deployed, args.restat, args.batch_size, args.seed, runtime)
        if args.eval_interval and epoch % args.eval_interval == 0:
            with run.interruptible():
                values |= evaluate_generator(
                    gan.deployed,
                    data,
                    networks,
                    args.budget,
                    args.ipc,
                    args.repeats,
                    recipe,
                    args.seed,
                    runtime,
                )
        choose_by = (
            "val_accuracy" if 0 < args.val_size <= unseen else None
        )  # not by images that the generator has seen
        run.close_epoch(epoch, values, sample_grid(gan.deployed, args.seed), choose_by)
    print(run.best_path)
    return run


if __name__ == "__main__":
    main(parse_args())
