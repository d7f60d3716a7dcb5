import math
import statistics

import pytest
import torch
from torch import Tensor, nn

import losses
from losses import View


def test_adversarial_losses_by_hand():
    scores, logits, y = torch.tensor([1.0, 3.0]), torch.zeros(2, 4), torch.tensor([0, 3])
    assert losses.generator_loss(scores, logits, y).item() == pytest.approx(-2 + math.log(4))
    d = losses.discriminator_loss(torch.tensor([5.0, 7.0]), logits, y, scores, logits, y)
    assert d.item() == pytest.approx(2 - 6 + 2 * math.log(4))


class Linear(nn.Module):
    """D(x) = w . x, whose gradient has norm |w| everywhere."""

    def __init__(self, weight: float, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), weight))

    def forward(self, x):
        return (x.flatten(1) * self.weight).sum(1), None


def test_gradient_penalty_by_hand():
    critic = Linear(0.5, 16)  # |w| = 2
    penalty = losses.gradient_penalty(critic, torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4))
    assert penalty.item() == pytest.approx((2 - 1) ** 2)
    penalty.backward()
    assert torch.allclose(critic.weight.grad, torch.full((16,), 2 * (2 - 1) * 0.5 / 2))


def test_gradient_penalty_interpolates_between_real_and_fake():
    seen = []

    class Spy(Linear):
        def forward(self, x):
            seen.append(x.detach())
            return super().forward(x)

    losses.gradient_penalty(Spy(0.5, 16), torch.zeros(50, 1, 4, 4), torch.ones(50, 1, 4, 4))
    share = seen[0][:, 0, 0, 0]
    assert torch.equal(seen[0], share.view(-1, 1, 1, 1).expand(50, 1, 4, 4))  # one eps an image
    assert 0 <= share.min() < 0.2
    assert 0.8 < share.max() <= 1


def view(**parts) -> View:
    return View(torch.empty(0, dtype=torch.long), **parts)


A, B = torch.tensor([[1.0, 2.0], [0.0, 4.0]]), torch.tensor([[1.0, 0.0], [3.0, 0.0]])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("l1", 9.0), ("mse", 29.0), ("l1_mean", 1 + 3.5), ("cos", 1 - 1 / math.sqrt(5) + 1)],
)
def test_distances_by_hand(name, expected):
    assert losses.METRICS[name](A, B).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", losses.METRICS)
def test_distances_are_zero_at_equality_and_take_any_shape(name):
    for shape in [(5,), (4, 3), (2, 3, 4, 4)]:
        x = torch.randn(shape)
        assert losses.METRICS[name](x, x).item() == pytest.approx(0, abs=1e-5)


def test_logit_matching_by_hand():
    real, fake = (
        torch.tensor([[0.0, 0.0]]),
        torch.tensor([[math.log(3.0), 0.0]]),
    )  # probabilities 1/2, 1/2 and 3/4, 1/4
    gap = torch.tensor([math.log(0.75 / 0.5), math.log(0.25 / 0.5)])
    real, fake, shifted = (view(logits=logits) for logits in (real, fake, real + 5))
    assert losses.match_logits(real, fake).item() == pytest.approx(gap.square().mean().item(), rel=1e-5)
    assert losses.match_logits(real, fake, "l1").item() == pytest.approx(gap.abs().sum().item(), rel=1e-5)
    assert losses.match_logits(real, shifted).item() == pytest.approx(
        0, abs=1e-10
    )  # softmax forgets a constant


def test_feature_matching_compares_batch_means():
    real, fake = [torch.tensor([[0.0, 2.0], [2.0, 2.0]])], [torch.tensor([[1.0, 5.0]])]
    assert losses.match_features(view(features=real), view(features=fake)).item() == pytest.approx(3.0)
    twice = view(features=real * 2), view(features=fake * 2)
    assert losses.match_features(*twice, "mse").item() == pytest.approx(18.0)


