"""The matching term: what it compares, on which batches, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F

from augment import draw_operations
from data import DATASETS, load_data
from engine.runtime import Runtime
from losses import LOSSES, View, match_gradients, mean_distance
from models import build_classifier
from models.matching import Matching
from utils import UsageError

CPU = Runtime(torch.device("cpu"))


def groups(num_classes: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Real digits (num_classes * n, 1, 28, 28), n of each class one after another, and their labels."""
    train = load_data("digits", "").train
    return train.batch(next(Matching(batch=n, classes=num_classes).batches(train, CPU.device, 0)).flatten())


@pytest.mark.parametrize("name", LOSSES)
def test_every_distance_takes_class_balanced_batches_and_pulls_generated_images_alone(name):
    torch.manual_seed(0)
    model = build_classifier("convnet_w32", DATASETS["digits"].info).train()
    real, y = groups(3, 4)
    fake = (torch.rand_like(real) * 2 - 1).requires_grad_(True)
    augment = draw_operations(("color", "crop"), 1, 28, CPU.device)
    matching = Matching(name, batch=4)
    loss = matching.loss(model, real, fake, y, augment, CPU, num_classes=3)
    loss.backward()
    assert loss > 0
    assert fake.grad.abs().sum() > 0
    if name != "grad":
        assert all(p.grad is None for p in model.parameters())
    doubled = Matching(name, 2 * LOSSES[name].weight, batch=4).loss(
        model, real, fake, y, augment, CPU, num_classes=3
    )
    assert doubled.item() == pytest.approx(2 * loss.item(), rel=1e-3)
    assert matching.loss(model, real, real.clone(), y, augment, CPU, num_classes=3) < 0.1 * loss


@pytest.mark.parametrize("name", ["dist", "mean", "mean-last", "attention", "grad"])
def test_images_of_other_classes_are_farther(name):
    torch.manual_seed(0)
    model = build_classifier("convnet_w32", DATASETS["digits"].info).train()
    real, y = groups(4, 16)
    train = load_data("digits", "").train
    others = torch.cat([train.images[train.labels == label][:16] for label in y[::16]]).float() / 127.5 - 1
    matching = Matching(name, batch=16)
    right = matching.loss(model, real, others, y, None, CPU, num_classes=4)
    permuted = matching.loss(model, real, others.roll(16, 0), y, None, CPU, num_classes=4)
    assert permuted > 1.5 * right


def test_features_of_a_class_are_compared_in_the_batch_of_the_class():
    """The order within a class does not matter, that of the classes does."""
    torch.manual_seed(0)
    model = build_classifier("convnet_w32", DATASETS["digits"].info).train()
    real, y = groups(2, 6)
    fake = real[torch.randperm(12)]
    shuffled = torch.cat([fake[:6].flip(0), fake[6:].roll(2, 0)])
    for name in ("dist", "mean", "mean-last", "attention"):
        one, other, swapped = (
            Matching(name, batch=6).loss(model, real, images, y, None, CPU, num_classes=2)
            for images in (fake, shuffled, torch.cat([fake[:3], fake[6:9], fake[3:6], fake[9:]]))
        )
        if name != "attention":  # whose logits are compared in pairs
            assert one.item() == pytest.approx(other.item(), rel=1e-3)
        assert one.item() != pytest.approx(swapped.item(), rel=1e-3)


@pytest.mark.parametrize(
    ("matching", "message"),
    [
        (
            Matching("dist", metric="l1"),
            "--metric l1: --match dist takes none, expected --match logit, feat, grad",
        ),
        (Matching("none", metric="l1"), "--metric l1: --match none takes none"),
        (Matching("mean"), "--match mean compares classes: expected --match-batch"),
        (Matching("mean-last"), "--match mean-last compares classes"),
        (Matching("attention"), "--match attention compares classes"),
        (Matching("dist", classes=2), "--match-classes 2 is of --match-batch, found 0"),
        (Matching("dist", batch=1), "--match-batch 1: expected two or more"),
    ],
)
def test_contradictions_are_refused(matching, message):
    with pytest.raises(UsageError, match=message):
        matching.check(1.0)


@pytest.mark.parametrize("matching", [Matching("none", batch=4), Matching("dist")])
def test_matching_alone_needs_a_distance_and_batches_of_its_own(matching):
    matching.check(0.1)
    with pytest.raises(UsageError, match="--gan-weight 0 is of matching alone"):
        matching.check(0.0)


def test_the_parts_of_a_class_may_differ_in_number():
    """Six real images of each of three classes beside two others: gradients with the right labels, and the
    last features alone."""
    torch.manual_seed(0)
    model = build_classifier("convnet_w32", DATASETS["digits"].info).train()
    real, y = groups(3, 6)
    fake = real.view(3, 6, 1, 28, 28)[:, :2].flip(3).flatten(0, 1)
    parts = []
    for label in range(3):
        sides = (real[6 * label :][:6], y[6 * label :][:6]), (fake[2 * label :][:2], y[6 * label :][:2])
        losses = [F.cross_entropy(model(images), labels) for images, labels in sides]
        parts.append(
            match_gradients(
                *(
                    View(y, gradients=[torch.autograd.grad(loss, list(model.parameters()))])
                    for loss in losses
                ),
                "cos",
                fc=True,
            )
        )
    found = Matching("grad", 1.0, metric="cos", fc=True, batch=6).loss(
        model, real, fake, y, None, CPU, num_classes=3
    )
    assert found.item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-4)
    last = [
        model.logits_and_features(images)[1][-1].flatten(1).unflatten(0, (3, -1)) for images in (real, fake)
    ]
    found = Matching("mean-last", 1.0, batch=6).loss(model, real, fake, y, None, CPU, num_classes=3)
    assert found.item() == pytest.approx(mean_distance(*last).item(), rel=1e-4)
