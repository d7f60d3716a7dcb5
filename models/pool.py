"""The pool of stage 2: networks trained on real images, whose outputs for real and generated images are
matched."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from augment import choose_operations, draw_operations
from data import DataInfo, ImageSet, epoch_order
from engine.graphs import Losses
from engine.optim import fused, load_optimizer
from engine.runtime import Runtime
from engine.seeds import derive_seed, seeded
from models import Classifier, build_classifier, network_name

POOL_DATA = ("real", "generated")
NetworkKey = tuple[int, str]  # the slot and the name of a network


@dataclass(eq=False)
class Pool:
    """Networks trained by SGD between generator steps, on real images, or on those of `generator` if one is
    given.

    `size` of them are in use and take turns, one generator step each. Before it, a network takes `steps` SGD
    steps. A network is drawn anew after `age` generator steps, those of the other networks included, None =
    those of an epoch. With several networks these times are spread evenly, so that the networks differ in
    age, and each gets its share of the SGD steps. A network is built once and re-initialised in place, so
    that it keeps its place in memory. `images`: what the networks are trained on, None = the training set.
    """

    names: Sequence[str]
    info: DataInfo
    lr: float
    strategy: str
    seed: int
    runtime: Runtime
    size: int = 1
    generator: nn.Module | None = None
    steps: int = 0
    age: int | None = None
    images: ImageSet | None = None

    def __post_init__(self):
        self.names = [network_name(name) for name in self.names]
        self.networks: dict[NetworkKey, tuple[Classifier, torch.optim.SGD]] = {}
        # slot -> the name of the network in it, and the number of its initialisation
        self.initialised: dict[int, tuple[str, int]] = {}
        self.slot = 0  # the one in use
        # whether images are generated inside of the step that may be a graph
        self.in_step = getattr(self.generator, "fixed_sizes", True)
        self.update = self.runtime.graphed(self._update)

    def select(self, step: int, age: int) -> None:
        """Select the network for generator step number `step`, and if it is due after `age` steps, initialise
        it anew from the seed and the number of this initialisation."""
        self.slot = step % age % self.size
        number = (step - self.slot * age // self.size) // age
        if self.slot in self.initialised and self.initialised[self.slot][1] == number:
            return
        slot = (self.slot,) if self.slot else ()
        with seeded(self.runtime.device, self.seed, "pool", number, *slot):
            name = self.names[int(torch.randint(len(self.names), ()))]
            fresh = build_classifier(name, self.info)
        self._use(self.slot, name, number)
        self.model.load_state_dict(fresh.state_dict())
        for state in self.optim.state.values():
            state["momentum_buffer"].zero_()

    def _use(self, slot: int, name: str, number: int) -> None:
        if (slot, name) not in self.networks:
            # these weights are overwritten at once and must not advance the random numbers
            with seeded(self.runtime.device, "any"):
                model = self.runtime.place(build_classifier(name, self.info)).train()
            parameters = list(model.parameters())
            self.networks[slot, name] = (
                model,
                torch.optim.SGD(parameters, self.lr, momentum=0.9, weight_decay=5e-4, **fused(parameters)),
            )
        self.initialised[slot] = name, number

    def untrained(self) -> "Pool":
        """A pool of one network of the same kinds, which has a seed of its own and is not trained."""
        return Pool(self.names, self.info, 0.0, "none", derive_seed(self.seed, "untrained"), self.runtime)

    @property
    def key(self) -> NetworkKey:
        """The key of the network in use in `networks`."""
        return self.slot, self.initialised[self.slot][0]

    @property
    def model(self) -> Classifier:
        """The network in use."""
        return self.networks[self.key][0]

    @property
    def optim(self) -> torch.optim.SGD:
        """The optimiser of the network in use."""
        return self.networks[self.key][1]

    def train_step(self, train: ImageSet, index: Tensor, rng: torch.Generator) -> None:
        """One SGD step on the images of `train` at `index` (B,), or on generated ones of their labels; each
        is augmented on its own.

        rng: the generator from which the operations are drawn on the host.
        """
        images, y = train.batch(index)
        if not self.in_step:
            images = self._generated(y)
        self.update(images, y, network=self.key, operations=choose_operations(self.strategy, "dim", rng))

    def _update(self, images: Tensor, y: Tensor, network: NetworkKey, operations: tuple[str, ...]) -> Losses:
        model, optim = self.networks[network]
        if self.in_step and self.generator is not None:
            images = self._generated(y)
        augment = draw_operations(operations, len(images), images.shape[-1], images.device)
        with self.runtime.autocast():
            logits = self.runtime.call(model, images, augment)
        optim.zero_grad()
        F.cross_entropy(logits, y).backward()
        self.runtime.update(optim)
        return {}

    def _generated(self, y: Tensor) -> Tensor:
        with torch.no_grad(), self.runtime.autocast():
            return self.generator.sample(y)

    def state_dict(self) -> dict:
        """The networks in use, under the key "pool"."""
        networks = []
        for slot, (name, number) in self.initialised.items():
            model, optim = self.networks[slot, name]
            place = {"slot": slot, "name": name, "drawing": number}
            networks.append(place | {"model": model.state_dict(), "optim": optim.state_dict()})
        return {"pool": networks}

    def load_state_dict(self, state: dict) -> None:
        """Restore what state_dict() returned."""
        for network in state["pool"]:
            key = network["slot"], network["name"]
            self._use(*key, network["drawing"])
            model, optim = self.networks[key]
            model.load_state_dict(network["model"])
            load_optimizer(optim, network["optim"])


def shuffled_batches(
    num_images: int, batch_size: int, device: torch.device, seed: int, epoch: int, skip: int
) -> Iterator[Tensor]:
    """Endless whole batches of indices (B,) for the pool network of `epoch`, after the first `skip` of
    them."""
    per_pass = num_images // batch_size
    for number in itertools.count(skip):
        shuffle, i = divmod(number, per_pass)
        if i == 0 or number == skip:
            order = epoch_order(num_images, device, seed, "pool", epoch, shuffle)
        yield order[i * batch_size : (i + 1) * batch_size]
