"""Stage 1: distil a labelled image set into a class-conditional generator, trained as a GAN.

    python gen_condense.py --tag gan

Writes results/TAG/: args.json, metrics.jsonl, TensorBoard events, outputs/img_EPOCH.png, last.pth and, where
a held-out split chooses it, best.pth. The last line printed is the checkpoint to go on with. Stopped, the
same command continues.
"""

import argparse
import signal
from collections.abc import Iterator

if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Ctrl-C during the imports ends the process at once, without a traceback

import torch
from torch import Tensor

import data as datasets
from data import ImageSet, add_folder_flags, epoch_order, load_data, steps_per_epoch
from engine.files import run_path
from engine.graphs import Losses
from engine.run_folder import RunFolder
from engine.runtime import Runtime, add_execution_flags, make_runtime
from engine.seeds import seeded
from engine.steps import START, Position, Step
from engine.tensors import frozen
from losses import generator_loss
from models import GANS, build_gan, describe_networks, network_name
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
from scoring.evaluation import BUDGETS, EVALUATIONS, evaluate_generator
from scoring.recipes import RECIPES, make_recipe
from utils import (
    Effect,
    Parser,
    cli,
    count,
    decay,
    nonnegative,
    out_of_memory_hint,
    positive,
    positive_int,
    probability_or_off,
    seed_number,
    two_or_more,
)


