"""Training of the generator of a task, and of its latents: stages 1 and 2 on the images that a continual
learner may use."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from data import ImageSet, steps_per_epoch
from engine.graphs import Losses
from engine.seeds import derive_seed, seeded
from engine.steps import Position, Step
from models.deploy import ByClass, Latents
from models.gan import GAN, estimate_statistics
from models.matching import MATCH_RECIPES, Matching, Teachers, recipe_settings
from models.pool import Pool
from replay.learner import frozen_copy
from replay.memory import Memory
from replay.plan import Plan
from replay.replaying import Replay
from replay.stored_generators import load_stored
from utils import out_of_memory_hint


class TaskGenerator:
    """The GAN of a task in training, and the pool of networks that it is matched with.

    networks: names of the networks in the pool. train_gan, train_match: the loops of stages 1 and 2
    (gen_condense.py, pool_match.py).
    """

    def __init__(
        self,
        plan: Plan,
        memory: Memory,
        replay: Replay,
        networks: Sequence[str],
        train_gan: Callable[..., Iterator[Step]],
        train_match: Callable[..., Iterator[Step]],
    ):
        self.plan, self.memory, self.replay, self.networks = plan, memory, replay, networks
        self.train_gan, self.train_match = train_gan, train_match
        self.gan: GAN | None = None
        self.pool: Pool | None = None

    def _train_set(self, task: int) -> tuple[ImageSet, Tensor]:
        """Return the images that the generator of this task is trained on, and their classes (M,).

        These are the real images of the task. A carried generator also gets replayed images of the earlier
        classes; with --oracle, the generator gets the images of all tasks.
        """
        sets, labels = [self.plan.tasks[task]], self.plan.classes[task]
        if self.plan.options.oracle:
            sets, labels = self.plan.tasks, self.plan.seen(len(self.plan.tasks) - 1)
        elif self.memory.generators.layout == "carried" and task:
            sets, labels = [*sets, self.replay.images], self.plan.seen(task)
            if self.memory.buffer:
                held = self.memory.buffer.contents()
                sets.append(
                    held[
                        torch.isin(
                            held.labels, torch.tensor(self.plan.seen(task - 1), device=held.labels.device)
                        )
                    ]
                )
        return ImageSet.joined(sets), torch.tensor(labels, device=self.plan.runtime.device)

    def _new_gan(self, task: int) -> GAN:
        """Build the GAN to train: the stored generator if one is carried on, else a new one. The
        discriminator is new unless kept."""
        o, generators = self.plan.options, self.memory.generators
        with (
            seeded(torch.device("cpu"), self.plan.seed, "gan", task),
            out_of_memory_hint("--width or --memory-bytes"),
        ):
            generator, discriminator = generators.players(self.plan.classes[task])
        if generators.layout == "carried" and generators.stored:
            generator.load_state_dict(generators.build().state_dict())
        elif o.generator_start == "previous" and generators.stored:
            load_stored(
                generator, generators.stored[-1]
            )  # new classes start from the rows of the last task's
        gan = GAN(
            self.plan.runtime.place(generator),
            self.plan.runtime.place(discriminator),
            o.gan_lr,
            o.ema,
            o.gan_lr_d,
        )
        if generators.kept_with and generators.layout == "carried":
            fresh, kept = gan.state_dict(), dict(generators.kept_with)
            kept |= {name: fresh[name] | {"state": kept[name]} for name in ("optim_g", "optim_d")}
            gan.load_state_dict(fresh | kept)
        return gan

    def _alone(self, generator: nn.Module) -> GAN:
        """The generator in training by matching alone, as in MATCH_RECIPES["energy"]."""
        r = MATCH_RECIPES["energy"]
        return GAN(generator.requires_grad_(True), None, r["lr"], r["ema"], betas=tuple(r["betas"]))

    def _new_pool(self, task: int, alone: bool) -> Pool:
        """The networks of matching. alone: by MATCH_RECIPES["energy"], where they learn generated images."""
        plan, own = self.plan, (1, None, self.plan.options.pool_steps)
        if alone:
            r = MATCH_RECIPES["energy"]
            own = (r["pool_size"], self._of_all_classes(task), r["pool_steps"], r["pool_age"])
        seed = derive_seed(plan.seed, "pool", task)
        return Pool(self.networks, plan.info, plan.options.pool_lr, "color_crop", seed, plan.runtime, *own)

    def _of_all_classes(self, task: int) -> nn.Module:
        """A generator of all classes so far: the average of that in training, and the stored ones of earlier
        tasks.

        It is in eval mode, since a batch may have few images of the classes of the task.
        """
        current = self.gan.deployed.eval()
        if self.memory.generators.layout == "carried" or not task:
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
        o, (train, labels) = self.plan.options, self._train_set(task)
        num_steps = steps_per_epoch(len(train), o.gan_batch_size)
        steps = self.train_gan(
            self.gan,
            train,
            epochs=-(-self.plan.lengths(task)["gan"] // num_steps),
            batch_size=o.gan_batch_size,
            gp_weight=o.gp_weight,
            seed=derive_seed(self.plan.seed, "gan", task),
            runtime=self.plan.runtime,
            classes=labels,
            start=Position(*divmod(done, num_steps)),
        )
        return (at.losses for at in steps)

    def match_steps(self, task: int, done: int) -> Iterator[Losses]:
        """Run stage 2 on the same images; yield the losses of its steps, without the first `done`.

        By --recipe-match energy the generator is matched alone, in networks that learn the generated images
        of all classes so far, and the networks of the learner, which know these classes, are its teachers.
        """
        o, alone = self.plan.options, self.plan.options.recipe_match == "energy"
        if done == 0:
            if self.gan is None:
                self.gan = self._new_gan(task)
            if alone:
                self.gan = self._alone(self.gan.deployed)
            self.pool = self._new_pool(task, alone)
        if alone:
            return self._alone_steps("match", task, done, o.match_steps, recipe_settings(o.match_batch))
        train, labels = self._train_set(task)
        num_steps = steps_per_epoch(len(train), o.gan_batch_size)
        settings = {
            "epochs": -(-o.match_steps // num_steps),
            "gp_weight": o.gp_weight,
            "matching": Matching(o.match, o.match_weight, "color_crop_cutout"),
            "start": Position(*divmod(done, num_steps)),
        }
        seed = derive_seed(self.plan.seed, "match", task)
        shared = {
            "batch_size": o.gan_batch_size,
            "seed": seed,
            "runtime": self.plan.runtime,
            "classes": labels,
        }
        steps = self.train_match(self.gan, self.pool, train, **shared, **settings)
        return ({f"match_{name}": loss for name, loss in at.losses.items()} for at in steps)

    def latent_steps(self, task: int, done: int) -> Iterator[Losses]:
        """Optimise the latents of the task's classes by the same matching, through its generator as it is
        stored."""
        o = self.plan.options
        if done == 0:
            self.keep(task)
            self.gan = self._new_latents(task)
            self.pool = self._new_pool(task, alone=True)
        settings = recipe_settings(min(o.match_batch, o.latents)) | {"lr_decay": "none"}
        return self._alone_steps("latents", task, done, o.latent_steps, settings)

    def _new_latents(self, task: int) -> GAN:
        with out_of_memory_hint("--latents"):
            return self.memory.generators.new_latents(
                derive_seed(self.plan.seed, task), self.plan.runtime
            ).in_training()

    def _alone_steps(self, name: str, task: int, done: int, length: int, settings: dict) -> Iterator[Losses]:
        """Match without a GAN for `length` steps; the networks of the learner, which know all classes so far,
        are the teachers."""
        (train, labels), o = self._train_set(task), self.plan.options
        sets = [train] if self.replay.images is None else [train, self.replay.images]
        self.pool.images = ImageSet.joined(sets)
        learners = [frozen_copy(learner.deployed) for learner in self.replay.learners]
        steps = self.train_match(
            self.gan,
            self.pool,
            train,
            batch_size=o.gan_batch_size,
            seed=derive_seed(self.plan.seed, name, task),
            runtime=self.plan.runtime,
            classes=labels,
            steps=length,
            teachers=Teachers(learners, o.teacher_weight),
            start=Position(0, done),
            **settings,
        )
        return ({f"{name}_{loss}": value for loss, value in at.losses.items()} for at in steps)

    def keep(self, task: int) -> None:
        """Store the generator or the latents that were trained at this task, if any, and end their
        training."""
        if self.gan is None:
            return
        if isinstance(self.gan.generator, Latents):
            self.memory.generators.latents.append(self.gan.generator.stored().cpu())
            self.gan = self.pool = None
            return
        o = self.plan.options
        seen = self.plan.seen(len(self.plan.tasks) - 1 if o.oracle else task)
        held = seen if self.memory.generators.layout == "carried" else self.plan.classes[task]
        if o.restat:
            labels = torch.tensor(held, device=self.plan.runtime.device)
            estimate_statistics(
                self.gan.deployed, o.restat, o.gan_batch_size, self.plan.seed, self.plan.runtime, labels
            )
        kept = None
        if o.keep_discriminator:
            kept = {"discriminator": self.gan.discriminator.state_dict()}
            kept |= {name: getattr(self.gan, name).state_dict()["state"] for name in ("optim_g", "optim_d")}
        self.memory.generators.keep(self.gan.deployed, held, kept)
        self.gan = self.pool = None

    def state_dict(self) -> dict:
        """Return the states of the GAN and the pool; None for what is not in training."""
        return {"gan": self.gan and self.gan.state_dict(), "match_pool": self.pool and self.pool.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Restore what state_dict() returned."""
        task, o = state["position"]["epoch"], self.plan.options
        latents = o.latents and len(self.memory.generators.stored) > task  # they come after their generator
        if state["gan"] is not None:
            self.gan = self._new_latents(task) if latents else self._new_gan(task)
            if state["gan"]["discriminator"] is None and not latents:
                self.gan = self._alone(self.gan.generator)
            self.gan.load_state_dict(state["gan"])
        if state["match_pool"] is not None:
            self.pool = self._new_pool(task, latents or o.recipe_match == "energy")
            self.pool.load_state_dict(state["match_pool"])
