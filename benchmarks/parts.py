"""What benchmarks/speed.py times: one unit of work of each part of the stages, with two plain loops as
baselines."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

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
from replay.methods import METHODS
from scoring.evaluation import validate_group
from scoring.recipes import RECIPES
from scoring.sources import Generated, generate
from scoring.trainer import train_steps

INFO = DATASETS["cifar10"].info
POOL = ["convnet", "resnet10", "resnet18_w32", "resnet10_ap", "resnet18_ap"]
FOREVER = 10**9
CONFIG = {"num_classes": 10, "channels": 3, "image_size": 32, "z_dim": 100}


class Pictures(Dataset):
    """Single images in [-1, 1], converted one by one as they are asked for."""

    def __init__(self, images: ImageSet):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.images.images[i].float() / 127.5 - 1, int(self.images.labels[i])


class Loaded:
    """A stand-in for an ImageSet whose batches come from a DataLoader; the index asked for is ignored."""

    def __init__(self, images: ImageSet, batch_size: int, device: torch.device, uses: int):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about four workers on fewer cores
            self.loader = DataLoader(
                Pictures(images), batch_size, shuffle=True, num_workers=4, drop_last=True
            )
        self.device, self.uses, self.left = (
            device,
            uses,
            0,
        )  # uses: batches taken before the loader is restarted

    def __len__(self) -> int:
        return len(self.loader.dataset)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        if self.left == 0:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.iterator, self.left = iter(self.loader), min(self.uses, len(self.loader))
        self.left -= 1
        images, labels = next(self.iterator)
        return images.to(self.device), labels.to(self.device)


class LoadedPool(Pool):
    """A pool whose updates take their batches from a loader of their own."""

    def train_step(self, train: ImageSet, index: Tensor, choices: torch.Generator) -> None:
        super().train_step(self.loaded, index, choices)


def images_on(device: torch.device, count: int = 50_000) -> ImageSet:
    """Random noise in the shape of CIFAR-10; the content of images does not change the timing."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=draw)
    return ImageSet(images, torch.randint(10, (count,), generator=draw)).to(device)


def pair(width: int, runtime: Runtime, gan: str = "dim") -> GAN:
    return GAN(*(runtime.place(player) for player in build_gan(CONFIG | {"gan": gan, "width": width})), 1e-4)


def read_losses(steps: Iterator, at_each_step: bool) -> Callable[[], object]:
    """A unit of work: the next step; with `at_each_step` its losses are also read, as in plain loops."""
    if at_each_step:
        return lambda: [loss.item() for loss in next(steps).losses.values()]
    return lambda: next(steps)


# Rows: each function takes (variant, runtime, batch_size, width, network) and returns one unit of work.
def stage1(
    variant: str, runtime: Runtime, batch_size: int, width: int, network: str, gan: str = "dim"
) -> Callable[[], object]:
    images = images_on(torch.device("cpu") if variant == "loader" else runtime.device)
    train = Loaded(images, batch_size, runtime.device, FOREVER) if variant == "loader" else images
    steps = train_gan(
        pair(width, runtime, gan),
        train,
        epochs=FOREVER,
        batch_size=batch_size,
        gp_weight=10,
        seed=0,
        runtime=runtime,
    )
    return read_losses(steps, variant == "loader")


def stage2(variant: str, runtime: Runtime, batch_size: int, width: int, network: str) -> Callable[[], object]:
    """A stage-2 step with 16 pool updates."""
    images = images_on(torch.device("cpu") if variant == "loader" else runtime.device)
    pool = (LoadedPool if variant == "loader" else Pool)(
        [network], INFO, 0.01, "color_crop", 0, runtime, steps=16
    )
    if variant == "loader":
        pool.loaded, images = (
            Loaded(images, batch_size, runtime.device, 16),
            Loaded(images, batch_size, runtime.device, FOREVER),
        )
    matching = Matching(strategy="color_crop_cutout")
    common = {"epochs": FOREVER, "batch_size": batch_size, "gp_weight": 10, "seed": 0, "runtime": runtime}
    return read_losses(
        train_match(pair(width, runtime), pool, images, matching, **common),
        variant == "loader",
    )


