"""What a continual learner replays: batches from its buffer, and images of its stored generators."""

from collections.abc import Sequence

import torch

from data import ImageSet, to_uint8
from engine.seeds import derive_seed
from replay.buffer import MemoryBatch
from replay.memory import Memory
from replay.plan import Plan
from scoring.sources import generate
from utils import out_of_memory_hint


class Replay:
    """The replayed images of a task: those that its networks learn from, and those that a carried generator
    is trained on."""

    def __init__(self, plan: Plan, memory: Memory):
        self.plan, self.memory = plan, memory
        self.images: ImageSet | None = None  # generated images of the classes before this task
        self.made_for = -1  # the task they were made for

    def prepare(self, task: int) -> None:
        """Generate images of earlier classes for this task; they are the same at whichever step of the task
        this is called."""
        if self.made_for == task:
            return
        self.made_for, self.images = task, None
        if task and self.plan.generation:
            self.images = self.generate(self.plan.seen(task - 1), task, "replay", task)

    def sample(self, task: int) -> MemoryBatch | None:
        """Draw a batch of buffered or of generated images; None if there are none."""
        n = self.plan.training.replay_batch_size or self.plan.training.batch_size
        if self.memory.buffer:
            return self.memory.buffer.sample(n)
        if self.images is None:
            return None
        index = torch.randint(len(self.images), (n,), device=self.plan.runtime.device)
        images, labels = self.images.batch(index)
        return MemoryBatch(images, labels, images.new_empty(n, 0, self.plan.info.num_classes))

    @out_of_memory_hint("--replay-images")
    def generate(self, classes: Sequence[int], task: int, *seed: int | str) -> ImageSet:
        """Generate uint8 images of these classes with the stored generators, as many of each as a task asks
        for. seed: parts that are added to the seed of the run."""
        runtime = self.plan.runtime
        labels = torch.tensor(classes, device=runtime.device).repeat_interleave(self.plan.per_class(task))
        generator = runtime.place(self.memory.generators.build())
        rng = torch.Generator(runtime.device).manual_seed(derive_seed(self.plan.seed, *seed))
        return ImageSet(to_uint8(generate(generator, labels, rng, runtime)), labels)

    def memory_set(self, task: int, epoch: int) -> ImageSet:
        """Return what networks learn from memory alone at a pass: the images of the buffer, or newly
        generated ones."""
        if self.memory.generators is None:
            return self.memory.buffer.contents()
        return self.generate(self.plan.seen(task), task, "retrain", task, epoch)

    def count(self, task: int) -> int:
        """Count the generated images that networks learn from at a task."""
        if self.plan.generation is None:
            return 0
        per_class = self.plan.per_class(task)
        size = len(self.plan.seen(task)) * per_class
        passes = -(-self.plan.lengths(task)["retrain"] // -(-size // self.plan.training.batch_size))
        beside = len(self.plan.seen(task - 1)) * per_class if task else 0
        return passes * size + beside
