"""Stage 2: fine-tune a generator so that networks see its images as they see real ones.

    python pool_match.py --tag match --match logit --match-aug --weight results/gan/last.pth

Writes results/TAG/ as gen_condense.py does. The last line printed is the checkpoint to go on with. Stopped,
the same command continues.
"""

import argparse
import signal
from collections.abc import Iterator

if __name__ == "__main__":
    # Ctrl-C during the imports ends the process at once, without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch
import torch.nn.functional as F
from torch import Tensor

from augment import COMPOSITIONS, Augmentation, draw_operations, parse_strategy
from data import ImageSet, add_data_flags, epoch_order, load_data
from engine.files import file_hash, run_path
from engine.graphs import Losses
from engine.optim import ADAM_BETAS
from engine.run_folder import RunFolder, add_run_flags
from engine.runtime import Runtime, add_execution_flags, make_runtime
from engine.seeds import derive_seed
from engine.steps import START, Position, Step
from engine.tensors import frozen
from losses import LOSSES, METRICS, generator_loss
from models import describe_networks, network_name, read_gan
from models.gan import (
    GAN,
    add_gan_flags,
    differentiable_augment,
    discriminator_step,
    estimate_statistics,
    length_of_decay,
    rate_factor,
    sample_grid,
)
from models.matching import EFFECTS, MATCH_RECIPES, NO_TEACHERS, Matching, Teachers
from models.pool import POOL_DATA, NetworkKey, Pool, shuffled_batches
from scoring.evaluation import EVALUATIONS, add_evaluation_flags, evaluate_generator, warn_of_seen_images
from scoring.recipes import make_recipe
from scoring.teachers import make_teachers
from utils import Parser, UsageError, cli, count, decay, nonnegative, positive, positive_int

Batch = tuple[Tensor, Tensor, Tensor]  # real images, generated images, and the labels of both


