"""The pool of stage 2: networks trained on real images, whose outputs for real and generated images are
matched."""

from collections.abc import Iterator, Sequence

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


class Pool:
    """Networks trained by SGD between generator steps, on real images, or on those of `generator` if one is
    given.

    `size` of them are in use and take turns, one step each.

    Each of them is drawn anew after a number of steps (see turn). With several, these times are spread
    evenly, so that the networks differ in age, and each gets its share of the SGD steps. A network is built
    once and re-initialised in place, so that it keeps its place in memory.
    """

    def __init__(
        self,
        names: Sequence[str],
        info: DataInfo,
        lr: float,
        strategy: str,
        seed: int,
        runtime: Runtime,
        size: int = 1,
        generator: nn.Module | None = None,
    ):
        self.names, self.size, self.generator = [network_name(name) for name in names], size, generator
        self.info, self.lr, self.strategy, self.seed, self.runtime = info, lr, strategy, seed, runtime
        self.networks: dict[NetworkKey, tuple[Classifier, torch.optim.SGD]] = {}
        self.drawn: dict[
            int, tuple[str, int]
        ] = {}  # slot -> the name of its network, and the epoch it was drawn for
        self.slot = 0  # the one in use
        self.in_step = getattr(
            generator, "fixed_sizes", True
        )  # whether images are generated inside of the step that may be a graph
        self.update = runtime.graphed(self._update)

    def turn(self, step: int, age: int) -> None:
        """Select the network for generator step number `step`, and if it is due, initialise it anew from
        (seed, drawing).

        age: number of steps, those of the other networks included, after which a network is drawn anew.
        """
        self.slot = step % age % self.size
        drawing = (step - self.slot * age // self.size) // age
        if self.slot in self.drawn and self.drawn[self.slot][1] == drawing:
            return
        slot = (self.slot,) if self.slot else ()
        with seeded(self.runtime.device, self.seed, "pool", drawing, *slot):
            name = self.names[int(torch.randint(len(self.names), ()))]
            fresh = build_classifier(name, self.info)
        self._use(self.slot, name, drawing)
        self.model.load_state_dict(fresh.state_dict())
        for state in self.optim.state.values():
            state["momentum_buffer"].zero_()

    def _use(self, slot: int, name: str, drawing: int) -> None:
        if (slot, name) not in self.networks:
            with seeded(
                self.runtime.device, "any"
            ):  # these weights are overwritten at once and must not advance the random numbers
                model = self.runtime.place(build_classifier(name, self.info)).train()
            parameters = list(model.parameters())
            self.networks[slot, name] = (
                model,
                torch.optim.SGD(parameters, self.lr, momentum=0.9, weight_decay=5e-4, **fused(parameters)),
            )
        self.drawn[slot] = name, drawing

    def untrained(self) -> "Pool":
        """A pool of one network of the same kinds, which is drawn with a seed of its own and is not
        trained."""
        return Pool(self.names, self.info, 0.0, "none", derive_seed(self.seed, "untrained"), self.runtime)

    @property
    def key(self) -> NetworkKey:
        """The key of the network in use in `networks`."""
        return self.slot, self.drawn[self.slot][0]

    @property
    def model(self) -> Classifier:
        """The network in use."""
        return self.networks[self.key][0]

    @property
    def optim(self) -> torch.optim.SGD:
        """The optimiser of the network in use."""
        return self.networks[self.key][1]

    def train_step(self, train: ImageSet, index: Tensor, choices: torch.Generator) -> None:
        """One SGD step on the images of `train` at `index` (B,), or on generated ones of their labels; each
        is augmented on its own.

        choices: the generator from which the operations are drawn on the host.
        """
        images, y = train.batch(index)
        if not self.in_step and self.generator is not None:
            images = self._generated(y)
        self.update(images, y, network=self.key, operations=choose_operations(self.strategy, "dim", choices))

    def _update(self, images: Tensor, y: Tensor, network: NetworkKey, operations: tuple[str, ...]) -> Losses:
        model, optim = self.networks[network]
        if self.in_step and self.generator is not None:
            images = self._generated(y)
        augment = draw_operations(operations, len(images), images.shape[-1], images.device)
        with self.runtime.autocast():
            logits = self.runtime.call(model, images, augment)
        loss = F.cross_entropy(logits, y)
        optim.zero_grad()
        loss.backward()
        self.runtime.update(optim)
        return {}

    def _generated(self, y: Tensor) -> Tensor:
        with torch.no_grad(), self.runtime.autocast():
            return self.generator.sample(y)

    def state_dict(self) -> dict:
        """The networks drawn, under the key "pool"."""
        networks = []
        for slot, (name, drawing) in self.drawn.items():
            model, optim = self.networks[slot, name]
            values = {
                "slot": slot,
                "name": name,
                "drawing": drawing,
                "model": model.state_dict(),
                "optim": optim.state_dict(),
            }
            networks.append(values)
        return {"pool": networks}

    def load_state_dict(self, state: dict) -> None:
        """Restore what state_dict() returned."""
        for network in state["pool"]:
            self._use(network["slot"], network["name"], network["drawing"])
            model, optim = self.networks[network["slot"], network["name"]]
            model.load_state_dict(network["model"])
            load_optimizer(optim, network["optim"])


def shuffled_batches(
    num_images: int, batch_size: int, device: torch.device, seed: int, epoch: int, skip: int
) -> Iterator[Tensor]:
    """Endless whole batches of indices (B,) for the pool network of `epoch`, after the first `skip` of
    them."""
    per_pass = num_images // batch_size
    first_pass, first_batch = divmod(skip, per_pass)
    number = first_pass
    while True:
        order = epoch_order(num_images, device, seed, "pool", epoch, number)
        for i in range(first_batch if number == first_pass else 0, per_pass):
            yield order[i * batch_size : (i + 1) * batch_size]
        number += 1