def matching_step(
    variant: str, runtime: Runtime, batch_size: int, width: int, network: str
) -> Callable[[], object]:
    """A step of `pool_match.py --recipe-match energy` with its pool updates: `batch_size` images of each of
    ten classes."""
    recipe, train = MATCH_RECIPES["energy"], images_on(runtime.device)
    gan = GAN(pair(width, runtime).generator, None, recipe["lr"], recipe["ema"], betas=tuple(recipe["betas"]))
    own = (recipe["pool_size"], gan.generator, recipe["pool_steps"], recipe["pool_age"])
    pool = Pool([network], INFO, 0.01, "color_crop", 0, runtime, *own)
    teachers = [runtime.place(build_classifier(network, INFO)).eval().requires_grad_(False)]
    common = recipe_settings(batch_size) | {
        "epochs": FOREVER,
        "batch_size": recipe["batch_size"],
        "seed": 0,
        "runtime": runtime,
    }
    teachers = Teachers(teachers, recipe["teacher_weight"])
    return read_losses(train_match(gan, pool, train, teachers=teachers, **common), False)


def pool_update(
    variant: str, runtime: Runtime, batch_size: int, width: int, network: str
) -> Callable[[], object]:
    images = images_on(runtime.device)
    pool = Pool([network], INFO, 0.01, "color_crop", 0, runtime)
    pool.select(0, 1)
    index, choices = torch.arange(batch_size, device=runtime.device), torch.Generator()
    return lambda: pool.train_step(images, index, choices)


def classifier_epoch(
    variant: str, runtime: Runtime, batch_size: int, width: int, network: str
) -> Callable[[], object]:
    """An epoch of a classifier on 500 images that reside on the device (CIFAR-10 at IPC 50)."""
    images, labels = images_on(runtime.device, 500).batch(torch.arange(500, device=runtime.device))
    recipe, streams = (
        replace(RECIPES["dim"], epochs=FOREVER, batch_size=batch_size),
        RandomStreams.seeded(0, runtime.device),
    )
    classifier = runtime.place(build_classifier(network, INFO))
    steps = train_steps(classifier, iter(lambda: (images, labels), None), recipe, streams, runtime)
    return lambda: [next(steps) for _ in range(-(-500 // batch_size))]


def validation(
    variant: str,
    runtime: Runtime,
    batch_size: int,
    width: int,
    network: str,
    epochs: int | None = None,
    ipc: int = 10,
    tests: int = 1000,
) -> Callable[[], object]:
    """Validation: five classifiers of ten epochs (a hundred on CUDA) on the stream of a generator, IPC 10.

    With CUDA graphs the five are trained side by side.
    """
    data, generator = Data(INFO, None, None, images_on(runtime.device, tests)), pair(width, runtime).generator
    source = Generated(generator, ipc, False, 0, runtime)
    recipe = replace(
        RECIPES["dim"], epochs=epochs or (100 if runtime.device.type == "cuda" else 10), batch_size=batch_size
    )
    groups = [range(5)] if runtime.graphs else [[seed] for seed in range(5)]
    return lambda: [validate_group(network, source, data, recipe, group, runtime) for group in groups]


def generation(
    variant: str, runtime: Runtime, batch_size: int, width: int, network: str
) -> Callable[[], object]:
    """Generation of `batch_size` images."""
    generator, streams = pair(width, runtime).generator, RandomStreams.seeded(0, runtime.device)
    labels = torch.arange(batch_size, device=runtime.device) % 10
    return lambda: generate(generator, labels, streams.device, runtime)


def continual_steps(
    variant: str, runtime: Runtime, batch_size: int, width: int, network: str
) -> Callable[[], object]:
    """Ten steps of experience replay: `batch_size` images of the task and as many from a buffer of 500."""
    flags = continual.parse_args(
        ["--method", "er", "--batch-size", str(batch_size), "--epochs", str(FOREVER)]
    )
    memory = Memory(None, Buffer(INFO, runtime.device, max_images=500), None, 0)
    learners = [Learner(0, network, INFO, flags.lr, None, 0, runtime)]
    tasks, options = [images_on(runtime.device, 5000)], continual.make_options(vars(flags), continual.TRACKS)
    learner = Continual(
        METHODS["er"],
        options,
        tasks,
        [list(range(10))],
        learners,
        memory,
        INFO,
        0,
        runtime,
        train_gan,
        train_match,
    )
    steps = learner.stream_steps(0, 0)
    return lambda: [next(steps) for _ in range(10)]


ROWS = {
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
COMPILED = ROWS.keys() - {
    "stage-1 step",
    "stage-1 step, resnet",
    "generation",
}  # these have nothing to compile