def train_match(
    gan: GAN,
    pool: Pool,
    train: ImageSet,
    matching: Matching,
    *,
    epochs: int,
    batch_size: int,
    gp_weight: float,
    seed: int,
    runtime: Runtime,
    gan_weight: float = 1.0,
    teachers: Teachers = NO_TEACHERS,
    lr_decay: str = "none",
    diffaug: str = "none",
    classes: Tensor | None = None,
    steps: int | None = None,
    start: Position = START,
) -> Iterator[Step]:
    """Fine-tune `gan` in place, one yield a step; Wang et al. 2023 (arXiv:2303.04707), second stage.

    Before each generator step a network of the pool takes pool.steps SGD steps on its own shuffled passes
    over pool.images or `train`. gan_weight: factor of the GAN's loss of the generator; 0 = matching alone,
    without a discriminator, and an epoch is then a pass in matching batches. classes (M,): those that `train`
    holds, None = all. steps: of an epoch, None = a pass. `start`: where an earlier run of the same seed
    stopped.
    """
    generator = gan.train().generator
    fresh = pool.untrained() if matching.fresh else None
    gan_operations = parse_strategy(diffaug, "--diffaug")

    def sample(index: Tensor) -> Batch:
        real, y = train.batch(index)
        with runtime.autocast():
            return real, generator.sample(y), y

    def gan_term(fake: Tensor, y: Tensor) -> Tensor:
        """-E[D(fake)] + CE(fake), on fakes of the real labels; CE is DiM's alone."""
        with runtime.autocast(), frozen(gan.discriminator):
            scores, logits = gan.discriminator(differentiable_augment(fake, gan_operations), y)
        return generator_loss(scores, logits, y)

    def match_term(network: NetworkKey, untrained: NetworkKey | None, *images) -> Tensor:
        """match_weight * (distance in a pool network + match_fresh * distance in an untrained network)."""
        with runtime.autocast():
            loss = matching.loss(pool.networks[network][0], *images)
            if fresh is not None:
                loss = loss + matching.fresh * matching.loss(fresh.networks[untrained][0], *images)
        return loss

    def teacher_term(teacher: int, fake: Tensor, y: Tensor, augment: Augmentation) -> Tensor:
        """teacher_weight * CE(teacher(fake)), under the augmentation of the matching."""
        with runtime.autocast():
            logits = runtime.call(teachers.networks[teacher], fake, augment)
        return teachers.weight * F.cross_entropy(logits, y)

    def step(index: Tensor, groups: Tensor, network, untrained, teacher, operations) -> Losses:
        loss_g = loss_match = loss_teacher = torch.zeros((), device=index.device)
        if gan_weight:
            real, fake, y = gan_batch = sample(index)
            loss_g = gan_term(fake, y)
        if matching.name != "none":
            batch = sample(groups.flatten()) if matching.batch else gan_batch
            augment = draw_operations(operations, 1, batch[0].shape[-1], index.device)
            loss_match = match_term(network, untrained, *batch, augment, runtime, len(groups))
            if teachers.networks:
                loss_teacher = teacher_term(teacher, *batch[1:], augment)
        gan.optim_g.zero_grad()
        (gan_weight * loss_g + loss_match + loss_teacher).backward(inputs=list(generator.parameters()))
        runtime.update(gan.optim_g)
        gan.update_ema()
        losses = {"loss_match": loss_match}
        if gan_weight:  # loss_d as in stage 1
            loss_d = discriminator_step(gan, real, y, gp_weight, runtime, gan_operations, classes)
            losses = {"loss_d": loss_d, "loss_g": loss_g, **losses}
        return losses | ({"loss_teacher": loss_teacher} if teachers.networks else {})

    step = runtime.graphed(step)
    pool_images = train if pool.images is None else pool.images
    pool_steps = 0 if matching.name == "none" else pool.steps
    num_steps = steps or matching.steps_per_epoch(train, batch_size, gan_weight, pool_steps)
    for epoch in range(start.epoch, epochs):
        first = start.step if epoch == start.epoch else 0
        pool_batches = shuffled_batches(
            len(pool_images), batch_size, runtime.device, seed, epoch, skip=first * pool_steps
        )
        order = epoch_order(len(train), runtime.device, seed, "match", epoch)
        groups = matching.batches(train, runtime.device, seed, "groups", skip=epoch * num_steps + first)
        for i in range(first, num_steps):
            number = epoch * num_steps + i
            rng = torch.Generator().manual_seed(derive_seed(seed, "operations", epoch, i))  # on every rank
            pool.select(number, pool.age or num_steps)
            for _ in range(pool_steps):
                pool.train_step(pool_images, runtime.shard(next(pool_batches)), rng)
            if fresh is not None:
                fresh.select(number, 1)
            gan.set_rates(rate_factor(lr_decay, number, epochs * num_steps))
            index = order[i * batch_size : (i + 1) * batch_size] if gan_weight else order[:batch_size]
            losses = step(
                runtime.shard(index),
                runtime.shard(next(groups)),
                network=pool.key,
                untrained=fresh and fresh.key,
                teacher=number % max(1, len(teachers.networks)),
                operations=matching.choose_operations(rng),
            )
            yield Step(epoch, i + 1, losses)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0], [*EFFECTS, *EVALUATIONS])
    parser.usage = "%(prog)s --weight FILE [flags]"
    add = parser.add_argument
    # what is fine-tuned
    add(
        "--weight",
        required=True,
        help="checkpoint of stage 1 or 2 or of the reference code; with --gan-weight 0 also .safetensors",
    )
    add(
        "--recipe-match",
        choices=MATCH_RECIPES,
        default="paper",
        help="defaults of the flags below; energy: matching alone, in minutes",
    )
    # data
    add_data_flags(parser)
    # training
    add_gan_flags(parser, epochs=100, batch_size=64, lr=5e-6)
    add("--betas", type=decay, nargs=2, default=ADAM_BETAS, help="betas of the generator's Adam")
    add("--gan-weight", type=nonnegative, default=1.0, help="weight of the GAN's loss; 0: matching alone")
    # matching
    weights = ", ".join(f"{loss.weight:g} for {name}" for name, loss in LOSSES.items() if loss.weight != 1)
    add(
        "--match",
        choices=[*LOSSES, "none"],
        default="logit",
        help="what is matched (losses.py); none: GAN training alone, as a control",
    )
    add("--metric", choices=METRICS, help="distance of logit, feat or grad (default: mse_loss; l1; l1)")
    add("--match-weight", type=nonnegative, help=f"weight of the loss (default: {weights}, else 1)")
    add("--match-fresh", type=nonnegative, default=0.0, help="weight of a second, untrained network a step")
    add("--match-aug", action="store_true", help="the same augmentation of real and generated images")
    add("--match-strategy", default="color_crop_cutout", help="DSA operations of --match-aug")
    add(
        "--match-composition",
        choices=COMPOSITIONS,
        default="dim",
        help="how they combine; dc: one of them at a time",
    )
    add(
        "--match-batch",
        type=count,
        default=0,
        help="images of each class in batches for matching; 0: the GAN's batch",
    )
    add("--match-classes", type=positive_int, help="classes in such a batch (default: 10, or all if fewer)")
    add("--bias", action="store_true", help="--match grad: include biases and normalisation layers")
    add("--fc", action="store_true", help="--match grad: include the last layer")
    # pool
    names = ["convnet", "resnet10", "resnet18_w32", "resnet10_ap", "resnet18_ap"]
    add("--pool", nargs="+", default=names, help="networks, of which one is drawn when one is due")
    add("--pool-age", type=positive_int, help="steps until another is drawn (default: those of an epoch)")
    add("--pool-size", type=positive_int, default=1, help="networks of different ages, which take turns")
    add("--pool-steps", type=count, default=16, help="their SGD steps before each generator step")
    add("--pool-data", choices=POOL_DATA, default="real", help="images that they are trained on")
    add("--pool-lr", type=positive, default=0.01, help="learning rate of their SGD")
    add("--pool-strategy", default="color_crop", help="DSA operations of their training, or none")
    # teachers
    add("--teacher-weight", type=nonnegative, default=0.0, help="weight of the teachers' cross-entropy")
    add("--teachers", nargs="+", default=["convnet_w32"], help="networks trained on real images at first")
    add("--teacher-epochs", type=positive_int, default=4, help="passes over the real images for a teacher")
    # evaluation and run
    add_evaluation_flags(parser)
    add_run_flags(parser, tag="match")
    add_execution_flags(parser)
    parser.set_defaults_by("--recipe-match", MATCH_RECIPES, argv)
    return parser.parse_args(argv)


