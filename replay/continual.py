"""A continual learner: its networks, its memory, and the phases of a task.

The loop over tasks is in the script continual.py.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from augment import choose_operations, draw_operations
from data import DataInfo, ImageSet, epoch_order, to_float
from engine.graphs import Losses
from engine.runtime import Runtime
from engine.seeds import derive_seed
from engine.steps import Step
from engine.tensors import eval_mode, to_device
from replay.buffer import Draw
from replay.clock import Clock
from replay.condensing import TaskCondenser
from replay.generation import TaskGenerator
from replay.learner import Batch, Learner, Weights
from replay.memory import Memory
from replay.methods import Method
from replay.options import Options
from replay.own_images import OwnImages
from replay.plan import Plan
from replay.replaying import Replay
from utils import UsageError


class Continual:
    """A continual learner: its networks, its memory and, within a task, the GAN in training.

    state_dict() holds all that the next step depends on. tasks: the training images of each task, on the
    device; no task learns from those of earlier ones. classes: those of each task. train_gan, train_match:
    loops of stages 1 and 2, for methods with a generator.
    """

    def __init__(
        self,
        method: Method,
        options: Options,
        tasks: Sequence[ImageSet],
        classes: Sequence[Sequence[int]],
        learners: Sequence[Learner],
        memory: Memory,
        info: DataInfo,
        seed: int,
        runtime: Runtime,
        train_gan: Callable[..., Iterator[Step]],
        train_match: Callable[..., Iterator[Step]],
    ):
        self.method, self.options, self.tasks, self.classes = method, options, tasks, classes
        self.learners, self.memory, self.info, self.seed, self.runtime = learners, memory, info, seed, runtime
        layout = None if memory.generators is None else memory.generators.layout
        self.plan = Plan(method, options, tasks, classes, info, layout, seed, runtime)
        self.replay = Replay(self.plan, memory, learners)
        self.generator = TaskGenerator(
            self.plan, memory, self.replay, [learner.name for learner in learners], train_gan, train_match
        )
        self.condenser = TaskCondenser(self.plan, memory)
        self.own_images = OwnImages(self.plan, self.replay, self.generator, self.condenser)
        self.finished, self.images_generated = 0, 0  # finished: number of tasks that the memory holds
        self.clock = Clock([0.0] * len(learners), runtime)  # seconds of training each network
        self.acc: dict[
            str, dict[str, list[list[float]]]
        ] = {}  # network -> setting -> rows of the matrix, first the untrained network's

    def begin(self, task: int) -> None:
        """Keep a frozen copy of the networks of the last task, if distillation or the filter needs one."""
        if self.plan.replays(task) and (self.options.distill_weight or self.options.filter):
            for learner in self.learners:
                learner.remember()

    def finish(self, task: int) -> None:
        """Add a task to the memory, unless it was added before.

        Raises UsageError if the memory exceeds its budget, or if no image of the task fits into the buffer.
        """
        if self.finished > task:
            return
        self.generator.keep(task)
        if self.method.condenses:
            self.condenser.keep()
        if self.memory.buffer is not None and (
            self.options.offer == "task" or not self.plan.lengths(task)["stream"]
        ):
            offered = (self.tasks[task].images, self.tasks[task].labels.cpu())
            for images, labels in zip(*(tensor.split(1000) for tensor in offered), strict=True):
                self.memory.buffer.offer(
                    images, labels, self._logits(images) if self.method.keeps_logits else None
                )
        for learner in self.learners:
            learner.previous = None  # it may live within one task only, since the memory does not count it
        self.memory.check()
        if self.method.condenses and len(
            missing := set(self.classes[task]) - set(self.memory.buffer.condensed.labels.tolist())
        ):
            raise UsageError(
                f"--memory-bytes {self.memory.max_bytes}: no condensed image of class {min(missing)} fits, "
                "expected more in another --tag"
            )
        if self.memory.buffer is not None and not self.memory.buffer:
            raise UsageError(
                f"--memory-bytes {self.memory.max_bytes}: no image of task {task + 1} fits into the buffer"
            )
        self.images_generated += self.replay.count(task)
        self.finished = task + 1

    @torch.no_grad()
    def _logits(self, images: Tensor) -> Tensor:
        """Logits (B, N, K) of the networks as they are now, for uint8 images (B, C, H, W), in eval mode and
        without augmentation."""
        logits = []
        for learner in self.learners:
            with eval_mode(learner.model), self.runtime.autocast():
                logits.append(learner.model(to_float(images)))
        return torch.stack(logits, 1)

    def draw(self, task: int) -> Draw | None:
        """Draw a batch from memory: see Replay.draw."""
        return self.replay.draw(task)

    def steps(self, phase: str, task: int, done: int) -> Iterator[Losses]:
        """The losses of each step of a phase (those of plan.PHASES) of a task, after its first `done`
        steps."""
        of, own = (
            self.generator,
            {"condense": self.condenser.steps, "stream": self.stream_steps, "retrain": self.retrain_steps},
        )
        return (own | {"gan": of.gan_steps, "match": of.match_steps, "latents": of.latent_steps})[phase](
            task, done
        )

    def stream_steps(self, task: int, done: int) -> Iterator[Losses]:
        """Train the networks on the images of the task, batch by batch, together with batches from memory.

        With --distilled-share a part of each batch is of the task's own distilled images.
        """
        distilled = self.own_images.of(task)
        for learner in self.learners:
            learner.set_rate(1.0)
        o, train, buffer = self.options, self.tasks[task], self.memory.buffer
        labels = train.labels.cpu()
        step, num_steps = self._step(task), -(-len(train) // o.batch_size)
        before = sum(self.plan.lengths(earlier)["stream"] for earlier in range(task))
        for i in range(done, o.epochs * num_steps):
            epoch, place = divmod(i, num_steps)
            if i == done or place == 0:
                order = epoch_order(len(train), torch.device("cpu"), self.seed, "stream", task, epoch)
                order_there = to_device(order, self.runtime.device)
            part = slice(place * o.batch_size, (place + 1) * o.batch_size)
            chosen, index = order[part], order_there[part]
            draws = [self.draw(task) for _ in range(self.method.draws)]
            batch = (
                train.batch(index)
                if distilled is None
                else self.own_images.replace(*train.batch(index), distilled)
            )
            losses = step(
                *batch, *itertools.chain(*filter(None, draws)), operations=self._operations("stream", task, i)
            )
            logits = losses.pop("logits")
            self._update_averages(before + i + 1)
            if buffer is not None and o.offer == "step" and epoch == 0:
                # once: a sample of images, not of their visits
                buffer.offer(
                    train.images[index], labels[chosen], logits if self.method.keeps_logits else None
                )
            yield losses

    def retrain_steps(self, task: int, done: int) -> Iterator[Losses]:
        """Train the networks on memory alone: each pass is over the images of the buffer and newly generated
        ones.

        They are reinitialised, unless they go on from the stream (--rehearse-steps).
        """
        if done == 0:
            self.finish(task)
            for learner in self.learners if self.method.retrains or self.options.retrain else ():
                learner.restart(task)
        o, step, at = self.options, self._step(task), 0
        before = sum(self.plan.lengths(earlier)["stream"] for earlier in range(task + 1))
        for turn in itertools.count():
            train = self.replay.retrain_set(task, turn)
            order = epoch_order(len(train), self.runtime.device, self.seed, "retrain", task, turn)
            for index in order.split(o.batch_size):
                at += 1
                if at > done:
                    for learner in self.learners:
                        learner.set_rate(self.plan.rate_factor(at - 1))
                    losses = step(*train.batch(index), operations=self._operations("retrain", task, at))
                    losses.pop("logits")
                    self._update_averages(before + at)
                    yield losses

    def _update_averages(self, step: int) -> None:
        for learner in self.learners:
            learner.update_averages(step)

    def _operations(self, *seed: int | str) -> tuple[str, ...]:
        return choose_operations(
            self.options.dsa_strategy, "dim", torch.Generator().manual_seed(derive_seed(self.seed, *seed))
        )

    def _step(self, task: int):
        """Return the training step of a task: step(images, y, *draws, operations=...) updates all networks.

        draws: images, y and stored logits of each batch from memory, one after another. The step returns the
        loss of each network, and "logits": those of the networks for `images`, (B, N, K).
        """
        o, device, side = self.options, self.runtime.device, self.info.image_size
        unseen = torch.ones(self.info.num_classes, dtype=torch.bool, device=device)
        unseen[self.plan.seen(task)] = False
        share = len(self.classes[task]) / len(self.plan.seen(task)) if o.replay_balance == "classes" else 0.5
        weights = Weights(o.alpha, o.beta, o.consistency, o.distill_weight, share, unseen)

        def step(images: Tensor, y: Tensor, *draws: Tensor, operations: tuple[str, ...]) -> Losses:
            batches = [(images, y, None), *(draws[i : i + 3] for i in range(0, len(draws), 3))]
            batches = [
                Batch(*batch, draw_operations(operations, len(batch[1]), side, device)) for batch in batches
            ]
            losses, logits = {}, []
            for learner in self.learners:
                with self.clock.network(learner.number):
                    loss, found = self.method.loss(learner, batches[0], batches[1:], weights)
                    learner.optim.zero_grad()
                    loss.backward()
                    learner.optim.step()
                losses[f"loss_{learner.name}"] = loss.detach()
                logits.append(found.detach())
            return losses | {"logits": torch.stack(logits, 1)}

        step = self.runtime.graphed(step)

        def timed(*tensors: Tensor, operations: tuple[str, ...]) -> Losses:
            with self.clock.step():
                return step(*tensors, operations=operations)

        return timed

    # a checkpoint

    def state_dict(self) -> dict:
        """Return the state as plain values and tensors."""
        return {
            "learners": {learner.name: learner.state_dict() for learner in self.learners},
            **self.generator.state_dict(),
            **self.condenser.state_dict(),
            "counters": {
                "finished": self.finished,
                "images_generated": self.images_generated,
                "seconds": self.clock.seconds,
            },
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
        self.finished, self.images_generated = (
            state["counters"]["finished"],
            state["counters"]["images_generated"],
        )
        self.clock, self.acc = Clock(state["counters"]["seconds"], self.runtime), state["acc"]
