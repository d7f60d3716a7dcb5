"""Condensing of a task: its real images are turned into the few images that the buffer keeps of it."""

from collections.abc import Iterator

from engine.graphs import Losses
from engine.seeds import derive_seed
from models.condense import Condensed
from replay.memory import Memory
from replay.plan import Plan


class TaskCondenser:
    """The condensed images of a task in training, as many of each class as fit into its share of the buffer.

    Raises UsageError if an image of a task is larger than the share.
    """

    def __init__(self, plan: Plan, memory: Memory):
        self.plan, self.memory = plan, memory
        self.condensed: Condensed | None = None
        if plan.condensing:  # refused before anything is trained
            for train in plan.tasks:
                memory.buffer.room_for_class(train)

    def _new(self, task: int) -> Condensed:
        plan, train, buffer = self.plan, self.plan.tasks[task], self.memory.buffer
        smallest_class = int(train.labels.unique(return_counts=True)[1].min())
        ipc = min(buffer.room_for_class(train), smallest_class)
        seed = derive_seed(plan.seed, "condense", task)
        return Condensed(train, ipc, plan.condensing, plan.info, seed, plan.runtime, buffer.lossy)

    def steps(self, task: int, done: int) -> Iterator[Losses]:
        """Condense the real images of a task; yield the losses of its steps, without the first `done`."""
        if done == 0:
            self.condensed = self._new(task)
        yield from self.condensed.steps(done)

    def keep(self) -> None:
        """Put the condensed images into the buffer, and end their training."""
        images = self.condensed.contents()
        self.memory.buffer.keep(images.images, images.labels.cpu())
        self.condensed = None

    def state_dict(self) -> dict:
        """Return the state of the images in training; None if there are none."""
        return {"condensed": self.condensed and self.condensed.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Restore what state_dict() returned."""
        if state.get("condensed") is not None:
            self.condensed = self._new(state["position"]["epoch"])
            self.condensed.load_state_dict(state["condensed"])