@cli
def main(args: argparse.Namespace) -> RunFolder:
    networks = [network_name(name, "--eval-model") for name in args.eval_model]
    teachers = [network_name(name, "--teachers") for name in args.teachers]
    pool_names = [network_name(name, "--pool") for name in args.pool]
    parse_strategy(args.match_strategy, "--match-strategy")
    parse_strategy(args.pool_strategy, "--pool-strategy")
    parse_strategy(args.diffaug, "--diffaug")
    folder = run_path(args.results_dir, args.tag)
    runtime = make_runtime(args.device, args.amp, args.channels_last, args.graphs, args.compile)
    runtime.check_batch_size(args.batch_size)
    matching = Matching(
        args.match,
        args.match_weight,
        args.match_strategy if args.match_aug else None,
        args.match_composition,
        args.metric,
        args.bias,
        args.fc,
        args.match_batch,
        args.match_classes,
        args.match_fresh,
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
    data = load_data(
        checkpoint.data_name(args.data),
        args.data_dir,
        val_size=args.val_size,
        info=checkpoint.info,
        image_size=args.image_size,
        background=args.background,
        test_folder=args.test_folder,
    )
    checkpoint.check_data(data.info)
    warn_of_seen_images(checkpoint, args.val_size)
    recipe = make_recipe(args.recipe, data.info.name, epochs=args.epochs_eval, mix_p=args.mix_p)
    num_steps = matching.steps_per_epoch(
        data.train, args.batch_size, args.gan_weight, args.pool_steps, data.info.class_names
    )
    generator, discriminator = checkpoint.players() if args.gan_weight else (checkpoint.trainee(), None)
    gan = GAN(
        runtime.place(generator),
        discriminator and runtime.place(discriminator),
        args.lr,
        args.ema,
        args.lr_d,
        tuple(args.betas),
    )
    pool = Pool(
        pool_names,
        data.info,
        args.pool_lr,
        args.pool_strategy,
        args.seed,
        runtime,
        args.pool_size,
        gan.generator if args.pool_data == "generated" else None,
        args.pool_steps,
        args.pool_age,
    )
    torch.manual_seed(runtime.own_seed(args.seed, "match"))

    unseen = min(args.val_size, checkpoint.val_size or 0)  # the splits are nested
    header = {"stage": "match", "config": checkpoint.config, "info": data.info.to_dict(), "val_size": unseen}
    inputs = {
        "image set": data.info.to_dict(),
        "sha256 of --weight": file_hash(args.weight),
        **length_of_decay(args.lr_decay, args.epochs),
    }
    run = RunFolder(folder, vars(args), inputs, [gan, pool], header, runtime, num_steps)
    data = data.to(runtime.device)
    trained = []
    if args.teacher_weight:
        trained = make_teachers(
            teachers, args.teacher_epochs, data, folder, args.val_size, args.seed, runtime
        )
    steps = train_match(
        gan,
        pool,
        data.train,
        matching,
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr_decay=args.lr_decay,
        gp_weight=args.gp_weight,
        diffaug=args.diffaug,
        gan_weight=args.gan_weight,
        teachers=Teachers(trained, args.teacher_weight),
        seed=args.seed,
        runtime=runtime,
        start=run.position,
    )
    first_lines = [data.describe(), describe_networks(pool.names, data.info, **gan.players)]
    # no best.pth is chosen by images that the generator has seen
    choose_by = "val_accuracy" if 0 < args.val_size <= unseen else None
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
        run.close_epoch(epoch, values, sample_grid(gan.deployed, args.seed), choose_by)
    print(run.best_path)
    return run


if __name__ == "__main__":
    main(parse_args())
