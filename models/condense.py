"""Condensed images: a few images of each class whose pixels are optimised to look to untrained networks as
the real images do."""

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from augment import draw_operations
from data import DataInfo, ImageSet, to_float, to_uint8
from engine.graphs import Losses
from engine.optim import load_optimizer
from engine.runtime import Runtime
from engine.seeds import derive_seed
from engine.tensors import to_device
from losses import LOSSES
from models import network_name
from models.matching import Matching
from models.pool import NetworkKey, Pool
from utils import UsageError, positive, positive_int

INITS = ("real", "noise")
STRATEGY = "color_crop_cutout_flip_scale_rotate"  # that of DM, one operation at a time (the composition "dc")
MOMENTUM = 0.5  # that of DM
MATCHES = {name: loss for name, loss in LOSSES.items() if "trained" not in loss.needs}


@dataclass(frozen=True)
class Condensing:
    """How images are condensed.

    match: a key of LOSSES that needs no trained networks, but "mean" for "mean-last", as in all records.
    steps: updates of the pixels. lr: learning rate of SGD on them. batch: real images of each class in a
    step, two or more but for "grad", and at most as many as the smallest class has. network: name of the
    networks, a fresh untrained one in each step. init: "real" starts from random real images of the class,
    "noise" from normal noise. images: condensed images of each class in a step, drawn anew for each, None =
    all.
    """

    match: str = "mean"
    steps: int = 1000
    lr: float = 5.0
    batch: int = 64
    network: str = "convnet_w32"
    init: str = "real"
    images: int | None = None

    @property
    def loss(self) -> str:
        """The key of LOSSES."""
        return "mean-last" if self.match == "mean" else self.match

    def in_step(self, ipc: int) -> int:
        """How many of `ipc` condensed images of a class are in a step."""
        return min(self.images or ipc, ipc)

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> "Condensing":
        """Make the settings of the flags below; those not given have their defaults. Raises UsageError for an
        unknown network."""
        given = {field.name: flags.get(f"condense_{field.name}") for field in fields(cls)}
        given = {name: value for name, value in given.items() if value is not None}
        loss = given.pop("match", "mean-last")
        if given.get("batch") == 1 and loss != "grad":
            raise UsageError(
                f"--condense-batch 1: --condense-match {loss} needs two or more real images of each class, "
                "found 1"
            )
        if "network" in given:
            given["network"] = network_name(given["network"], "--condense-network")
        match = "mean" if loss == "mean-last" else loss
        return cls(**{"match": match, "lr": default_rate(loss), **given})


def default_rate(loss: str) -> float:
    """Default learning rate of the pixels, in [-1, 1]; see Condensed."""
    return 0.3 if loss == "grad" else 5.0


