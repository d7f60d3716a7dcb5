"""A continual learner: its networks, its memory, and the phases of a task.

The loop over tasks is continual.py's.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from augment import choose_operations, draw_operations
from data import DataInfo, ImageSet, epoch_order, steps_per_epoch, to_float
from gen_condense import train_gan
from losses import MATCH_WEIGHTS
from memory import Draw, Memory
from methods import Batch, Ensemble, Learner, Method, Weights
from models import build_gan
from models.deploy import Filtered
from models.gan import GAN, estimate_statistics, image_grid
from pool_match import Pool, train_match
from run_folder import Position
from runtime import Losses, Runtime, Stopwatch
from sources import generate
from utils import UsageError, derive_seed, eval_mode, seeded, to_device


@dataclass(frozen=True)
class Options:
    """Plain values of a run; see the flags of the same names."""

    epochs: int
    batch_size: int
    replay_batch_size: int
    dsa_strategy: str
    alpha: float
    beta: float
    consistency: float
    distill_weight: float
    replay_balance: str
    replay_images: int | None
    offer: str
    filter: float
    retrain: bool
    retrain_steps: int | None
    gan_steps: int
    gan_batch_size: int
    gan_lr: float
    gan_lr_d: float | None
    gp_weight: float
    ema: float
    restat: int
    keep_discriminator: bool
    oracle: bool
    match_steps: int
    match: str
    match_weight: float | None
    pool_steps: int
    pool_lr: float


class Clock:
    """Adds up the seconds that the device spends on each of several networks; those of a replayed graph are shared out evenly.

    The host waits for the device only when they are read. seconds: of an earlier start.
    """

    def __init__(self, seconds: Sequence[float], runtime: Runtime):
        self.earlier, self.runtime = list(seconds), runtime
        self.even = runtime.graphs or len(self.earlier) == 1
        self.watches: list[Stopwatch] = []
        self._restart()

    def _restart(self) -> None:
        self.watches = [Stopwatch(self.runtime.device) for _ in range(1 if self.even else len(self.earlier))]

    def step(self) -> contextlib.AbstractContextManager:
        """The block is a step of all networks."""
        return self.watches[0] if self.even else contextlib.nullcontext()

    def network(self, number: int) -> contextlib.AbstractContextManager:
        """The block, inside of a step, is network `number`'s part."""
        return contextlib.nullcontext() if self.even else self.watches[number]

    @property
    def seconds(self) -> list[float]:
        """Of each network so far."""
        found = [watch.seconds() for watch in self.watches]
        shares = [found[0] / len(self.earlier)] * len(self.earlier) if self.even else found
        self.earlier = [before + share for before, share in zip(self.earlier, shares, strict=True)]
        self._restart()
        return list(self.earlier)


