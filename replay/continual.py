"""A continual learner: its networks, its memory, and the phases of a task.

The loop over tasks is in the script continual.py.
"""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from augment import choose_operations, draw_operations
from data import epoch_order, to_float
from engine.graphs import Losses
from engine.seeds import derive_seed
from engine.tensors import eval_mode, to_device
from replay.condensing import TaskCondenser
from replay.generation import Replay, TaskGenerator
from replay.learner import Batch, Learner, TaskInfo
from replay.memory import Memory
from replay.plan import Plan
from utils import UsageError


class Continual:
    """A continual learner: its networks, its memory and, within a task, the GAN in training.

    state_dict() holds all that the next step depends on.
    """

    def __init__(self, plan: Plan, learners: Sequence[Learner], memory: Memory):
        self.plan = plan
        self.learners = learners
        self.memory = memory
        self.replay = Replay(plan, memory)
        self.generator = TaskGenerator(plan, memory, self.replay, learners)
        self.condenser = TaskCondenser(plan, memory.buffer)
        self.finished = 0  # number of tasks that the memory holds
        # network -> setting -> rows of the matrix, first the untrained network's
        self.acc: dict[str, dict[str, list[list[float]]]] = {}

    def begin(self, task: int) -> None:
        """Keep a frozen copy of the networks of the last task, if the method distils from them."""
        if task and self.plan.method.distils:
            for learner in self.learners:
                learner.remember()

    def finish(self, task: int) -> None:
        """Add a task to the memory, unless it was added before.

        Raises UsageError if the memory exceeds its budget, or if no image of the task fits into the buffer.
        """
        if self.finished > task:
            return
        method = self.plan.method
        memory = self.memory
        images = self.plan.tasks[task]
        self.generator.keep(task)
        if method.condenses:
            self.condenser.keep()
        if memory.buffer is not None and not self.plan.lengths(task)["stream"]:
            for part, labels in zip(images.images.split(1000), images.labels.cpu().split(1000), strict=True):
                memory.buffer.offer(part, labels, self._logits(part) if method.keeps_logits else None)
        for learner in self.learners:
            learner.previous = None  # it may live within one task only, since the memory does not count it
        memory.check()
        if method.condenses:
            kept = memory.buffer.condensed.labels.tolist()
            if missing := set(self.plan.classes[task]) - set(kept):
                raise UsageError(
                    f"--memory-bytes {memory.max_bytes}: no condensed image of class {min(missing)} fits, "
                    "expected more in another --tag"
                )
        if memory.buffer is not None and not memory.buffer:
            raise UsageError(
                f"--memory-bytes {memory.max_bytes}: no image of task {task + 1} fits into the buffer"
            )
        self.finished = task + 1

    @torch.no_grad()
    def _logits(self, images: Tensor) -> Tensor:
        """Logits (B, N, K) of the networks as they are now, for uint8 images (B, C, H, W), in eval mode and
        without augmentation."""
        logits = []
        for learner in self.learners:
            with eval_mode(learner.model), self.plan.runtime.autocast():
                logits.append(learner.model(to_float(images)))
        return torch.stack(logits, 1)

    def steps(self, phase: str, task: int, done: int) -> Iterator[Losses]:
        """The losses of each step of a phase (those of plan.PHASES) of a task, after its first `done`
        steps."""
        phases = {
            "gan": self.generator.gan_steps,
            "match": self.generator.match_steps,
            "condense": self.condenser.steps,
            "stream": self.stream_steps,
            "retrain": self.retrain_steps,
        }
        return phases[phase](task, done)

    def stream_steps(self, task: int, done: int) -> Iterator[Losses]:
        """Train the networks on the images of the task, batch by batch, together with batches from memory."""
        for learner in self.learners:
            learner.set_rate(1.0)
        plan = self.plan
        buffer = self.memory.buffer
        keeps_logits = plan.method.keeps_logits
        train = plan.tasks[task]
        batch_size = plan.args.batch_size
        labels = train.labels.cpu()
        step = self._step(task)
        num_steps = -(-len(train) // batch_size)
        before = sum(plan.lengths(earlier)["stream"] for earlier in range(task))
        for i in range(done, plan.passes * num_steps):
            epoch, place = divmod(i, num_steps)
            if i == done or place == 0:
                order = epoch_order(len(train), torch.device("cpu"), plan.args.seed, "stream", task, epoch)
                order_there = to_device(order, plan.runtime.device)
            part = slice(place * batch_size, (place + 1) * batch_size)
            index = order_there[part]
            replayed = [self.replay.sample(task) for _ in range(plan.method.replay_batches)]
            losses = step(
                *train.batch(index),
                *itertools.chain(*filter(None, replayed)),
                operations=self._operations("stream", task, i),
            )
            logits = losses.pop("logits")
            self._update_averages(before + i + 1)
            if buffer is not None and epoch == 0:  # each image is offered once, however often it is seen
                buffer.offer(train.images[index], labels[order[part]], logits if keeps_logits else None)
            yield losses

    def retrain_steps(self, task: int, done: int) -> Iterator[Losses]:
        """Train the networks on memory alone: each pass is over the images of the buffer, or over newly
        generated ones.

        They are reinitialised, unless they go on from the stream (--rehearse-steps).
        """
        plan = self.plan
        if done == 0:
            self.finish(task)
            for learner in self.learners if plan.retrains else ():
                learner.restart(task)
        step = self._step(task)
        number = 0
        before = sum(plan.lengths(earlier)["stream"] for earlier in range(task + 1))
        for epoch in itertools.count():
            train = self.replay.memory_set(task, epoch)
            order = epoch_order(len(train), plan.runtime.device, plan.args.seed, "retrain", task, epoch)
            for index in order.split(plan.args.batch_size):
                number += 1
                if number > done:
                    falls = plan.args.rehearse_decay == "linear" and plan.args.rehearse_steps
                    for learner in self.learners:
                        learner.set_rate(1 - (number - 1) / plan.args.rehearse_steps if falls else 1.0)
                    losses = step(*train.batch(index), operations=self._operations("retrain", task, number))
                    losses.pop("logits")
                    self._update_averages(before + number)
                    yield losses

    def _update_averages(self, step: int) -> None:
        for learner in self.learners:
            learner.update_averages(step)

    def _operations(self, *seed: int | str) -> tuple[str, ...]:
        rng = torch.Generator().manual_seed(derive_seed(self.plan.args.seed, *seed))
        return choose_operations(self.plan.args.dsa_strategy, "dim", rng)

    def _step(self, task: int):
        """Return the training step of a task: step(images, y, *replayed, operations=...) updates all
        networks.

        replayed: images, y and stored logits of each batch from memory, one after another. The step returns
        the loss of each network, and "logits": those of the networks for `images`, (B, N, K).
        """
        plan = self.plan
        device = plan.runtime.device
        side = plan.info.image_size
        seen = plan.seen(task)
        unseen = torch.ones(plan.info.num_classes, dtype=torch.bool, device=device)
        unseen[seen] = False
        info = TaskInfo(plan.args, len(plan.classes[task]) / len(seen), unseen)

        def step(images: Tensor, y: Tensor, *replayed: Tensor, operations: tuple[str, ...]) -> Losses:
            tensors = [(images, y, None), *(replayed[i : i + 3] for i in range(0, len(replayed), 3))]
            current, *replays = (
                Batch(*batch, draw_operations(operations, len(batch[1]), side, device)) for batch in tensors
            )
            losses = {}
            logits = []
            for learner in self.learners:
                loss, own_logits = plan.method.loss(learner, current, replays, info)
                learner.optim.zero_grad()
                loss.backward()
                learner.optim.step()
                losses[f"loss_{learner.name}"] = loss.detach()
                logits.append(own_logits.detach())
            return losses | {"logits": torch.stack(logits, 1)}

        return plan.runtime.graphed(step)

    # a checkpoint

    def state_dict(self) -> dict:
        """Return the state as plain values and tensors."""
        return {
            "learners": {learner.name: learner.state_dict() for learner in self.learners},
            **self.generator.state_dict(),
            **self.condenser.state_dict(),
            "counters": {"finished": self.finished},
            "acc": self.acc,
            **self.memory.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore what state_dict() returned."""
        self.memory.load_state_dict(state)
        for learner in self.learners:
            learner.load_state_dict(state["learners"][learner.name])
        self.generator.load_state_dict(state)
        self.condenser.load_state_dict(state)
        self.finished = state["counters"]["finished"]
        self.acc = state["acc"]