def test_gradient_matching_leaves_out_what_is_not_asked_for():
    real = [torch.zeros(2, 2, 3, 3), torch.zeros(2), torch.zeros(4, 2)]
    fake = [torch.ones(2, 2, 3, 3), torch.full((2,), 10.0), torch.full((4, 2), 100.0)]

    def match(real, fake, **options):
        return losses.match_gradients(view(gradients=[real]), view(gradients=[fake]), **options)

    assert match(real, fake) == 36
    assert match(real, fake, bias=True) == 36 + 20
    assert match(real, fake, fc=True) == 36 + 800
    deeper = ([*side[:2], torch.full((4, 2), value), *side[2:]] for side, value in ((real, 1.0), (fake, 3.0)))
    assert match(*deeper) == 36 + 4 * 2 * 2  # a linear layer that is not the last one
    of_classes = view(gradients=[real, real]), view(gradients=[fake, real])
    assert losses.match_gradients(*of_classes) == 36 / 2


def test_hinge_loss():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 1.0])
    assert losses.hinge_loss(real, fake).item() == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3)


def test_the_generator_s_loss_without_class_logits():
    assert losses.generator_loss(torch.tensor([1.0, 3.0]), None, torch.tensor([0, 1])).item() == -2


def test_energy_distance_by_hand():
    y = torch.tensor([0, 0, 1, 1, 2])  # class 2 has no pairs, and no say
    real = torch.tensor([[0.0], [2.0], [10.0], [11.0], [50.0]])
    fake = torch.tensor([[1.0], [1.0], [10.0], [14.0], [-50.0]])
    # class 0: 2 * mean(1, 1, 1, 1) - 0 - 2 = 0; class 1: 2 * mean(0, 1, 4, 3) - 4 - 1 = -1; both of two pairs
    expected = (0 - 1) / 2 / (real - real.T).abs().mean().item()
    assert losses.energy_distance(real, fake, y).item() == pytest.approx(expected)
    assert losses.energy_distance(2 * real, 2 * fake, y).item() == pytest.approx(expected)
    sides = (View(y, logits=2 * side, features=[side[:, :, None, None]]) for side in (real, fake))
    assert losses.match_distributions(*sides).item() == pytest.approx(expected)


def test_energy_distance_does_not_pull_a_class_to_its_mean():
    """Fakes of the right distribution have no push towards their mean, as paired distances give; collapsed
    ones are pushed apart."""
    torch.manual_seed(0)
    y = torch.arange(10).repeat(40)

    def inward(fake: Tensor, loss) -> float:
        fake = fake.clone().requires_grad_(True)
        real = torch.randn(400, 8)
        (grad,) = torch.autograd.grad(loss(real, fake), fake)
        return (grad * (fake - fake.mean(0))).sum().item() / grad.norm().item() / fake.norm().item()

    def energy(real, fake):
        return losses.energy_distance(real, fake, y)

    assert inward(torch.randn(400, 8), lambda real, fake: (real - fake).square().mean()) > 0.5
    assert abs(inward(torch.randn(400, 8), energy)) < 0.1
    assert inward(0.1 * torch.randn(400, 8), energy) < -0.3


def test_energy_distance_is_unbiased_and_its_gradient_finite_for_equal_images():
    torch.manual_seed(0)
    y = torch.arange(5).repeat(4)
    values = [losses.energy_distance(torch.randn(20, 4), torch.randn(20, 4), y).item() for _ in range(400)]
    assert abs(statistics.mean(values)) < 4 * statistics.stdev(values) / 20
    fake = torch.zeros(20, 4, requires_grad=True)
    losses.energy_distance(torch.zeros(20, 4), fake, y).backward()
    assert torch.isfinite(fake.grad).all()


def test_class_wise_energy_distance_by_hand():
    real = torch.tensor([[[0.0], [2.0]], [[10.0], [11.0]]])  # two classes of two images, one feature
    fake = torch.tensor([[[1.0], [1.0]], [[10.0], [14.0]]])
    # class 0: 2 * mean(1, 1, 1, 1) - 0 - 2 = 0; class 1: 2 * mean(0, 1, 4, 3) - 4 - 1 = -1; unit: mean(2, 1)
    assert losses.energy_distance(real, fake).item() == pytest.approx((0 - 1) / 2 / 1.5)
    assert losses.energy_distance(3 * real, 3 * fake).item() == pytest.approx(-1 / 3)
    three = torch.tensor([[[0.0], [3.0], [0.0]], [[0.0], [0.0], [0.0]]])  # unequal numbers of images
    # class 0: 2 * mean(0, 2, 3, 1, 0, 2) - mean(3, 0, 3) - 2; class 1: 2 * 10.5 - 0 - 1
    assert losses.energy_distance(real, three).item() == pytest.approx(((2 * 8 / 6 - 2 - 2) + 20) / 2 / 1.5)


