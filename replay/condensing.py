"""Condensed images of each task, in planned shares of a buffer; real images may fill the room that is not
taken yet."""

from collections.abc import Iterator

import torch
from torch import Tensor

from data import ImageSet
from engine.graphs import Losses
from engine.seeds import derive_seed
from models.condense import Condensed
from replay.buffer import Buffer, Images
from replay.plan import Plan


class CondensedBuffer(Images):
    """Condensed images of each finished task, and a reservoir of real images in the bytes that they leave.

    condensed: a planned buffer, whose classes have their shares from the start. filler: the reservoir, within
    the same budget as a whole; None = no real images. Whenever a task's condensed images come, the filler
    gives up their room, so that after the last task it holds only what the shares leave over.
    """

    def __init__(self, condensed: Buffer, filler: Buffer | None):
        self.condensed = condensed
        self.filler = filler
        self.parts = [condensed] if filler is None else [condensed, filler]
        self.device = condensed.device
        self.max_images = condensed.max_images

    # The condensed ones come first.

    @property
    def images(self) -> Tensor:
        """All images, uint8 (N, C, H, W)."""
        return torch.cat([part.images for part in self.parts])

    @property
    def labels(self) -> Tensor:
        """Their labels (N,)."""
        return torch.cat([part.labels for part in self.parts])

    @property
    def logits(self) -> Tensor:
        """Stored logits (N, 0, K): none."""
        return torch.cat([part.logits for part in self.parts])

    def keep(self, images: Tensor, labels: Tensor) -> None:
        """Keep the condensed uint8 images (B, C, H, W) of a task and their labels (B,) on the host."""
        self.condensed.offer(images, labels)
        self._make_room()

    def offer(self, images: Tensor, labels: Tensor, logits: Tensor | None = None) -> None:
        """Offer real uint8 images (B, C, H, W) and labels (B,) on the host to the filler, if there is one."""
        if self.filler is not None:
            self.filler.offer(images, labels)

    def _make_room(self) -> None:
        if self.filler is None:
            return
        if self.max_images is not None:
            self.filler.max_images = self.max_images - len(self.condensed)
        else:
            left = self.condensed.max_bytes - sum(self.condensed.num_bytes().values())
            self.filler.max_bytes = left + self.condensed.shared  # which is stored once for both
        self.filler.keep_what_fits(before=len(self.filler))

    def num_bytes(self) -> dict[str, int]:
        """The bytes kept, by kind."""
        kinds = [part.num_bytes() for part in self.parts]
        total = {kind: sum(part[kind] for part in kinds) for kind in kinds[0]}
        return total | {"images": total["images"] - (len(kinds) - 1) * self.condensed.shared}

    def state_dict(self) -> dict:
        """The states of both parts."""
        filler = {} if self.filler is None else {"filler": self.filler.state_dict()}
        return self.condensed.state_dict() | filler

    def load_state_dict(self, state: dict) -> None:
        """Restore what state_dict() returned."""
        self.condensed.load_state_dict(state)
        if self.filler is not None:
            self.filler.load_state_dict(state["filler"])
            self._make_room()


class TaskCondenser:
    """The condensed images of a task in training, as many of each class as fit into its share of the buffer.

    Raises UsageError if an image of a task is larger than the share.
    """

    def __init__(self, plan: Plan, buffer: CondensedBuffer | None):
        self.plan = plan
        self.buffer = buffer
        self.condensed: Condensed | None = None
        if plan.condensing:  # refused before anything is trained
            for train in plan.tasks:
                buffer.condensed.room_for_class(train)

    def _new(self, task: int) -> Condensed:
        plan = self.plan
        train = plan.tasks[task]
        buffer = self.buffer.condensed
        smallest_class = int(train.labels.unique(return_counts=True)[1].min())
        ipc = min(buffer.room_for_class(train), smallest_class)
        seed = derive_seed(plan.args.seed, "condense", task)
        return Condensed(train, ipc, plan.condensing, plan.info, seed, plan.runtime, buffer.lossy)

    def steps(self, task: int, done: int) -> Iterator[Losses]:
        """Condense the real images of a task; yield the losses of its steps, without the first `done`."""
        if done == 0:
            self.condensed = self._new(task)
        yield from self.condensed.steps(done)

    def keep(self) -> None:
        """Put the condensed images into the buffer, and end their training."""
        images: ImageSet = self.condensed.contents()
        self.buffer.keep(images.images, images.labels.cpu())
        self.condensed = None

    def state_dict(self) -> dict:
        """The state of the images in training; None if there are none."""
        return {"condensed": self.condensed and self.condensed.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Restore what state_dict() returned."""
        if state["condensed"] is not None:
            self.condensed = self._new(state["position"]["epoch"])
            self.condensed.load_state_dict(state["condensed"])