def train_gan(
    gan: GAN,
    train: ImageSet,
    *,
    epochs: int,
    batch_size: int,
    gp_weight: float,
    seed: int,
    runtime: Runtime,
    d_steps: int = 1,
    lr_decay: str = "none",
    diffaug: str = "none",
    classes: Tensor | None = None,
    start: Position = START,
) -> Iterator[Step]:
    """Train `gan` in place, one yield a step; Wang et al. 2023 (arXiv:2303.04707), first stage.

    A step is one update of the generator and d_steps of the discriminator, each on a batch of its own. An
    epoch is a shuffled pass over `train` in whole steps, its order a function of (seed, epoch). classes (M,):
    those that `train` holds, None = all. `start` is where an earlier run of the same seed stopped. Raises
    UsageError where the set is smaller than a step.
    """
    generator, discriminator = gan.generator.train(), gan.discriminator.train()
    operations = parse_diffaug(diffaug)

    def step(index: Tensor) -> Losses:  # (d_steps, B)
        batches = [train.batch(batch) for batch in index]
        _, y = batches[0]

        # loss_g = -E[D(fake)] + CE(fake), on fakes of the real labels; CE is DiM's alone
        with runtime.autocast():
            fake = generator.sample(y)
            with frozen(discriminator):
                scores, logits = discriminator(differentiable_augment(fake, operations), y)
        loss_g = generator_loss(scores, logits, y)
        gan.optim_g.zero_grad()
        loss_g.backward()
        runtime.update(gan.optim_g)
        gan.update_ema()

        # dim:    loss_d = E[D(fake)] - E[D(real)] + CE(fake) + CE(real) + gp_weight * GP, on fakes of uniform
        # labels resnet: loss_d = E[relu(1 - D(real))] + E[relu(1 + D(fake))]
        for real, y in batches:
            loss_d = discriminator_step(gan, real, y, gp_weight, runtime, operations, classes)
        return {"loss_d": loss_d, "loss_g": loss_g}

    step = runtime.graphed(step)
    num_images = d_steps * batch_size
    num_steps = steps_per_epoch(len(train), batch_size, d_steps)
    for epoch in range(start.epoch, epochs):
        order = epoch_order(len(train), runtime.device, seed, "gan", epoch)
        for i in range(start.step if epoch == start.epoch else 0, num_steps):
            gan.set_rates(rate_factor(lr_decay, epoch * num_steps + i, epochs * num_steps))
            index = order[i * num_images : (i + 1) * num_images].view(d_steps, batch_size)
            yield Step(epoch, i + 1, step(runtime.shard(index)))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    of_dim = Effect(
        ("gp_weight",), lambda args: args.gan == "dim", "with --gan resnet, which has no gradient penalty"
    )
    parser = Parser(__doc__.splitlines()[0], [of_dim, *EVALUATIONS])
    # data
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
        help="held-out training images, class-balanced, that choose best.pth",
    )
    # networks
    parser.add_argument(
        "--gan",
        choices=GANS,
        default="dim",
        help="dim: the networks of DiM; resnet: residual networks with a projection discriminator",
    )
    parser.add_argument(
        "--width", type=positive_int, help="channels of both networks (default: 196 for dim, 224 for resnet)"
    )
    parser.add_argument(
        "--z-dim", type=positive_int, help="latent size (default 100, or twice the number of classes if more)"
    )
    # training
    parser.add_argument(
        "--epochs",
        type=positive_int,
        default=150,
        help="passes over the set; a larger number continues a finished run",
    )
    parser.add_argument("--batch-size", type=two_or_more, default=128, help="real images per step")
    parser.add_argument(
        "--d-steps",
        type=positive_int,
        default=1,
        help="discriminator updates per step, each on its own real images",
    )
    parser.add_argument(
        "--lr", type=positive, default=1e-4, help="learning rate of Adam for generator and discriminator"
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
    parser.add_argument("--tag", default="gan", help="name of the folder under --results-dir")
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
    return parser.parse_args(argv)


@cli
def main(args: argparse.Namespace) -> RunFolder:
    networks = [network_name(name, "--eval-model") for name in args.eval_model]
    parse_diffaug(args.diffaug)
    folder = run_path(args.results_dir, args.tag)
    runtime = make_runtime(args.device, args.amp, args.channels_last, args.graphs, args.compile)
    runtime.check_batch_size(args.batch_size)
    folder_flags = {
        "image_size": args.image_size,
        "background": args.background,
        "test_folder": args.test_folder,
    }
    data = load_data(args.data, args.data_dir, val_size=args.val_size, **folder_flags)
    recipe = make_recipe(args.recipe, data.info.name, epochs=args.epochs_eval, mix_p=args.mix_p)
    num_steps = steps_per_epoch(len(data.train), args.batch_size, args.d_steps)
    config = {
        "gan": args.gan,
        "num_classes": data.info.num_classes,
        "channels": data.info.channels,
        "image_size": data.info.image_size,
        "width": args.width or GANS[args.gan].width,
        "z_dim": args.z_dim or max(100, 2 * data.info.num_classes),
    }
    with seeded(torch.device("cpu"), args.seed, "init"), out_of_memory_hint("--width"):
        generator, discriminator = build_gan(config)
    gan = GAN(runtime.place(generator), runtime.place(discriminator), args.lr, args.ema, args.lr_d)
    torch.manual_seed(runtime.own_seed(args.seed, "gan"))

    header = {"stage": "gan", "config": config, "info": data.info.to_dict(), "val_size": args.val_size}
    inputs = {"image set": data.info.to_dict()} | length_of_decay(args.lr_decay, args.epochs)
    run = RunFolder(folder, vars(args), inputs, [gan], header, runtime, num_steps)
    data = data.to(runtime.device)
    steps = train_gan(
        gan,
        data.train,
        epochs=args.epochs,
        batch_size=args.batch_size,
        d_steps=args.d_steps,
        lr_decay=args.lr_decay,
        gp_weight=args.gp_weight,
        diffaug=args.diffaug,
        seed=args.seed,
        runtime=runtime,
        start=run.position,
    )
    players = {"generator": gan.generator, "discriminator": gan.discriminator}
    first_lines = [data.describe(), describe_networks([], data.info, **players)]
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
        choose_by = None if data.val is None else "val_accuracy"
        run.close_epoch(epoch, values, sample_grid(gan.deployed, args.seed), choose_by)
    print(run.best_path)
    return run


if __name__ == "__main__":
    main(parse_args())
