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
from models import network_name
from models.matching import ANY_NUMBER, Matching
from models.pool import NetworkKey, Pool
from utils import UsageError, positive, positive_int

INITS = ("real", "noise")
STRATEGY = "color_crop_cutout_flip_scale_rotate"  # that of DM, one operation at a time (the composition "dc")
MOMENTUM = 0.5  # that of DM
# Default learning rates of the pixels, in [-1, 1]; see Condensed.
RATES = {"mean": 5.0, "dist": 5.0, "grad": 0.3}


@dataclass(frozen=True)
class Condensing:
    """How images are condensed.

    match: one of ANY_NUMBER. steps: updates of the pixels. lr: learning rate of SGD on them. batch: real
    images of each class in a step, two or more but for "grad", and at most as many as the smallest class has.
    network: name of the networks, a fresh untrained one in each step. init: "real" starts from random real
    images of the class, "noise" from normal noise. images: condensed images of each class in a step, drawn
    anew for each, None = all.
    """

    match: str
    steps: int
    lr: float
    batch: int
    network: str
    init: str
    images: int | None = None

    def in_step(self, ipc: int) -> int:
        """How many of `ipc` condensed images of a class are in a step."""
        return min(self.images or ipc, ipc)

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> "Condensing":
        """Make the settings of the flags below; those not given have their defaults. Raises UsageError for an
        unknown network."""
        given = {field.name: flags.get(f"condense_{field.name}") for field in fields(cls)}
        match = given["match"] or "mean"
        if given["batch"] == 1 and match != "grad":
            raise UsageError(
                f"--condense-batch 1: --condense-match {match} needs two or more real images of each class, "
                "found 1"
            )
        numbers = {"steps": 1000, "lr": RATES[match], "batch": 64, "images": None}
        defaults = {"match": match, **numbers, "network": "convnet_w32", "init": "real"}
        filled = {name: defaults[name] if value is None else value for name, value in given.items()}
        return cls(**filled | {"network": network_name(filled["network"], "--condense-network")})


