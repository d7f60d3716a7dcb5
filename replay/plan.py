"""What is fixed for a continual run: its method, settings and tasks, and the steps that each task takes."""

from collections.abc import Sequence
from dataclasses import dataclass

from data import DataInfo, ImageSet
from engine.runtime import Runtime
from replay.methods import Method
from replay.options import Options

# The order of the phases of a task; latents are optimised after the networks have learnt it, since these are
# their teachers.
PHASES = ("gan", "match", "condense", "stream", "latents", "retrain")
TAUGHT = (
    "gan",
    "stream",
    "match",
    "latents",
    "condense",
    "retrain",
)  # where the networks teach the generator, too


@dataclass(frozen=True)
class Plan:
    """What is fixed for a run.

    tasks: the training images of each task, on the device; no task learns from those of earlier ones.
    classes: the classes of each. layout: how generators are kept; None if there are none.
    """

    method: Method
    options: Options
    tasks: Sequence[ImageSet]
    classes: Sequence[Sequence[int]]
    info: DataInfo
    layout: str | None
    seed: int
    runtime: Runtime

    def lengths(self, task: int) -> dict[str, int]:
        """Return the number of steps of each phase of a task, in the order of the phases."""
        o, size = self.options, len(self.tasks[task])
        generates = self.layout is not None and (task == 0 or not o.oracle)
        stream = o.epochs * -(-size // o.batch_size)
        retrains = self.method.retrains or o.retrain
        lengths = {
            "gan": o.gan_steps * (len(self.tasks) if o.oracle else 1) if generates else 0,
            "match": o.match_steps if generates else 0,
            "latents": o.latent_steps if generates and o.latents else 0,
            "condense": o.condensing.steps if self.method.condenses else 0,
            "stream": 0 if retrains else stream,
            "retrain": (o.retrain_steps or stream * (task + 1)) if retrains else o.rehearse_steps,
        }
        return {name: lengths[name] for name in (PHASES if o.recipe_match == "paper" else TAUGHT)}

    def rate_factor(self, done: int) -> float:
        """Factor of the learning rate after `done` steps on memory alone: of rehearsal it may fall, linearly
        to 0."""
        decays = self.options.rehearse_decay == "linear" and not (
            self.method.retrains or self.options.retrain
        )
        return 1 - done / self.options.rehearse_steps if decays else 1.0

    def seen(self, task: int) -> list[int]:
        """The classes of the tasks up to this one."""
        return [label for labels in self.classes[: task + 1] for label in labels]

    def per_class(self, task: int) -> int:
        """Number of generated images of each class at a task; of stored latents each gives one."""
        return (
            self.options.replay_images
            or self.options.latents
            or -(-len(self.tasks[task]) // len(self.classes[task]))
        )

    def replays(self, task: int) -> bool:
        """Whether a task uses generated images of earlier classes, for its networks or for a generator that
        is carried on."""
        lengths = self.lengths(task)
        return bool(
            task
            and self.layout
            and (lengths["stream"] or ((lengths["gan"] or lengths["match"]) and self.layout == "carried"))
        )