def test_energy_distance_of_equal_classes_does_not_depend_on_how_they_are_given():
    """Class by class, or by labels in any order, where the unit alone is another one."""
    torch.manual_seed(0)
    y = torch.arange(4).repeat_interleave(5)
    real = torch.randn(20, 6)
    fake = torch.randn(20, 6) + y[:, None]
    by_class = losses.energy_distance(real.view(4, 5, 6), fake.view(4, 5, 6))
    unit = torch.cdist(real.view(4, 5, 6), real.view(4, 5, 6)).sum((1, 2)).mean() / 20
    order = torch.randperm(20)
    by_label = losses.energy_distance(real[order], fake[order], y[order])
    assert (by_label * torch.cdist(real, real).mean()).item() == pytest.approx(
        (by_class * unit).item(), rel=1e-4
    )


def test_class_wise_energy_distance_agrees_with_double_precision():
    torch.manual_seed(0)
    real, fake = (
        torch.randn(3, 6, 50) + 100,
        torch.randn(3, 5, 50) + 100.1,
    )  # a small difference of large numbers

    def reference(c: int) -> float:
        r, f = real[c].double(), fake[c].double()
        across = sum((a - b).norm() for a in f for b in r) / 30
        return (
            2 * across
            - sum((a - b).norm() for a in f for b in f) / 20
            - sum((a - b).norm() for a in r for b in r) / 30
        )

    unit = sum((a - b).norm() for c in range(3) for a in real[c].double() for b in real[c].double()) / 90
    expected = sum(reference(c) for c in range(3)) / 3 / unit
    assert losses.energy_distance(real, fake).item() == pytest.approx(expected.item(), rel=1e-4)


def test_class_wise_energy_distance_is_zero_in_expectation_for_two_draws_of_one_set():
    torch.manual_seed(0)
    values = torch.stack(
        [losses.energy_distance(torch.randn(4, 5, 3), torch.randn(4, 4, 3)) for _ in range(1000)]
    )
    error = values.std() / math.sqrt(1000)
    assert abs(values.mean()) < 4 * error
    narrow = torch.stack(
        [losses.energy_distance(torch.randn(4, 5, 3), 0.5 * torch.randn(4, 4, 3)) for _ in range(1000)]
    )
    assert narrow.mean() > 10 * error
    fake = torch.zeros(2, 3, 4, requires_grad=True)
    losses.energy_distance(torch.zeros(2, 3, 4), fake).backward()
    assert torch.isfinite(fake.grad).all()


def test_mean_distance_by_hand():
    real, fake = (
        torch.tensor([[[0.0, 0.0], [2.0, 0.0]]]),
        torch.tensor([[[1.0, 3.0], [1.0, 3.0], [4.0, 0.0]]]),
    )
    # means (1, 0) and (2, 2); real images lie 1 from their mean, squared
    assert losses.mean_distance(real, fake).item() == pytest.approx(1 + 4)
    assert losses.mean_distance(10 * real, 10 * fake).item() == pytest.approx(5)


def test_standardized_logits_by_hand():
    real, fake = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 6.0]])  # standardised: (1, -1) and (-1, 1)
    p = 1 / (1 + math.exp(-2 / 2))  # at temperature 2
    expected = 4 * (p * math.log(p / (1 - p)) + (1 - p) * math.log((1 - p) / p))
    real, fake, stretched = (view(logits=logits) for logits in (real, fake, 7 * real + 3))
    assert losses.match_standardized_logits(real, fake).item() == pytest.approx(expected, rel=1e-5)
    assert losses.match_standardized_logits(real, stretched).item() == pytest.approx(
        0, abs=1e-6
    )  # scale and shift are forgotten


def test_attention_distance_by_hand():
    real = torch.tensor(
        [[[[[1.0, 0.0]], [[1.0, 0.0]]]]]
    )  # one class, one image, two channels of 1 x 2: map (2, 0) -> (1, 0)
    fake = torch.tensor(
        [[[[[0.0, 1.0]], [[0.0, -1.0]]], [[[3.0, 0.0]], [[0.0, 0.0]]]]]
    )  # maps (0, 1) and (1, 0), mean (1/2, 1/2)
    assert losses.attention_distance(real, fake).item() == pytest.approx(0.5)
    assert losses.attention_distance(real, 5 * real).item() == pytest.approx(0)
