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
    # Ctrl-C during the imports ends the process at once, without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch
from torch import Tensor

from augment import parse_strategy
from data import ImageSet, add_data_flags, epoch_order, load_data, steps_per_epoch
from engine.files import run_path
from engine.graphs import Losses
from engine.run_folder import RunFolder, add_run_flags
from engine.runtime import Runtime, add_execution_flags, make_runtime
from engine.seeds import seeded
from engine.steps import START, Position, Step
from engine.tensors import frozen
from losses import generator_loss
from models import GANS, build_gan, describe_networks, network_name
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
from scoring.evaluation import EVALUATIONS, add_evaluation_flags, evaluate_generator
from scoring.recipes import make_recipe
from utils import Effect, Parser, cli, out_of_memory_hint, positive_int


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
    operations = parse_strategy(diffaug, "--diffaug")

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
    add = parser.add_argument
    # data
    add_data_flags(parser, "cifar10")
    # networks
    add("--gan", choices=GANS, default="dim", help="dim: DiM's networks; resnet: residual, with projection")
    add("--width", type=positive_int, help="channels of both (default: 196 for dim, 224 for resnet)")
    add("--z-dim", type=positive_int, help="latent size (default: 100, or twice the classes if more)")
    # training
    add("--d-steps", type=positive_int, default=1, help="discriminator updates a step, on a batch each")
    add_gan_flags(parser, epochs=150, batch_size=128, lr=1e-4)
    # evaluation and run
    add_evaluation_flags(parser)
    add_run_flags(parser, tag="gan")
    add_execution_flags(parser)
    return parser.parse_args(argv)


@cli
def main(args: argparse.Namespace) -> RunFolder:
    networks = [network_name(name, "--eval-model") for name in args.eval_model]
    parse_strategy(args.diffaug, "--diffaug")
    folder = run_path(args.results_dir, args.tag)
    runtime = make_runtime(args.device, args.amp, args.channels_last, args.graphs, args.compile)
    runtime.check_batch_size(args.batch_size)
    data = load_data(
        args.data,
        args.data_dir,
        val_size=args.val_size,
        image_size=args.image_size,
        background=args.background,
        test_folder=args.test_folder,
    )
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
    first_lines = [data.describe(), describe_networks([], data.info, **gan.players)]
    choose_by = None if data.val is None else "val_accuracy"
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
