"""The training of classifiers, one or several side by side."""

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from augment import choose_operations, draw_cutmix, draw_operations
from engine.graphs import Losses
from engine.optim import follow, make_sgd, set_rate
from engine.progress import Progress
from engine.runtime import Runtime
from engine.seeds import RandomStreams
from engine.streams import Lanes, Stopwatch
from models import Classifier
from scoring.recipes import Recipe
from scoring.results import Cost
from utils import out_of_memory_hint


def train_steps(
    classifier: Classifier,
    epochs_of_images: Iterator[tuple[Tensor, Tensor]],
    recipe: Recipe,
    streams: RandomStreams,
    runtime: Runtime,
    after_epoch: Callable[[int, nn.Module, Cost], None] | None = None,
) -> Iterator[Cost]:
    """Train `classifier` in place for recipe.epochs epochs, each on the next epoch of images; yield once per
    step.

    A batch has at most recipe.batch_size images; the last partial batch of an epoch is used. Each step yields
    the cost so far, whose seconds_train is left to the caller. after_epoch(epochs done, network to test,
    cost) is called after each epoch; its time counts as seconds_test. With recipe.ema, the network to test is
    the moving average, and `classifier` ends with its weights. Raises ValueError if no step was taken.
    """
    parameters = list(classifier.parameters())
    optimizer = make_sgd(parameters, recipe.lr)
    average = copy.deepcopy(classifier).requires_grad_(False) if recipe.ema else None
    averaged_steps = torch.zeros((), device=parameters[0].device)

    def step(images: Tensor, y: Tensor, operations: tuple[str, ...], mix: bool) -> Losses:
        loss = classifier_loss(classifier, images, y, operations, mix, streams.device, runtime)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if average is not None:
            follow(average, classifier, averaged_steps, recipe.ema)
        return {}

    step = runtime.graphed(step, streams.device)
    cost = Cost()
    generating = Stopwatch(runtime.device)
    testing = Stopwatch(runtime.device)
    classifier.train()
    for epoch in range(recipe.epochs):
        set_rate(optimizer, recipe.rate(epoch))
        with generating, out_of_memory_hint("--ipc"):
            images, labels = next(epochs_of_images)
        order = torch.randperm(len(labels), device=labels.device, generator=streams.device)
        for index in order.split(recipe.batch_size):
            operations = choose_operations(recipe.dsa_strategy, recipe.dsa_composition, streams.host)
            mix = recipe.mix_p > 0 and float(torch.rand((), generator=streams.host)) < recipe.mix_p
            step(images[index], labels[index], operations=operations, mix=mix)
            cost.steps += 1
            cost.images_seen += len(index)
            yield cost
        if after_epoch is not None:
            with testing:
                after_epoch(epoch + 1, classifier if average is None else average, cost)
    if cost.steps == 0:
        raise ValueError("a classifier was trained for zero steps")
    if average is not None:
        classifier.load_state_dict(average.state_dict())
    cost.seconds_generate = generating.seconds()
    cost.seconds_test = testing.seconds()


def classifier_loss(
    classifier: Classifier,
    images: Tensor,
    y: Tensor,
    operations: tuple[str, ...],
    mix: bool,
    rng: torch.Generator,
    runtime: Runtime,
) -> Tensor:
    """Cross-entropy on an augmented batch (B, C, H, W) with labels y (B,), or soft labels y (B, K).

    Each image has its own random parameters of `operations`. mix: apply CutMix after them.
    """
    n, side, device = len(images), images.shape[-1], images.device
    augment = draw_operations(operations, n, side, device, rng)
    if not mix:
        with runtime.autocast():
            logits = runtime.call(classifier, images, augment)
        return F.cross_entropy(logits, y)
    cutmix, partner, share = draw_cutmix(n, side, device, rng)
    with runtime.autocast():
        logits = runtime.call(classifier, images, augment.then(cutmix))
    return share * F.cross_entropy(logits, y) + (1 - share) * F.cross_entropy(logits, y[partner])


def train_together(
    trainings: Sequence[Iterator[Cost]], total_steps: int, runtime: Runtime, title: str = ""
) -> list[Cost]:
    """Run several train_steps in turn, one step of each, so that the device can work on all of them at once.

    Each training draws its own random numbers, so that its result does not depend on the others. Returns the
    cost of each; its seconds add up to those of the group divided by the size of the group.
    """
    lanes = Lanes(len(trainings), runtime.device)
    costs: list[Cost] = []
    start = time.perf_counter()
    with Progress(total_steps, title=title, leave=False, hidden=not runtime.is_main) as progress:
        while True:
            costs, last = [], costs
            for i, training in enumerate(trainings):
                with lanes[i]:
                    costs += itertools.islice(training, 1)
            if not costs:
                break
            progress.update()
            progress.read()
    lanes.join()
    runtime.synchronize()
    seconds = (time.perf_counter() - start) / len(trainings)
    for cost in last:
        cost.seconds_generate /= lanes.overlap
        cost.seconds_test /= lanes.overlap
        cost.seconds_train = max(0.0, seconds - cost.seconds_generate - cost.seconds_test)
    return last