class Continual:
    """A continual learner: its networks, its memory, and within a task the GAN in training; state_dict() is all that a next step needs.

    tasks: the training images of each, on the device; those of earlier tasks are not looked at. classes: of each task.
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
    ):
        self.method, self.options, self.tasks, self.classes = method, options, tasks, classes
        self.learners, self.memory, self.info, self.seed, self.runtime = learners, memory, info, seed, runtime
        self.gan: GAN | None = None
        self.pool: Pool | None = None
        self.replay: ImageSet | None = None  # generated images of the classes before this task
        self.replay_of = -1  # the task they were made for
        self.finished = 0  # tasks that the memory holds
        self.images_generated = 0
        self.clock = Clock([0.0] * len(learners), runtime)  # of training each network
        self.acc: dict[str, dict[str, list[list[float]]]] = {}  # network -> setting -> rows of the matrix, the untrained one's first

    # the plan of a task

    def lengths(self, task: int) -> dict[str, int]:
        """Steps of the phases of a task, in their order."""
        o, size = self.options, len(self.tasks[task])
        generates = self.memory.generators is not None
        stream = o.epochs * -(-size // o.batch_size)
        gan = o.gan_steps * (len(self.tasks) if o.oracle and task == 0 else not o.oracle) if generates else 0
        retrains = self.method.retrains or o.retrain
        return {
            "gan": gan,
            "match": o.match_steps if gan else 0,
            "stream": 0 if retrains else stream,
            "retrain": (o.retrain_steps or stream * (task + 1)) if retrains else 0,
        }

    def begin(self, task: int) -> None:
        """Freeze the networks of the last task for what needs them."""
        if self._replays(task) and (self.options.distill_weight or self.options.filter):
            for learner in self.learners:
                learner.remember()

    def finish(self, task: int) -> None:
        """Bring the memory up to this task."""
        if self.finished > task:
            return
        if self.gan is not None:
            o = self.options
            seen = self._seen(len(self.tasks) - 1 if o.oracle else task)
            held = seen if self.memory.generators.layout == "carried" else self.classes[task]
            if o.restat:
                labels = torch.tensor(held, device=self.runtime.device)
                estimate_statistics(self.gan.deployed, o.restat, o.gan_batch_size, self.seed, self.runtime, labels)
            kept = {"discriminator": self.gan.discriminator.state_dict()}
            kept |= {name: getattr(self.gan, name).state_dict()["state"] for name in ("optim_g", "optim_d")}
            self.memory.generators.keep(self.gan.deployed, held, kept if o.keep_discriminator else None)
            self.gan = self.pool = None
        if self.memory.buffer is not None and (self.options.offer == "task" or not self.lengths(task)["stream"]):
            offered = (self.tasks[task].images, self.tasks[task].labels.cpu())
            for images, labels in zip(*(tensor.split(1000) for tensor in offered), strict=True):
                self.memory.buffer.offer(images, labels, self._logits(images) if self.method.keeps_logits else None)
        for learner in self.learners:
            learner.previous = None  # it is no memory
        self.memory.check()
        if self.memory.buffer is not None and not self.memory.buffer:
            raise UsageError(f"--memory-bytes {self.memory.max_bytes}: no image of task {task + 1} fits into the buffer")
        self.images_generated += self._images_of(task)
        self.finished = task + 1

    def _images_of(self, task: int) -> int:
        """Generated images that networks were given to learn from at a task; what a filter turned away is not counted."""
        if self.memory.generators is None:
            return 0
        steps, size = self.lengths(task)["retrain"], len(self._seen(task)) * self._per_class(task)
        together = size + (len(self.memory.buffer) if self.memory.buffer else 0)
        passes = -(-steps // -(-together // self.options.batch_size))
        replayed = len(self._seen(task - 1)) * self._per_class(task) if task and self.lengths(task)["stream"] else 0
        return passes * size + replayed

    @torch.no_grad()
    def _logits(self, images: Tensor) -> Tensor:
        """What the networks give now for uint8 images (B, C, H, W), without augmentation: (B, N, K)."""
        logits = []
        for learner in self.learners:
            with eval_mode(learner.model), self.runtime.autocast():
                logits.append(learner.model(to_float(images)))
        return torch.stack(logits, 1)

    def _seen(self, task: int) -> list[int]:
        return [label for labels in self.classes[: task + 1] for label in labels]

    # what is replayed

    def _generated(self, labels: Tensor, threshold: float, *seed: int | str) -> ImageSet:
        """An image of the stored generators for each label, as uint8."""
        generator = self.runtime.place(self.memory.generators.build())
        if threshold:
            generator = Filtered(generator, Ensemble([learner.previous for learner in self.learners]), threshold)
        rng = torch.Generator(self.runtime.device).manual_seed(derive_seed(self.seed, *seed))
        images = generate(generator, labels, rng, self.runtime)
        return ImageSet(((images + 1) * 127.5).round().clamp(0, 255).byte(), labels)

    def _per_class(self, task: int) -> int:
        return self.options.replay_images or -(-len(self.tasks[task]) // len(self.classes[task]))

    def _replays(self, task: int) -> bool:
        """Whether a task uses generated images of earlier classes: its networks, or the generator that is carried on."""
        generators, lengths = self.memory.generators, self.lengths(task)
        return bool(task and generators and (lengths["stream"] or (lengths["gan"] and generators.layout == "carried")))

    def prepare_replay(self, task: int) -> None:
        """Make the generated images of earlier classes for this task; the same whenever it is called during it."""
        if self.replay_of == task:
            return
        self.replay_of, self.replay = task, None
        if self._replays(task):
            labels = torch.tensor(self._seen(task - 1), device=self.runtime.device).repeat_interleave(self._per_class(task))
            self.replay = self._generated(labels, self.options.filter, "replay", task)

    def draw(self, task: int) -> Draw | None:
        """A batch from memory: from the buffer, of generated images, or half of each; None while there is nothing."""
        n, buffer, parts = self.options.replay_batch_size, self.memory.buffer, []
        of_buffer = 0 if not buffer else n if self.method.memory == "buffer" else n // 2 if task else 0
        if of_buffer:
            parts.append(buffer.draw(of_buffer))
        if self.replay is not None and n > of_buffer:
            images, labels = self.replay.batch(torch.randint(len(self.replay), (n - of_buffer,), device=self.runtime.device))
            parts.append(Draw(images, labels, images.new_empty(len(labels), 0, self.info.num_classes)))
        return Draw(*(torch.cat(tensors) for tensors in zip(*parts, strict=True))) if parts else None

    # the phases: losses of their steps after the first `done`

    def _gan_set(self, task: int) -> tuple[ImageSet, Tensor]:
        """What the generator of this task is trained on, and its classes."""
        sets, labels = [self.tasks[task]], self.classes[task]
        if self.options.oracle:
            sets, labels = self.tasks, self._seen(len(self.tasks) - 1)
        elif self.memory.generators.layout == "carried" and task:
            sets, labels = [*sets, self.replay], self._seen(task)
            if self.memory.buffer:
                held = self.memory.buffer.contents()
                sets.append(held[torch.isin(held.labels, torch.tensor(self._seen(task - 1), device=held.labels.device))])
        together = ImageSet(torch.cat([s.images for s in sets]), torch.cat([s.labels for s in sets]))
        return together, torch.tensor(labels, device=self.runtime.device)

    def _new_gan(self, task: int) -> GAN:
        """The pair to train: the stored generator if one is carried on, and a discriminator, fresh unless it was kept."""
        o, generators = self.options, self.memory.generators
        with seeded(torch.device("cpu"), self.seed, "gan", task):
            generator, discriminator = build_gan(generators.config)
        if generators.layout == "carried" and generators.stored:
            generator.load_state_dict(generators.build().state_dict())
        gan = GAN(self.runtime.place(generator), self.runtime.place(discriminator), o.gan_lr, o.ema, o.gan_lr_d)
        if generators.kept_with and generators.layout == "carried":
            fresh, kept = gan.state_dict(), dict(generators.kept_with)
            kept |= {name: fresh[name] | {"state": kept[name]} for name in ("optim_g", "optim_d")}
            gan.load_state_dict(fresh | kept)
        return gan

    def _new_pool(self, task: int) -> Pool:
        names = [learner.name for learner in self.learners]
        return Pool(names, self.info, self.options.pool_lr, "color_crop", derive_seed(self.seed, "pool", task), self.runtime)

    def gan_steps(self, task: int, done: int) -> Iterator[Losses]:
        """Stage 1 on the task's real images and, for earlier classes, on those of the generator before."""
        if done == 0:
            self.gan = self._new_gan(task)
        o, (train, labels) = self.options, self._gan_set(task)
        num_steps = steps_per_epoch(len(train), o.gan_batch_size)
        steps = train_gan(
            self.gan,
            train,
            epochs=-(-self.lengths(task)["gan"] // num_steps),
            batch_size=o.gan_batch_size,
            gp_weight=o.gp_weight,
            seed=derive_seed(self.seed, "gan", task),
            runtime=self.runtime,
            classes=labels,
            start=Position(*divmod(done, num_steps)),
        )
        return (at.losses for at in steps)

    def match_steps(self, task: int, done: int) -> Iterator[Losses]:
        """Stage 2 on the same images."""
        if done == 0:
            self.pool = self._new_pool(task)
        o, (train, labels) = self.options, self._gan_set(task)
        num_steps = steps_per_epoch(len(train), o.gan_batch_size)
        steps = train_match(
            self.gan,
            self.pool,
            train,
            epochs=-(-o.match_steps // num_steps),
            batch_size=o.gan_batch_size,
            gp_weight=o.gp_weight,
            pool_steps=o.pool_steps,
            match=o.match,
            match_weight=MATCH_WEIGHTS[o.match] if o.match_weight is None else o.match_weight,
            match_strategy="color_crop_cutout",
            metric=None,
            bias=False,
            fc=False,
            seed=derive_seed(self.seed, "match", task),
            runtime=self.runtime,
            classes=labels,
            start=Position(*divmod(done, num_steps)),
        )
        return ({f"match_{name}": loss for name, loss in at.losses.items()} for at in steps)

    def stream_steps(self, task: int, done: int) -> Iterator[Losses]:
        """The networks on the task's images, batch by batch, beside batches from memory."""
        o, train, buffer = self.options, self.tasks[task], self.memory.buffer
        labels = train.labels.cpu()
        step, num_steps = self._step(task), -(-len(train) // o.batch_size)
        before = sum(self.lengths(earlier)["stream"] for earlier in range(task))
        for i in range(done, o.epochs * num_steps):
            epoch, place = divmod(i, num_steps)
            if i == done or place == 0:
                order = epoch_order(len(train), torch.device("cpu"), self.seed, "stream", task, epoch)
                order_there = to_device(order, self.runtime.device)
            part = slice(place * o.batch_size, (place + 1) * o.batch_size)
            chosen, index = order[part], order_there[part]
            draws = [self.draw(task) for _ in range(self.method.draws)]
            losses = step(*train.batch(index), *itertools.chain(*filter(None, draws)), operations=self._operations("stream", task, i))
            logits = losses.pop("logits")
            for learner in self.learners:
                if learner.averages:
                    learner.update_averages(before + i + 1)
            if buffer is not None and o.offer == "step" and (epoch == 0 or not self.method.unlimited):
                buffer.offer(train.images[index], labels[chosen], logits if self.method.keeps_logits else None)
            yield losses

    def retrain_steps(self, task: int, done: int) -> Iterator[Losses]:
        """Fresh networks on memory alone: passes over the buffer's images, and over new ones of the generator at each pass."""
        if done == 0:
            self.finish(task)
            for learner in self.learners:
                learner.restart(task)
        o, step, at = self.options, self._step(task), 0
        for turn in itertools.count():
            train = self._retrain_set(task, turn)
            order = epoch_order(len(train), self.runtime.device, self.seed, "retrain", task, turn)
            for index in order.split(o.batch_size):
                at += 1
                if at > done:
                    losses = step(*train.batch(index), operations=self._operations("retrain", task, at))
                    losses.pop("logits")
                    yield losses

    def _retrain_set(self, task: int, turn: int) -> ImageSet:
        sets = [self.memory.buffer.contents()] if self.memory.buffer else []
        if self.memory.generators is not None:
            labels = torch.tensor(self._seen(task), device=self.runtime.device).repeat_interleave(self._per_class(task))
            sets.append(self._generated(labels, 0.0, "retrain", task, turn))
        return ImageSet(torch.cat([s.images for s in sets]), torch.cat([s.labels for s in sets]))

    def _operations(self, *seed: int | str) -> tuple[str, ...]:
        return choose_operations(self.options.dsa_strategy, "dim", torch.Generator().manual_seed(derive_seed(self.seed, *seed)))

    def _step(self, task: int):
        """step(images, y, then images, y and logits of each draw; operations) -> each network's loss, and logits (B, N, K)."""
        o, device, side = self.options, self.runtime.device, self.info.image_size
        unseen = torch.ones(self.info.num_classes, dtype=torch.bool, device=device)
        unseen[self._seen(task)] = False
        share = len(self.classes[task]) / len(self._seen(task)) if o.replay_balance == "classes" else 0.5
        weights = Weights(o.alpha, o.beta, o.consistency, o.distill_weight, share, unseen)

        def step(images: Tensor, y: Tensor, *draws: Tensor, operations: tuple[str, ...]) -> Losses:
            batches = [(images, y, None), *(draws[i : i + 3] for i in range(0, len(draws), 3))]
            batches = [Batch(*batch, draw_operations(operations, len(batch[1]), side, device)) for batch in batches]
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
        """Plain values and tensors."""
        return {
            "learners": {learner.name: learner.state_dict() for learner in self.learners},
            "gan": self.gan and self.gan.state_dict(),
            "match_pool": self.pool and self.pool.state_dict(),
            "counters": {"finished": self.finished, "images_generated": self.images_generated, "seconds": self.clock.seconds},
            "acc": self.acc,
            **self.memory.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from state_dict()."""
        self.memory.load_state_dict(state)
        for learner in self.learners:
            learner.load_state_dict(state["learners"][learner.name])
        task = state["position"]["epoch"]
        if state["gan"] is not None:
            self.gan = self._new_gan(task)
            self.gan.load_state_dict(state["gan"])
        if state["match_pool"] is not None:
            self.pool = self._new_pool(task)
            self.pool.load_state_dict(state["match_pool"])
        self.finished, self.images_generated = state["counters"]["finished"], state["counters"]["images_generated"]
        self.clock, self.acc = Clock(state["counters"]["seconds"], self.runtime), state["acc"]


def picture(continual: Continual, rows: int = 10) -> Tensor | None:
    """What the memory holds (C, H, W) in [-1, 1]: a column for each class, black where it holds none.

    Of a set of more than ten classes: of the first ten that it holds.
    """
    memory, info = continual.memory, continual.info
    columns = min(info.num_classes, 10)
    images = torch.full((rows, columns, info.channels, info.image_size, info.image_size), -1.0)
    if memory.generators is not None and memory.generators.stored:
        held = [label for labels in memory.generators.classes for label in labels][:columns]
        generator, rng = memory.generators.build(), torch.Generator().manual_seed(derive_seed(continual.seed, "pictures"))
        with torch.no_grad():
            made = generator.sample(torch.tensor(held).repeat(rows), rng)
        places = held if info.num_classes <= columns else list(range(len(held)))
        images[:, places] = made.view(rows, len(held), *images.shape[2:])
    elif memory.buffer:
        held = range(columns) if info.num_classes <= columns else memory.buffer.labels.unique().tolist()[:columns]
        for column, label in enumerate(held):
            some = memory.buffer.images[memory.buffer.labels == label][:rows].cpu()
            images[: len(some), column] = to_float(some)
    else:
        return None
    return image_grid(images.flatten(0, 1), columns)
