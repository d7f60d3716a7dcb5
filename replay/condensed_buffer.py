"""A buffer of condensed images, in shares that are planned; real images may fill the room that is not taken
yet."""

import torch
from torch import Tensor

from data import ImageSet, to_float
from replay.buffer import Buffer, MemoryBatch


class CondensedBuffer:
    """Condensed images of each finished task, and a reservoir of real images in the bytes that they leave.

    condensed: a planned buffer, whose classes have their shares from the start. filler: the reservoir, within
    the same budget as a whole; None = no real images. Whenever a task's condensed images come, the filler
    gives up their room, so that after the last task it holds only what the shares leave over.
    """

    planned = True

    def __init__(self, condensed: Buffer, filler: Buffer | None):
        self.condensed, self.filler = condensed, filler
        self.max_images, self.lossy = condensed.max_images, condensed.lossy
        self.room_for_class = condensed.room_for_class

    @property
    def parts(self) -> list[Buffer]:
        return [self.condensed] if self.filler is None else [self.condensed, self.filler]

    @property
    def images(self) -> Tensor:
        """All images, uint8 (N, C, H, W): the condensed ones first."""
        return torch.cat([part.images for part in self.parts])

    @property
    def labels(self) -> Tensor:
        return torch.cat([part.labels for part in self.parts])

    def __len__(self) -> int:
        return sum(map(len, self.parts))

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
            self.filler.resize(max_images=self.max_images - len(self.condensed))
        else:
            left = self.condensed.max_bytes - sum(self.condensed.num_bytes().values())
            self.filler.resize(max_bytes=left + self.condensed.shared)  # which is stored once for both

    def sample(self, n: int) -> MemoryBatch:
        """Draw n different images, or all if there are fewer, with random numbers of the device."""
        filled = [part for part in self.parts if part]
        if len(filled) < 2:
            return (filled or self.parts)[0].sample(n)
        index = torch.randperm(len(self), device=self.condensed.device)[:n]
        is_condensed = index < len(self.condensed)
        # Both parts are read for every image, so that the device need not tell the host which one it comes
        # from.
        first = index.clamp(max=len(self.condensed) - 1)
        second = (index - len(self.condensed)).clamp(min=0)
        images = torch.where(
            is_condensed[:, None, None, None], self.condensed.images[first], self.filler.images[second]
        )
        labels = torch.where(is_condensed, self.condensed.labels[first], self.filler.labels[second])
        return MemoryBatch(to_float(images), labels, self.condensed.logits[first])

    def contents(self) -> ImageSet:
        """Return all images and labels."""
        return ImageSet.joined([part.contents() for part in self.parts])

    def num_bytes(self) -> dict[str, int]:
        """Return the bytes kept, by kind."""
        kinds = [part.num_bytes() for part in self.parts]
        total = {kind: sum(part[kind] for part in kinds) for kind in kinds[0]}
        return total | {"images": total["images"] - (len(kinds) - 1) * self.condensed.shared}

    def state_dict(self) -> dict:
        """Return the states of both parts."""
        return self.condensed.state_dict() | (
            {} if self.filler is None else {"filler": self.filler.state_dict()}
        )

    def load_state_dict(self, state: dict) -> None:
        """Restore what state_dict() returned."""
        self.condensed.load_state_dict(state)
        if self.filler is not None:
            self.filler.load_state_dict(state["filler"])
            self._make_room()
