"""What a continual learner replays: batches from its buffer, and images of its stored generators."""

from collections.abc import Sequence

import torch
from torch import Tensor

from data import ImageSet, to_uint8
from engine.seeds import derive_seed
from models.deploy import Filtered
from replay.buffer import Draw
from replay.learner import Ensemble, Learner
from replay.memory import Memory
from replay.plan import Plan
from scoring.sources import generate
from utils import out_of_memory_hint


class Replay:
    """The replayed images of a task: those that its networks learn from, and those that a carried generator
    is trained on."""

    def __init__(self, plan: Plan, memory: Memory, learners: Sequence[Learner]):
        self.plan, self.memory, self.learners = plan, memory, learners
        self.images: ImageSet | None = None  # generated images of the classes before this task
        self.made_for = -1  # the task they were made for

    @out_of_memory_hint("--replay-images")
    def prepare(self, task: int) -> None:
        """Generate images of earlier classes for this task; they are the same at whichever step of the task
        this is called."""
        if self.made_for == task:
            return
        self.made_for, self.images = task, None
        if self.plan.replays(task):
            labels = self._labels(self.plan.seen(task - 1), task)
            self.images = self.generate(labels, self.plan.options.filter, "replay", task)

    def draw(self, task: int) -> Draw | None:
        """Draw a batch from memory: buffered images, generated images, or half of each; None if there are
        none."""
        n, buffer, parts = self.plan.options.replay_batch_size, self.memory.buffer, []
        of_buffer = 0 if not buffer else n if self.plan.method.memory == "buffer" else n // 2 if task else 0
        if of_buffer:
            parts.append(buffer.draw(of_buffer))
        if self.images is not None and n > of_buffer:
            images, labels = self.images.batch(
                torch.randint(len(self.images), (n - of_buffer,), device=self.plan.runtime.device)
            )
            parts.append(Draw(images, labels, images.new_empty(len(labels), 0, self.plan.info.num_classes)))
        return Draw(*(torch.cat(tensors) for tensors in zip(*parts, strict=True))) if parts else None

    def _labels(self, classes: Sequence[int], task: int) -> Tensor:
        """The labels of the images to generate of these classes at a task, on the device."""
        return torch.tensor(classes, device=self.plan.runtime.device).repeat_interleave(
            self.plan.per_class(task)
        )

    def generate(self, labels: Tensor, threshold: float, *seed: int | str) -> ImageSet:
        """Generate one uint8 image for each label with the stored generators.

        threshold: images whose class gets a lower probability from the last networks are redrawn; 0 = no
        filter. seed: parts that are added to the seed of the run.
        """
        generator = self.plan.runtime.place(self.memory.generators.build())
        if threshold:
            generator = Filtered(
                generator, Ensemble([learner.previous for learner in self.learners]), threshold
            )
        rng = torch.Generator(self.plan.runtime.device).manual_seed(derive_seed(self.plan.seed, *seed))
        # in one call where latents are stored, which come each once in it
        together = {"batch_size": len(labels)} if self.plan.options.latents else {}
        return ImageSet(to_uint8(generate(generator, labels, rng, self.plan.runtime, **together)), labels)

    @out_of_memory_hint("--replay-images")
    def own_images(self, task: int) -> ImageSet:
        """Generate images of the classes of this task by its stored generator, as many of each as of an
        earlier class."""
        return self.generate(self._labels(self.plan.classes[task], task), 0.0, "own", task)

    @out_of_memory_hint("--replay-images")
    def retrain_set(self, task: int, turn: int) -> ImageSet:
        """Return what reinitialised networks learn from at pass `turn`: the images of the buffer, and newly
        generated ones."""
        sets = [self.memory.buffer.contents()] if self.memory.buffer else []
        if self.memory.generators is not None:
            sets.append(self.generate(self._labels(self.plan.seen(task), task), 0.0, "retrain", task, turn))
        return ImageSet.joined(sets)

    def count(self, task: int) -> int:
        """Count the generated images that networks learn from at a task, without those that a filter
        rejected."""
        if self.memory.generators is None:
            return 0
        steps, size = (
            self.plan.lengths(task)["retrain"],
            len(self.plan.seen(task)) * self.plan.per_class(task),
        )
        together = size + (len(self.memory.buffer) if self.memory.buffer else 0)
        passes = -(-steps // -(-together // self.plan.options.batch_size))
        beside = self.plan.seen(task - 1) if task else []
        if self.plan.options.distilled_share:
            beside = self.plan.seen(task)
        return passes * size + (
            len(beside) * self.plan.per_class(task) if self.plan.lengths(task)["stream"] else 0
        )
