"""The losses of continual learning against values worked out by hand, on a network whose logits are its
inputs."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from augment import Augmentation
from data import DATASETS
from engine.runtime import Runtime
from losses import distillation_loss, masked_cross_entropy
from replay.learner import Batch, Ensemble, Learner, TaskInfo, joined
from replay.methods import METHODS

CPU = torch.device("cpu")
FLAGS = SimpleNamespace(alpha=0.2, beta=0.3, consistency=0.4, distill_weight=0.25)
TASK = TaskInfo(FLAGS, new_share=0.6, unseen=torch.tensor([False, False, True]))


class Echo:
    """Stands for a learner: the images are the logits."""

    number = 1
    runtime = Runtime(CPU)

    def __init__(self):
        self.averages = [lambda x, augment: augment(x) + 1, lambda x, augment: augment(x) * 2]
        self.previous = lambda x, augment: augment(x) * 3

    def __call__(self, batch, model=lambda x, augment: augment(x)):
        return model(batch.images, batch.augment)


NONE = Augmentation()


def shift(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    return x + by


def batch(logits, y, stored=None, augment=NONE):
    return Batch(
        torch.tensor(logits), torch.tensor(y), stored if stored is None else torch.tensor(stored), augment
    )


CURRENT = batch([[2.0, 0.0, 1.0]], [0])
REPLAY = batch(
    [[0.0, 1.0, 0.0], [1.0, 0.0, 3.0]], [1, 0], [[[9.0] * 3, [0.0, 3.0, 0.0]], [[9.0] * 3, [1.0, 1.0, 1.0]]]
)
SECOND = batch([[0.0, 0.0, 0.0]], [2], [[[0.0] * 3, [0.0] * 3]])


def ce(logits, y):
    return math.log(sum(math.exp(x) for x in logits)) - logits[y]


def loss(name, current, replays):
    value, logits = METHODS[name].loss(Echo(), current, replays, TASK)
    assert torch.equal(logits, current.augment(current.images))
    return value.item()


def test_er_is_one_mean_over_both_batches():
    expected = (ce([2, 0, 1], 0) + ce([0, 1, 0], 1) + ce([1, 0, 3], 0)) / 3
    assert loss("er", CURRENT, [REPLAY]) == pytest.approx(expected)
    assert loss("er", CURRENT, []) == pytest.approx(ce([2, 0, 1], 0))


def test_der_plus_plus_weighs_stored_logits_and_a_second_draw():
    squares = (0 + (1 - 3) ** 2 + 0 + 0 + 1 + 4) / 6  # to the logits of network number 1
    expected = ce([2, 0, 1], 0) + 0.2 * squares + 0.3 * math.log(3)
    assert loss("der++", CURRENT, [REPLAY, SECOND]) == pytest.approx(expected)
    assert loss("der++", CURRENT, []) == pytest.approx(ce([2, 0, 1], 0))


def test_er_ace_lets_the_current_batch_compete_with_itself_and_the_unseen():
    among_own = ce([2, 1], 0)  # class 0, which is there, and 2, which is unseen; 1 is of an earlier task
    replay = (ce([0, 1, 0], 1) + ce([1, 0, 3], 0)) / 2
    assert loss("er-ace", CURRENT, [REPLAY]) == pytest.approx(among_own + replay)


def test_cls_er_follows_the_copy_that_is_surer_of_the_label():
    # Softmax ignores the plastic copy's + 1; twice the logits (stable) are surer of image 0's label 1, and
    # not of image 1's 0.
    squares = ((0 - 0) ** 2 + (1 - 2) ** 2 + 0 + 3 * 1.0) / 6
    assert loss("cls-er", CURRENT, [REPLAY]) == pytest.approx(loss("er", CURRENT, [REPLAY]) + 0.4 * squares)


def test_generative_replay_weighs_by_classes_and_distils():
    def kl(target, found):
        p, q = F.softmax(torch.tensor(target) / 2, 0), F.softmax(torch.tensor(found) / 2, 0)
        return 4 * (p * (p / q).log()).sum().item()

    replay = (ce([0, 1, 0], 1) + ce([1, 0, 3], 0)) / 2
    distilled = (kl([0.0, 3.0, 0.0], [0.0, 1.0, 0.0]) + kl([3.0, 0.0, 9.0], [1.0, 0.0, 3.0])) / 2
    expected = 0.6 * ce([2, 0, 1], 0) + 0.4 * (0.75 * replay + 0.25 * distilled)
    for name in ("dim", "dgr"):
        assert loss(name, CURRENT, [REPLAY]) == pytest.approx(expected, rel=1e-5)
    assert loss("dim", CURRENT, []) == pytest.approx(ce([2, 0, 1], 0))


def test_distillation_and_masked_cross_entropy():
    logits = torch.tensor([[1.0, 2.0, 0.5]])
    assert distillation_loss(logits, logits) == pytest.approx(0, abs=1e-6)
    assert masked_cross_entropy(
        logits, torch.tensor([1]), torch.tensor([True, True, False])
    ) == pytest.approx(ce([1, 2], 1))


def test_each_of_joined_batches_keeps_its_augmentation():
    first, second = (Augmentation((shift,), ((torch.tensor(by),),)) for by in ([[1.0]], [[5.0], [7.0]]))
    both = joined([batch([[1.0]], [0], augment=first), batch([[1.0], [2.0]], [1, 2], augment=second)])
    assert both.augment(both.images).flatten().tolist() == [2, 6, 9]
    assert both.y.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="different operations"):
        joined([batch([[1.0]], [0], augment=first), batch([[1.0]], [1])])


def learner(decay: float | None = None) -> Learner:
    return Learner(0, "convnet_w32", DATASETS["digits"].info, 0.1, decay, 0, Runtime(CPU))


def test_averages_follow_the_network_from_below():
    one = learner(0.999)
    with torch.no_grad():
        one.model.network.classifier.bias.fill_(1.0)
        before = [average.network.classifier.bias[0].item() for average in one.averages]
        moved = [0, 0]
        for step in range(1, 2001):
            one.update_averages(10**6 + step)
    for start, average in zip(before, one.averages, strict=True):
        left = (1 - average.network.classifier.bias[0].item()) / (1 - start)
        moved[one.averages.index(average)] = (
            math.log(left) / math.log(0.999) / 2000
        )  # the share of steps that moved it
    assert moved == [pytest.approx(0.9, abs=0.05), pytest.approx(0.7, abs=0.05)]
    assert one.deployed is one.averages[1]


def test_averages_are_not_held_back_by_the_first_steps():
    one = learner(0.999)
    with torch.no_grad():
        for average in one.averages:
            average.network.classifier.bias.fill_(0.0)
        one.model.network.classifier.bias.fill_(1.0)
    for step in range(1, 9):
        one.update_averages(step)
    for average in (
        one.averages
    ):  # after t steps the first weights' share is 1 / (t + 1) where each moved it, not 0.999 ** t
        assert average.network.classifier.bias[0] > 0.6


def test_a_restarted_network_is_fresh_and_stays_in_place():
    one, other = learner(), learner()
    weight = one.model.network.classifier.weight
    first = weight.clone()
    one.restart(3), other.restart(3)
    assert one.model.network.classifier.weight is weight
    assert not torch.equal(weight, first)
    assert torch.equal(weight, other.model.network.classifier.weight)


def test_the_ensemble_averages_probabilities():
    logits = torch.tensor([[[2.0, 0.0]], [[0.0, 3.0]]])
    models = [torch.nn.Identity(), torch.nn.Identity()]
    for model, values in zip(models, logits, strict=True):
        model.forward = lambda images, values=values: values
    expected = (logits[0].softmax(1) + logits[1].softmax(1)) / 2
    assert torch.allclose(Ensemble(models)(torch.zeros(1)).exp(), expected)
