"""What is fixed for a continual run: the values of its flags, its tasks, and the steps of each task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any, TypeVar

from data import DataInfo, ImageSet
from engine.runtime import Runtime
from models.condense import Condensing
from replay.methods import Method
from utils import UsageError

TRACKS = {"offline": 5, "online": 1}  # passes over a task where --epochs is not given

# The phases of a task, in order. With --recipe-match energy the networks, once they have learnt the task,
# teach its generator.
PHASES = ("gan", "match", "condense", "stream", "retrain")
PHASES_IF_TAUGHT = ("gan", "stream", "match", "condense", "retrain")


@dataclass(frozen=True)
class Training:
    """How the networks are trained: the flags of continual.py of these names.

    A method without one of the flags has its default. Raises UsageError if flags contradict each other.
    """

    batch_size: int
    dsa_strategy: str
    epochs: int | None = None
    track: str = "offline"
    replay_batch_size: int | None = None
    replay_loss: str | None = None
    retrain: bool = False
    retrain_steps: int | None = None
    rehearse_steps: int = 0
    rehearse_decay: str = "none"

    def __post_init__(self):
        if self.track == "online" and self.epochs not in (None, 1):
            raise UsageError(
                f"--epochs {self.epochs}: --track online sees each image once, expected 1 or --track offline"
            )
        if self.retrain and (self.replay_loss or self.rehearse_steps):
            other = f"--rehearse-steps {self.rehearse_steps}"
            if self.replay_loss:
                other = f"--replay-loss {self.replay_loss}"
            raise UsageError(
                f"{other}: --retrain learns from memory alone, nothing is replayed beside a task; expected "
                "one of the two"
            )

    @property
    def passes(self) -> int:
        """Passes over the images of a task."""
        return self.epochs or TRACKS[self.track]


@dataclass(frozen=True)
class Generation:
    """How a generator is built, trained, stored and replayed: the flags of continual.py of these names.

    Raises UsageError if flags contradict each other.
    """

    gan: str
    width: int | None
    z_dim: int | None
    storage: str
    gan_steps: int
    gan_batch_size: int
    gan_lr: float
    ema: float
    restat: int
    match_steps: int
    match: str
    recipe_match: str
    match_batch: int
    replay_images: int | None

    def __post_init__(self):
        if not self.gan_steps and not self.taught:
            raise UsageError(
                "--gan-steps 0: without a GAN the generator needs --recipe-match energy, found "
                f"--recipe-match {self.recipe_match}"
            )
        if self.taught and not self.match_steps:
            raise UsageError(f"--recipe-match {self.recipe_match}: expected --match-steps, found 0")

    @property
    def taught(self) -> bool:
        """Whether the generator is matched without a GAN, with the networks as its teachers."""
        return self.recipe_match == "energy"


Settings = TypeVar("Settings")


def from_flags(kind: type[Settings], flags: Mapping[str, Any]) -> Settings:
    """Make a dataclass from the flags that have the names of its fields."""
    return kind(**{field.name: flags[field.name] for field in fields(kind) if field.name in flags})


@dataclass(frozen=True)
class Plan:
    """What is fixed for a run.

    method_flags: the values of the method's own flags. generation, condensing: None if the method has no
    generator, or no condensed images. tasks: the training images of each task, on the device; no task learns
    from those of earlier ones. classes: the classes of each.
    """

    method: Method
    method_flags: SimpleNamespace
    training: Training
    generation: Generation | None
    condensing: Condensing | None
    tasks: Sequence[ImageSet]
    classes: Sequence[Sequence[int]]
    info: DataInfo
    seed: int
    runtime: Runtime

    @property
    def retrains(self) -> bool:
        """Whether the networks learn from memory alone, with new weights at the end of each task."""
        return self.method.retrains or self.training.retrain

    def lengths(self, task: int) -> dict[str, int]:
        """Return the number of steps of each phase of a task, in the order of the phases."""
        training, generation = self.training, self.generation
        stream = training.passes * -(-len(self.tasks[task]) // training.batch_size)
        lengths = {
            "gan": generation.gan_steps if generation else 0,
            "match": generation.match_steps if generation else 0,
            "condense": self.condensing.steps if self.condensing else 0,
            "stream": 0 if self.retrains else stream,
            "retrain": training.rehearse_steps,
        }
        if self.retrains:
            lengths["retrain"] = training.retrain_steps or stream * (task + 1)
        phases = PHASES_IF_TAUGHT if generation and generation.taught else PHASES
        return {name: lengths[name] for name in phases}

    def rate_factor(self, done: int) -> float:
        """Factor of the learning rate after `done` steps on memory alone: with --rehearse-decay it falls
        linearly to 0."""
        if self.training.rehearse_decay == "linear" and self.training.rehearse_steps:
            return 1 - done / self.training.rehearse_steps
        return 1.0

    def seen(self, task: int) -> list[int]:
        """The classes of the tasks up to this one."""
        return [label for labels in self.classes[: task + 1] for label in labels]

    def per_class(self, task: int) -> int:
        """Number of generated images of each class at a task."""
        return self.generation.replay_images or -(-len(self.tasks[task]) // len(self.classes[task]))