def add_condense_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of Condensing.of, the same in every script."""
    rates = ", ".join(f"{rate:g} for {name}" for name, rate in RATES.items())
    parser.add_argument(
        "--condense-match",
        choices=ANY_NUMBER,
        help="condensed: what is matched in untrained networks: mean features (DM), their energy distance, "
        "or gradients (default: mean)",
    )
    parser.add_argument(
        "--condense-steps", type=positive_int, help="condensed: updates of the pixels (default: 1000)"
    )
    parser.add_argument(
        "--condense-lr", type=positive, help=f"condensed: learning rate of the pixels (default: {rates})"
    )
    parser.add_argument(
        "--condense-batch",
        type=positive_int,
        help="condensed: real images of each class in a step (default: 64)",
    )
    parser.add_argument(
        "--condense-network", help="condensed: kind of the untrained networks (default: convnet_w32)"
    )
    parser.add_argument(
        "--condense-images",
        type=positive_int,
        help="condensed: condensed images of each class in a step, drawn anew (default: all)",
    )
    parser.add_argument(
        "--condense-init", choices=INITS, help="condensed: what the pixels start from (default: real)"
    )


def check_condense_flags(flags: dict, needed: str, found: str) -> None:
    """Raise UsageError if one of the flags above was given. needed: the flag that they are of; found: what
    was given in its place."""
    for name, value in flags.items():
        if name.startswith("condense_") and value is not None:
            raise UsageError(f"--{name.replace('_', '-')} {value} is of {needed}, found {found}")


class Condensed:
    """Condensed images in training: `ipc` images of each class that `train` holds.

    pixels: (K, ipc, C, H, W) in [-1, 1], to which they are clipped after each step. The loss is the distance
    times the number of images in the step, so that the gradient of an image depends on neither, and one
    learning rate serves all sizes. lossy: what a lossy codec makes of uint8 images (B, C, H, W). The images
    that are matched are then those that will be decoded, and the gradient passes the codec as if it changed
    nothing (straight-through, Bengio et al. 2013, arXiv:1308.3432). state_dict() holds all that the next step
    depends on, except the state of the random numbers.
    """

    def __init__(
        self,
        train: ImageSet,
        ipc: int,
        how: Condensing,
        info: DataInfo,
        seed: int,
        runtime: Runtime,
        lossy: Callable[[Tensor], Tensor] | None = None,
    ):
        self.train, self.how, self.seed, self.runtime, self.lossy = train, how, seed, runtime, lossy
        self.classes, counts = train.labels.unique(return_counts=True)  # (K,)
        batch, cosine = (
            min(how.batch, int(counts.min())),
            "cos" if how.match == "grad" else None,
        )  # DC's distance (arXiv:2006.05929)
        if batch == 1 and how.match != "grad":
            label = int(self.classes[counts.argmin()])
            raise UsageError(
                f"--condense-match {how.match}: class {label} has 1 training image, expected two or more"
            )
        self.matching = Matching(
            how.match, 1.0, STRATEGY, "dc", cosine, fc=True, batch=batch, last=how.match == "mean"
        )
        self.row_of = torch.zeros(
            info.num_classes, dtype=torch.long, device=runtime.device
        )  # label -> row in pixels
        self.row_of[self.classes] = torch.arange(len(self.classes), device=runtime.device)
        self.pixels = nn.Parameter(torch.stack([self._start(int(label), ipc) for label in self.classes]))
        self.change = torch.zeros_like(self.pixels, requires_grad=False)  # by the codec
        self.optim = torch.optim.SGD([self.pixels], how.lr, momentum=MOMENTUM)
        self.pool = Pool([how.network], info, 0.0, "none", derive_seed(seed, "condense"), runtime)
        self.step = runtime.graphed(self._step)

    def _start(self, label: int, ipc: int) -> Tensor:
        """The first pixels (ipc, C, H, W) of a class, on the device."""
        rng = torch.Generator().manual_seed(derive_seed(self.seed, "condensed", label))
        members = (self.train.labels == label).nonzero().flatten()
        if self.how.init == "noise":
            return (
                torch.randn(ipc, *self.train.images.shape[1:], generator=rng).clamp(-1, 1).to(members.device)
            )
        if ipc > len(members):
            raise UsageError(
                f"{ipc} condensed images of class {label}, which has {len(members)} real ones to start "
                "from: expected fewer"
            )
        return to_float(
            self.train.images[members[torch.randperm(len(members), generator=rng)[:ipc].to(members.device)]]
        )

    def steps(self, done: int = 0) -> Iterator[Losses]:
        """Update the pixels without end, one yield a step, after the first `done` steps; DM (Zhao & Bilen
        2023, arXiv:2110.04181)."""
        batches = self.matching.batches(self.train, self.runtime.device, self.seed, "condense", skip=done)
        for number in itertools.count(done):
            self.pool.turn(number, 1)
            choices = torch.Generator().manual_seed(derive_seed(self.seed, "condense operations", number))
            columns = self._columns(number)
            if self.lossy is not None:
                pixels = self.pixels.detach()[:, columns]
                self.change[:, columns] = (
                    to_float(self.lossy(to_uint8(pixels.flatten(0, 1)))).view_as(pixels) - pixels
                )
            yield self.step(
                next(batches),
                columns,
                network=self.pool.key,
                operations=self.matching.choose_operations(choices),
            )

    def _columns(self, number: int) -> Tensor:
        """Which condensed images of each class are in step `number`: their places in the class, (images,) on
        the device."""
        ipc = self.pixels.shape[1]
        if (size := self.how.in_step(ipc)) == ipc:
            return torch.arange(ipc, device=self.pixels.device)
        chosen = torch.randperm(
            ipc, generator=torch.Generator().manual_seed(derive_seed(self.seed, "condense images", number))
        )
        return to_device(chosen[:size], self.pixels.device)

    def _step(
        self, groups: Tensor, columns: Tensor, network: NetworkKey, operations: tuple[str, ...]
    ) -> Losses:
        """One update by the real images at the indices `groups` (classes, batch), each row of one class, of
        those at `columns`."""
        real, y = self.train.batch(groups.flatten())
        rows = self.row_of[self.train.labels[groups[:, 0]]][:, None]
        images = (self.pixels[rows, columns] + self.change[rows, columns]).flatten(
            0, 1
        )  # (classes * images, C, H, W)
        augment = draw_operations(operations, 1, real.shape[-1], real.device)
        with self.runtime.autocast():
            loss = self.matching.loss(
                self.pool.networks[network][0], real, images, y, augment, self.runtime, len(groups)
            )
        self.optim.zero_grad()
        (len(images) * loss).backward(inputs=[self.pixels])
        self.optim.step()
        with torch.no_grad():
            self.pixels.clamp_(-1, 1)
        return {"loss_condense": loss}

    def contents(self) -> ImageSet:
        """The images so far as uint8 (K * ipc, C, H, W), sorted by class, and their labels."""
        return ImageSet(
            to_uint8(self.pixels.detach().flatten(0, 1)), self.classes.repeat_interleave(self.pixels.shape[1])
        )

    def state_dict(self) -> dict:
        """The pixels and their momentum."""
        return {"pixels": self.pixels.detach(), "optim": self.optim.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Restore what state_dict() returned."""
        with torch.no_grad():
            self.pixels.copy_(state["pixels"])
        load_optimizer(self.optim, state["optim"])
