"""The generator of a task in training, by stages 1 and 2, and what a continual learner replays: buffered
images, or those of its stored generators."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from data import ImageSet, steps_per_epoch, to_uint8
from engine.graphs import Losses
from engine.seeds import derive_seed, seeded
from engine.steps import Position
from gen_condense import train_gan
from models.deploy import ByClass
from models.gan import GAN, estimate_statistics
from models.matching import MATCH_RECIPES, Teachers, recipe_settings
from models.pool import Pool
from pool_match import train_match
from replay.buffer import MemoryBatch
from replay.learner import Learner, frozen_copy
from replay.memory import Memory
from replay.plan import Plan
from scoring.sources import generate
from utils import out_of_memory_hint

GP_WEIGHT = 10.0  # of DiM's gradient penalty
POOL_LR = 0.01  # of the pool networks
RECIPE = MATCH_RECIPES["energy"]  # of matching


class Replay:
    """The replayed images of a task: those that its networks learn from, and those that a carried generator
    is trained on."""

    def __init__(self, plan: Plan, memory: Memory):
        self.plan, self.memory = plan, memory
        self.images: ImageSet | None = None  # generated images of the classes before this task

    def prepare(self, task: int) -> None:
        """Generate images of earlier classes for this task; they are the same at whichever step of the task
        this is called."""
        self.images = None
        if task and self.plan.method.memory == "generator":
            self.images = self.generate(self.plan.seen(task - 1), task, "replay", task)

    def sample(self, task: int) -> MemoryBatch | None:
        """Draw a batch of buffered or of generated images; None if there are none."""
        n = self.plan.args.replay_batch_size or self.plan.args.batch_size
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
        rng = torch.Generator(runtime.device).manual_seed(derive_seed(self.plan.args.seed, *seed))
        return ImageSet(to_uint8(generate(generator, labels, rng, runtime)), labels)

    def memory_set(self, task: int, epoch: int) -> ImageSet:
        """Return what networks learn from memory alone at a pass: the images of the buffer, or newly
        generated ones."""
        if self.memory.generators is None:
            return self.memory.buffer.contents()
        return self.generate(self.plan.seen(task), task, "retrain", task, epoch)


class TaskGenerator:
    """The GAN of a task in training, and the pool of networks that it is matched with.

    learners: the networks of the continual learner; the pool has networks of the same kinds.
    """

    def __init__(self, plan: Plan, memory: Memory, replay: Replay, learners: Sequence[Learner]):
        self.plan = plan
        self.memory = memory
        self.replay = replay
        self.learners = learners
        self.gan: GAN | None = None
        self.pool: Pool | None = None

    def _held_classes(self, task: int) -> list[int]:
        """The classes that the generator of a task makes: those of the task, or all so far if one generator
        is carried on."""
        return self.plan.seen(task) if self.plan.method.carries else list(self.plan.classes[task])

    def _train_set(self, task: int) -> tuple[ImageSet, Tensor]:
        """Return the images that the generator of this task is trained on, and their classes (M,).

        These are the real images of the task; a carried generator also gets replayed images of the earlier
        classes.
        """
        sets = [self.plan.tasks[task]]
        if self.plan.method.carries and task:
            sets.append(self.replay.images)
        return ImageSet.joined(sets), torch.tensor(self._held_classes(task), device=self.plan.runtime.device)

    def _new_gan(self, task: int) -> GAN:
        """Build the GAN to train, with a new discriminator: the stored generator if one is carried on, else a
        new one."""
        args = self.plan.args
        generators = self.memory.generators
        runtime = self.plan.runtime
        with (
            seeded(torch.device("cpu"), args.seed, "gan", task),
            out_of_memory_hint("--width or --memory-bytes"),
        ):
            generator, discriminator = generators.players(self.plan.classes[task])
        if self.plan.method.carries and generators.stored:
            generator.load_state_dict(generators.build().state_dict())
        return GAN(runtime.place(generator), runtime.place(discriminator), args.gan_lr, args.ema)

    def _without_discriminator(self, generator: nn.Module) -> GAN:
        """The generator in training by matching alone, as in MATCH_RECIPES["energy"]."""
        betas = tuple(RECIPE["betas"])
        return GAN(generator.requires_grad_(True), None, RECIPE["lr"], RECIPE["ema"], betas=betas)

    def _new_pool(self, task: int) -> Pool:
        """The networks of matching, which learn generated images."""
        plan = self.plan
        names = [learner.name for learner in self.learners]
        seed = derive_seed(plan.args.seed, "pool", task)
        training = (RECIPE["pool_size"], self._of_all_classes(task), RECIPE["pool_steps"], RECIPE["pool_age"])
        return Pool(names, plan.info, POOL_LR, "color_crop", seed, plan.runtime, *training)

    def _of_all_classes(self, task: int) -> nn.Module:
        """A generator of all classes so far: the average of that in training, and the stored ones of earlier
        tasks.

        It is in eval mode, since a batch may have few images of the classes of the task.
        """
        current = self.gan.deployed.eval()
        if self.plan.method.carries or not task:
            return current
        earlier = self.memory.generators.build()
        return self.plan.runtime.place(
            ByClass([current, earlier], [self.plan.classes[task], self.plan.seen(task - 1)])
        )

    def gan_steps(self, task: int, done: int) -> Iterator[Losses]:
        """Run stage 1 on the images of _train_set; yield the losses of its steps, without the first
        `done`."""
        if done == 0:
            self.gan = self._new_gan(task)
        args = self.plan.args
        train, labels = self._train_set(task)
        num_steps = steps_per_epoch(len(train), args.gan_batch_size)
        steps = train_gan(
            self.gan,
            train,
            epochs=-(-args.gan_steps // num_steps),
            batch_size=args.gan_batch_size,
            gp_weight=GP_WEIGHT,
            seed=derive_seed(args.seed, "gan", task),
            runtime=self.plan.runtime,
            classes=labels,
            start=Position(*divmod(done, num_steps)),
        )
        return (step.losses for step in steps)

    def match_steps(self, task: int, done: int) -> Iterator[Losses]:
        """Run stage 2 on the same images; yield the losses of its steps, without the first `done`.

        The generator is matched alone, in networks that learn the generated images of all classes so far; the
        networks of the learner, which know these classes, are its teachers.
        """
        args = self.plan.args
        if done == 0:
            self.gan = self._without_discriminator((self.gan or self._new_gan(task)).deployed)
            self.pool = self._new_pool(task)
        train, labels = self._train_set(task)
        earlier = [] if self.replay.images is None else [self.replay.images]
        self.pool.images = ImageSet.joined([train, *earlier])
        networks = [frozen_copy(learner.deployed) for learner in self.learners]
        steps = train_match(
            self.gan,
            self.pool,
            train,
            batch_size=args.gan_batch_size,
            seed=derive_seed(args.seed, "match", task),
            runtime=self.plan.runtime,
            classes=labels,
            steps=args.match_steps,
            teachers=Teachers(networks, RECIPE["teacher_weight"]),
            start=Position(0, done),
            **recipe_settings(args.match_batch),
        )
        return ({f"match_{name}": loss for name, loss in step.losses.items()} for step in steps)

    def keep(self, task: int) -> None:
        """Store the generator that was trained at this task, if any, and end its training."""
        if self.gan is None:
            return
        args = self.plan.args
        held = self._held_classes(task)
        if args.restat:
            labels = torch.tensor(held, device=self.plan.runtime.device)
            settings = (args.restat, args.gan_batch_size, args.seed, self.plan.runtime)
            estimate_statistics(self.gan.deployed, *settings, labels)
        self.memory.generators.keep(self.gan.deployed, held)
        self.gan = self.pool = None

    def state_dict(self) -> dict:
        """Return the states of the GAN and the pool; None for what is not in training."""
        return {"gan": self.gan and self.gan.state_dict(), "match_pool": self.pool and self.pool.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Restore what state_dict() returned."""
        task = state["position"]["epoch"]
        if state["gan"] is not None:
            self.gan = self._new_gan(task)
            if state["gan"]["discriminator"] is None:
                self.gan = self._without_discriminator(self.gan.generator)
            self.gan.load_state_dict(state["gan"])
        if state["match_pool"] is not None:
            self.pool = self._new_pool(task)
            self.pool.load_state_dict(state["match_pool"])
