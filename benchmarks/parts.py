"""What benchmarks/speed.py and benchmarks/profile.py run: one unit of work of each part of the stages."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

import continual
from data import DATASETS, Data, ImageSet
from engine.runtime import Runtime
from engine.seeds import RandomStreams
from gen_condense import train_gan
from models import build_classifier, build_gan
from models.gan import GAN
from models.matching import MATCH_RECIPES, Matching, Teachers, recipe_settings
from models.pool import Pool
from pool_match import train_match
from replay.buffer import Buffer
from replay.continual import Continual
from replay.learner import Learner
from replay.memory import Memory
from replay.plan import Plan
from scoring.evaluation import validate_group
from scoring.recipes import RECIPES
from scoring.sources import Generated, generate
from scoring.trainer import train_steps

INFO = DATASETS["cifar10"].info
POOL = ["convnet", "resnet10", "resnet18_w32", "resnet10_ap", "resnet18_ap"]
FOREVER = 10**9
CONFIG = {"num_classes": 10, "channels": 3, "image_size": 32, "z_dim": 100}


def noise(runtime: Runtime, count: int = 50_000) -> ImageSet:
    """Random noise in the shape of CIFAR-10; the content of images does not change the timing."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=rng)
    return ImageSet(images, torch.randint(10, (count,), generator=rng)).to(runtime.device)


def make_gan(width: int, runtime: Runtime, gan: str = "dim") -> GAN:
    players = build_gan(CONFIG | {"gan": gan, "width": width})
    return GAN(*(runtime.place(player) for player in players), 1e-4)


# Each function takes (runtime, batch_size, width, network) and returns one unit of work.
Unit = Callable[[], object]


def stage1(runtime: Runtime, batch_size: int, width: int, network: str, gan: str = "dim") -> Unit:
    common = {"epochs": FOREVER, "batch_size": batch_size, "gp_weight": 10, "seed": 0, "runtime": runtime}
    steps = train_gan(make_gan(width, runtime, gan), noise(runtime), **common)
    return lambda: next(steps)


def stage2(runtime: Runtime, batch_size: int, width: int, network: str) -> Unit:
    """A stage-2 step with 16 pool updates."""
    pool = Pool([network], INFO, 0.01, "color_crop", 0, runtime, steps=16)
    matching = Matching(strategy="color_crop_cutout")
    common = {"epochs": FOREVER, "batch_size": batch_size, "gp_weight": 10, "seed": 0, "runtime": runtime}
    gan = make_gan(width, runtime)
    steps = train_match(gan, pool, noise(runtime), matching, **common)
    return lambda: next(steps)


def matching_step(runtime: Runtime, batch_size: int, width: int, network: str) -> Unit:
    """A step of `pool_match.py --recipe-match energy`: `batch_size` images of each of ten classes."""
    recipe = MATCH_RECIPES["energy"]
    generator = make_gan(width, runtime).generator
    gan = GAN(generator, None, recipe["lr"], recipe["ema"], betas=tuple(recipe["betas"]))
    own = (recipe["pool_size"], generator, recipe["pool_steps"], recipe["pool_age"])
    pool = Pool([network], INFO, 0.01, "color_crop", 0, runtime, *own)
    teachers = [runtime.place(build_classifier(network, INFO)).eval().requires_grad_(False)]
    common = recipe_settings(batch_size) | {
        "epochs": FOREVER,
        "batch_size": recipe["batch_size"],
        "seed": 0,
        "runtime": runtime,
    }
    teachers = Teachers(teachers, recipe["teacher_weight"])
    steps = train_match(gan, pool, noise(runtime), teachers=teachers, **common)
    return lambda: next(steps)


def pool_update(runtime: Runtime, batch_size: int, width: int, network: str) -> Unit:
    images = noise(runtime)
    pool = Pool([network], INFO, 0.01, "color_crop", 0, runtime)
    pool.select(0, 1)
    index = torch.arange(batch_size, device=runtime.device)
    rng = torch.Generator()
    return lambda: pool.train_step(images, index, rng)


def classifier_epoch(runtime: Runtime, batch_size: int, width: int, network: str) -> Unit:
    """An epoch of a classifier on 500 images that reside on the device (CIFAR-10 at IPC 50)."""
    batch = noise(runtime, 500).batch(torch.arange(500, device=runtime.device))
    recipe = replace(RECIPES["dim"], epochs=FOREVER, batch_size=batch_size)
    streams = RandomStreams.seeded(0, runtime.device)
    classifier = runtime.place(build_classifier(network, INFO))
    steps = train_steps(classifier, iter(lambda: batch, None), recipe, streams, runtime)
    return lambda: [next(steps) for _ in range(-(-500 // batch_size))]


def validation(
    runtime: Runtime,
    batch_size: int,
    width: int,
    network: str,
    epochs: int | None = None,
    ipc: int = 10,
    tests: int = 1000,
) -> Unit:
    """Validation: five classifiers of ten epochs (a hundred on CUDA) on the stream of a generator, IPC 10.

    With CUDA graphs the five are trained side by side.
    """
    data = Data(INFO, None, None, noise(runtime, tests))
    source = Generated(make_gan(width, runtime).generator, ipc, False, 0, runtime)
    epochs = epochs or (100 if runtime.device.type == "cuda" else 10)
    recipe = replace(RECIPES["dim"], epochs=epochs, batch_size=batch_size)
    groups = [range(5)] if runtime.graphs else [[seed] for seed in range(5)]
    return lambda: [validate_group(network, source, data, recipe, group, runtime) for group in groups]


def generation(runtime: Runtime, batch_size: int, width: int, network: str) -> Unit:
    """Generation of `batch_size` images."""
    generator = make_gan(width, runtime).generator
    rng = RandomStreams.seeded(0, runtime.device).device
    labels = torch.arange(batch_size, device=runtime.device) % 10
    return lambda: generate(generator, labels, rng, runtime)


def continual_steps(runtime: Runtime, batch_size: int, width: int, network: str) -> Unit:
    """Ten steps of experience replay: `batch_size` images of the task and as many from a buffer of 500."""
    args = continual.parse_args(
        ["er", "--buffer-size", "500", "--batch-size", str(batch_size), "--epochs", str(FOREVER)]
    )
    plan = Plan(
        **continual.settings_of(args),
        tasks=[noise(runtime, 5000)],
        classes=[list(range(10))],
        info=INFO,
        runtime=runtime,
    )
    memory = Memory(None, Buffer(INFO, runtime.device, max_images=500), None)
    learners = [Learner(0, network, INFO, args.lr, None, 0, runtime)]
    learner = Continual(plan, learners, memory)
    steps = learner.stream_steps(0, 0)
    return lambda: [next(steps) for _ in range(10)]


PARTS = {
    "stage-1 step": stage1,
    "stage-1 step, resnet": partial(stage1, gan="resnet"),
    "stage-2 step": stage2,
    "matching step": matching_step,
    "pool update": pool_update,
    "classifier epoch": classifier_epoch,
    "validation, n = 5": validation,
    "generation": generation,
    "ten stage-4 steps": continual_steps,
}
NOTHING_TO_COMPILE = ("stage-1 step", "stage-1 step, resnet", "generation")
