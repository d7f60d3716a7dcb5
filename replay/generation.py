"""Training of the generator of a task: stages 1 and 2 on the images that a continual learner may use."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from data import ImageSet, steps_per_epoch
from engine.graphs import Losses
from engine.seeds import derive_seed, seeded
from engine.steps import Position
from gen_condense import train_gan
from models.deploy import ByClass
from models.gan import GAN, estimate_statistics
from models.matching import MATCH_RECIPES, Matching, Teachers, recipe_settings
from models.pool import Pool
from pool_match import train_match
from replay.learner import Learner, frozen_copy
from replay.memory import Memory
from replay.plan import Plan
from replay.replaying import Replay
from utils import out_of_memory_hint

GP_WEIGHT = 10.0  # of DiM's gradient penalty
POOL_STEPS, POOL_LR = 2, 0.01  # of the pool networks: SGD steps before each generator step, learning rate


class TaskGenerator:
    """The GAN of a task in training, and the pool of networks that it is matched with.

    learners: the networks of the continual learner; the pool has networks of the same kinds.
    """

    def __init__(self, plan: Plan, memory: Memory, replay: Replay, learners: Sequence[Learner]):
        self.plan, self.memory, self.replay, self.learners = plan, memory, replay, learners
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
        settings, generators, runtime = self.plan.generation, self.memory.generators, self.plan.runtime
        with (
            seeded(torch.device("cpu"), self.plan.seed, "gan", task),
            out_of_memory_hint("--width or --memory-bytes"),
        ):
            generator, discriminator = generators.players(self.plan.classes[task])
        if self.plan.method.carries and generators.stored:
            generator.load_state_dict(generators.build().state_dict())
        return GAN(runtime.place(generator), runtime.place(discriminator), settings.gan_lr, settings.ema)

    def _without_discriminator(self, generator: nn.Module) -> GAN:
        """The generator in training by matching alone, as in MATCH_RECIPES["energy"]."""
        r = MATCH_RECIPES["energy"]
        return GAN(generator.requires_grad_(True), None, r["lr"], r["ema"], betas=tuple(r["betas"]))

    def _new_pool(self, task: int) -> Pool:
        """The networks of matching; with --recipe-match energy they learn generated images."""
        plan = self.plan
        own = (1, None, POOL_STEPS)  # size, generator, steps, age
        if plan.generation.taught:
            recipe = MATCH_RECIPES["energy"]
            own = (recipe["pool_size"], self._of_all_classes(task), recipe["pool_steps"], recipe["pool_age"])
        names = [learner.name for learner in self.learners]
        seed = derive_seed(plan.seed, "pool", task)
        return Pool(names, plan.info, POOL_LR, "color_crop", seed, plan.runtime, *own)

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
        settings = self.plan.generation
        train, labels = self._train_set(task)
        num_steps = steps_per_epoch(len(train), settings.gan_batch_size)
        steps = train_gan(
            self.gan,
            train,
            epochs=-(-settings.gan_steps // num_steps),
            batch_size=settings.gan_batch_size,
            gp_weight=GP_WEIGHT,
            seed=derive_seed(self.plan.seed, "gan", task),
            runtime=self.plan.runtime,
            classes=labels,
            start=Position(*divmod(done, num_steps)),
        )
        return (step.losses for step in steps)

    def match_steps(self, task: int, done: int) -> Iterator[Losses]:
        """Run stage 2 on the same images; yield the losses of its steps, without the first `done`.

        By --recipe-match energy the generator is matched alone, in networks that learn the generated images
        of all classes so far, and the networks of the learner, which know these classes, are its teachers.
        """
        settings = self.plan.generation
        if done == 0:
            if self.gan is None:
                self.gan = self._new_gan(task)
            if settings.taught:
                self.gan = self._without_discriminator(self.gan.deployed)
            self.pool = self._new_pool(task)
        train, labels = self._train_set(task)
        seed = derive_seed(self.plan.seed, "match", task)
        if settings.taught:
            earlier = [] if self.replay.images is None else [self.replay.images]
            self.pool.images = ImageSet.joined([train, *earlier])
            networks = [frozen_copy(learner.deployed) for learner in self.learners]
            steps = train_match(
                self.gan,
                self.pool,
                train,
                batch_size=settings.gan_batch_size,
                seed=seed,
                runtime=self.plan.runtime,
                classes=labels,
                steps=settings.match_steps,
                teachers=Teachers(networks, MATCH_RECIPES["energy"]["teacher_weight"]),
                start=Position(0, done),
                **recipe_settings(settings.match_batch),
            )
        else:
            num_steps = steps_per_epoch(len(train), settings.gan_batch_size)
            steps = train_match(
                self.gan,
                self.pool,
                train,
                Matching(settings.match, strategy="color_crop_cutout"),
                epochs=-(-settings.match_steps // num_steps),
                batch_size=settings.gan_batch_size,
                gp_weight=GP_WEIGHT,
                seed=seed,
                runtime=self.plan.runtime,
                classes=labels,
                start=Position(*divmod(done, num_steps)),
            )
        return ({f"match_{name}": loss for name, loss in step.losses.items()} for step in steps)

    def keep(self, task: int) -> None:
        """Store the generator that was trained at this task, if any, and end its training."""
        if self.gan is None:
            return
        settings, held = self.plan.generation, self._held_classes(task)
        if settings.restat:
            labels = torch.tensor(held, device=self.plan.runtime.device)
            estimate_statistics(
                self.gan.deployed,
                settings.restat,
                settings.gan_batch_size,
                self.plan.seed,
                self.plan.runtime,
                labels,
            )
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