def add_condense_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of Condensing.of, the same in every script."""
    add = parser.add_argument
    add(
        "--condense-match",
        choices=MATCHES,
        help="condensed: the loss, in untrained networks, such as mean-last (DM), dist (energy distance) or "
        "grad (DC) (default: mean-last)",
    )
    add("--condense-steps", type=positive_int, help="condensed: updates of the pixels (default: 1000)")
    add(
        "--condense-lr",
        type=positive,
        help="condensed: learning rate of the pixels (default: 5, or 0.3 for grad)",
    )
    add(
        "--condense-batch",
        type=positive_int,
        help="condensed: real images of each class in a step (default: 64)",
    )
    add("--condense-network", help="condensed: kind of the untrained networks (default: convnet_w32)")
    add(
        "--condense-images",
        type=positive_int,
        help="condensed: condensed images of each class in a step, drawn anew (default: all)",
    )
    add("--condense-init", choices=INITS, help="condensed: what the pixels start from (default: real)")


@dataclass(eq=False)
class Condensed:
    """Condensed images in training: `ipc` images of each class that `train` holds.

    pixels: (K, ipc, C, H, W) in [-1, 1], to which they are clipped after each step. The loss is the distance
    times the number of images in the step, so that the gradient of an image depends on neither, and one
    learning rate serves all sizes. lossy: what a lossy codec makes of uint8 images (B, C, H, W). The images
    that are matched are then those that will be decoded, and the gradient passes the codec as if it changed
    nothing (straight-through, Bengio et al. 2013, arXiv:1308.3432). state_dict() holds all that the next step
    depends on, except the state of the random numbers.
    """

    train: ImageSet
    ipc: int
    settings: Condensing
    info: DataInfo
    seed: int
    runtime: Runtime
    lossy: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self):
        loss, device = self.settings.loss, self.runtime.device
        self.classes, counts = self.train.labels.unique(return_counts=True)  # (K,)
        batch = min(self.settings.batch, int(counts.min()))
        if batch == 1 and loss != "grad":
            label = int(self.classes[counts.argmin()])
            raise UsageError(
                f"--condense-match {loss}: class {label} has 1 training image, expected two or more"
            )
        # metric and fc: DC's (arXiv:2006.05929)
        self.matching = Matching(loss, 1.0, STRATEGY, "dc", "cos", fc=True, batch=batch)
        # label -> row in pixels
        self.row_of = torch.zeros(self.info.num_classes, dtype=torch.long, device=device)
        self.row_of[self.classes] = torch.arange(len(self.classes), device=device)
        self.pixels = nn.Parameter(torch.stack([self._start(int(label)) for label in self.classes]))
        self.change = torch.zeros_like(self.pixels, requires_grad=False)  # by the codec
        self.optim = torch.optim.SGD([self.pixels], self.settings.lr, momentum=MOMENTUM)
        seed = derive_seed(self.seed, "condense")
        self.pool = Pool([self.settings.network], self.info, 0.0, "none", seed, self.runtime)
        self.step = self.runtime.graphed(self._step)

    def _start(self, label: int) -> Tensor:
        """The first pixels (ipc, C, H, W) of a class, on the device."""
        ipc = self.ipc
        rng = torch.Generator().manual_seed(derive_seed(self.seed, "condensed", label))
        members = (self.train.labels == label).nonzero().flatten()
        if self.settings.init == "noise":
            noise = torch.randn(ipc, *self.train.images.shape[1:], generator=rng)
            return noise.clamp(-1, 1).to(members.device)
        if ipc > len(members):
            raise UsageError(
                f"{ipc} condensed images of class {label}, which has {len(members)} real ones to start "
                "from: expected fewer"
            )
        chosen = torch.randperm(len(members), generator=rng)[:ipc].to(members.device)
        return to_float(self.train.images[members[chosen]])

    def steps(self, done: int = 0) -> Iterator[Losses]:
        """Update the pixels without end, one yield a step, after the first `done` steps; DM (Zhao & Bilen
        2023, arXiv:2110.04181)."""
        batches = self.matching.batches(self.train, self.runtime.device, self.seed, "condense", skip=done)
        for number in itertools.count(done):
            self.pool.select(number, 1)
            choices = torch.Generator().manual_seed(derive_seed(self.seed, "condense operations", number))
            columns = self._columns(number)
            if self.lossy is not None:
                pixels = self.pixels.detach()[:, columns]
                decoded = self.lossy(to_uint8(pixels.flatten(0, 1)))
                self.change[:, columns] = to_float(decoded).view_as(pixels) - pixels
            operations = self.matching.choose_operations(choices)
            yield self.step(next(batches), columns, network=self.pool.key, operations=operations)

    def _columns(self, number: int) -> Tensor:
        """Which condensed images of each class are in step `number`: their places in the class, (images,) on
        the device."""
        size = self.settings.in_step(self.ipc)
        if size == self.ipc:
            return torch.arange(size, device=self.pixels.device)
        rng = torch.Generator().manual_seed(derive_seed(self.seed, "condense images", number))
        return to_device(torch.randperm(self.ipc, generator=rng)[:size], self.pixels.device)

    def _step(
        self, groups: Tensor, columns: Tensor, network: NetworkKey, operations: tuple[str, ...]
    ) -> Losses:
        """One update by the real images at the indices `groups` (classes, batch), each row of one class, of
        those at `columns`."""
        real, y = self.train.batch(groups.flatten())
        rows = self.row_of[self.train.labels[groups[:, 0]]][:, None]
        images = self.pixels[rows, columns] + self.change[rows, columns]
        images = images.flatten(0, 1)  # (classes * images, C, H, W)
        augment = draw_operations(operations, 1, real.shape[-1], real.device)
        with self.runtime.autocast():
            model, _ = self.pool.networks[network]
            loss = self.matching.loss(model, real, images, y, augment, self.runtime, len(groups))
        self.optim.zero_grad()
        (len(images) * loss).backward(inputs=[self.pixels])
        self.optim.step()
        with torch.no_grad():
            self.pixels.clamp_(-1, 1)
        return {"loss_condense": loss}

    def contents(self) -> ImageSet:
        """The images so far as uint8 (K * ipc, C, H, W), sorted by class, and their labels."""
        return ImageSet(
            to_uint8(self.pixels.detach().flatten(0, 1)), self.classes.repeat_interleave(self.ipc)
        )

    def state_dict(self) -> dict:
        """The pixels and their momentum."""
        return {"pixels": self.pixels.detach(), "optim": self.optim.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Restore what state_dict() returned."""
        with torch.no_grad():
            self.pixels.copy_(state["pixels"])
        load_optimizer(self.optim, state["optim"])
