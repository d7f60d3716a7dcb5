"""Adversarial losses, gradient penalty and matching losses: tensors in, scalar out."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils import UsageError


def generator_loss(scores: Tensor, logits: Tensor | None, y: Tensor) -> Tensor:
    """-E[D(fake)] + CE(fake), or -E[D(fake, y)] if the discriminator has no class logits.

    scores (B,) and logits (B, K) are of generated images, y (B,) are the labels asked for. Wasserstein loss
    of Arjovsky et al. 2017 (arXiv:1701.07875) with the class head of Odena et al. 2017 (arXiv:1610.09585).
    With the hinge loss the generator's loss is the same, without the head.
    """
    return -scores.mean() if logits is None else -scores.mean() + F.cross_entropy(logits, y)


def discriminator_loss(
    real_scores: Tensor,
    real_logits: Tensor,
    y: Tensor,
    fake_scores: Tensor,
    fake_logits: Tensor,
    fake_y: Tensor,
) -> Tensor:
    """E[D(fake)] - E[D(real)] + CE(fake) + CE(real), without the gradient penalty; shapes as in
    generator_loss."""
    wasserstein = fake_scores.mean() - real_scores.mean()
    return wasserstein + F.cross_entropy(fake_logits, fake_y) + F.cross_entropy(real_logits, y)


def hinge_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """E[relu(1 - D(real))] + E[relu(1 + D(fake))] of scores (B,): the discriminator's hinge loss.

    Lim & Ye 2017 (arXiv:1705.02894); Miyato et al. 2018 (arXiv:1802.05957), Eq. 16.
    """
    return F.relu(1 - real_scores).mean() + F.relu(1 + fake_scores).mean()


def gradient_penalty(discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """E[(||grad_x D(x)||_2 - 1)^2] on random interpolates x of real and fake images.

    Gulrajani et al. 2017 (arXiv:1704.00028), Eq. 3, without its weight lambda.
    real, fake: (B, C, H, W) in [-1, 1], detached. Call it in float32.
    """
    eps = torch.rand(len(real), 1, 1, 1, device=real.device)
    x = (eps * real + (1 - eps) * fake).requires_grad_(True)
    scores, _ = discriminator(x)  # (B,)
    (grad,) = torch.autograd.grad(scores.sum(), x, create_graph=True)  # (B, C, H, W)
    return (grad.flatten(1).norm(dim=1) - 1).square().mean()


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Sum of absolute differences."""
    return (a - b).abs().sum()


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Sum of squared differences (the field's "mse" is not averaged)."""
    return (a - b).square().sum()


def l1_mean(a: Tensor, b: Tensor) -> Tensor:
    """Absolute differences averaged over all but the first dimension, then summed."""
    return (a - b).abs().flatten(1).mean(1).sum() if a.dim() > 1 else l1(a, b)


def cos(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine similarity of each row (first dimension, the rest flattened), summed; a vector is one
    row."""
    a, b = (a.flatten(1), b.flatten(1)) if a.dim() > 1 else (a[None], b[None])
    return (1 - F.cosine_similarity(a, b, dim=1, eps=1e-6)).sum()


METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": l1,
    "mse": mse,
    "l1_mean": l1_mean,
    "cos": cos,
}


def get_metric(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The distance called `name`. Raises UsageError if there is none."""
    if name not in METRICS:
        raise UsageError(f"--metric {name}: unknown, expected one of {', '.join(METRICS)}")
    return METRICS[name]


def match_logits(real: Tensor, fake: Tensor, metric: str | None = None) -> Tensor:
    """mean((log_softmax(real) - log_softmax(fake))^2) over logits (B, K); with `metric`, that distance
    between the log-softmaxes."""
    real, fake = F.log_softmax(real, dim=1), F.log_softmax(fake, dim=1)
    return F.mse_loss(fake, real) if metric is None else get_metric(metric)(fake, real)


def match_features(real: Sequence[Tensor], fake: Sequence[Tensor], metric: str | None = None) -> Tensor:
    """Sum over layers of the distance (default l1) between the batch means of real and fake features (B,
    ...)."""
    distance = get_metric(metric or "l1")
    return torch.stack(
        [distance(f.float().mean(0), r.float().mean(0)) for r, f in zip(real, fake, strict=True)]
    ).sum()


def match_distributions(real: Sequence[Tensor], fake: Sequence[Tensor], y: Tensor) -> Tensor:
    """Energy distance between the real and the generated images of each class, averaged over classes and
    layers.

    real, fake: features (B, D) of each layer, of images with the same labels y (B,). The distance of a class
    is
        2 E|f - r| - E|f - f'| - E|r - r'|
    over pairs of distinct images. A class of n_c images has the weight n_c (n_c - 1), its number of pairs.
    The unit is the mean distance between real images of all classes. The energy distance is a distance
    between characteristic functions with the weight of Szekely & Rizzo 2013 (doi:10.1016/j.jspi.2013.03.018);
    apart from the unit, this is an unbiased estimate of it. A distance between paired images, or between
    means of few images, pulls the images of a class to their mean. This one does not, since |f - f'| rewards
    generated images that differ.
    """
    same = (y[:, None] == y).float()  # (B, B)
    count = same.sum(1, keepdim=True)
    across, within = same * (count - 1) / count, same - torch.eye(len(y), device=y.device)
    num_pairs = within.sum().clamp(min=1)
    losses = []
    for r, f in zip(real, fake, strict=True):
        r, f = r.float(), f.float()
        among_real = _distances(r, r)
        between = 2 * (across * _distances(f, r)).sum() - (within * (_distances(f, f) + among_real)).sum()
        losses.append(between / num_pairs / among_real.mean().clamp(min=1e-6))
    return torch.stack(losses).mean()


def energy_distance(real: Tensor, fake: Tensor) -> Tensor:
    """Energy distance between the real and the generated images of each class, averaged over classes.

    real (C, m, D), fake (C, n, D): features of m and n images of each of C classes, m two or more. The
    distance of a class is
        2 E|f - r| - E|f - f'| - E|r - r'|
    over pairs of distinct images; the second term is 0 if n is 1 (Szekely & Rizzo 2013,
    doi:10.1016/j.jspi.2013.03.018). It is zero in expectation for two draws of one distribution, and
    otherwise positive in expectation. The unit is the mean distance between two real images of a class.
    """
    real, fake = real.float(), fake.float()
    among_real, among_fake = (
        _distances(x, x).sum((1, 2)) / max(1, x.shape[1] * (x.shape[1] - 1)) for x in (real, fake)
    )  # (C,)
    across = _distances(fake, real).mean((1, 2))
    return (2 * across - among_fake - among_real).mean() / among_real.mean().clamp(min=1e-6)


def mean_distance(real: Tensor, fake: Tensor) -> Tensor:
    """Squared distance between the mean features of each class, averaged over classes.

    Distribution matching of DM (Zhao & Bilen 2023, arXiv:2110.04181), Eq. 5. real (C, m, D), fake (C, n, D).
    The unit is the mean squared deviation of a real image from the mean of its class.
    """
    real, fake = real.float(), fake.float()
    mean = real.mean(1, keepdim=True)
    spread = (real - mean).square().sum(2).mean().clamp(min=1e-6)
    return (fake.mean(1) - mean.squeeze(1)).square().sum(1).mean() / spread


def match_standardized_logits(real: Tensor, fake: Tensor, temperature: float = 2.0) -> Tensor:
    """T^2 KL(softmax(z(real) / T) || softmax(z(fake) / T)) averaged over images; z: each image's logits with
    mean 0 and deviation 1.

    real, fake: logits (B, K) of images with the same labels. Logit standardisation and self-knowledge
    distillation of Li et al. 2025 (arXiv:2501.04202).
    """
    real, fake = (
        (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True).clamp(min=1e-6)
        for x in (real, fake)
    )
    return distillation_loss(fake, real, temperature)


def attention_distance(real: Tensor, fake: Tensor, power: int = 4) -> Tensor:
    """Squared distance between the mean attention maps of each class, averaged over classes.

    real (C, m, channels, h, w), fake (C, n, channels, h, w): features of one layer. The attention map of an
    image is the sum over its channels of |feature|^power, divided by its norm. Embedding matching of D2M
    (Sajedi et al. 2024, arXiv:2411.12841).
    """

    def mean_map(features: Tensor) -> Tensor:  # (C, h * w)
        maps = features.float().abs().pow(power).sum(2).flatten(2)
        return (maps / maps.norm(dim=2, keepdim=True).clamp(min=1e-6)).mean(1)

    return (mean_map(fake) - mean_map(real)).square().sum(1).mean()


def distillation_loss(logits: Tensor, target_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """T^2 KL(softmax(target / T) || softmax(logits / T)) of logits (B, K), averaged over images.

    Hinton et al. 2015 (arXiv:1503.02531); used for generative replay by van de Ven & Tolias 2018
    (arXiv:1809.10635).
    """
    target = F.log_softmax(target_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(
        F.log_softmax(logits / temperature, dim=1), target, reduction="batchmean", log_target=True
    )


def masked_cross_entropy(logits: Tensor, y: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy of logits (B, K) over the classes for which `classes` (K,) is true; it must be true for
    those in y (B,).

    ER-ACE's loss on the current images (Caccia et al. 2022, arXiv:2104.05025).
    """
    return F.cross_entropy(logits.masked_fill(~classes, -torch.inf), y)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (..., n, m) between rows (..., n, D) and (..., m, D), in float32's precision even
    if rows are equal."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def match_gradients(
    real: Sequence[Tensor],
    fake: Sequence[Tensor],
    metric: str | None = None,
    *,
    bias: bool = False,
    fc: bool = False,
) -> Tensor:
    """Sum over layers of the distance (default l1) between parameter gradients; gradient matching of DC
    (arXiv:2006.05929).

    real, fake: in the order of the network's parameters. bias: include parameters of one dimension (biases
    and norms). fc: include the last layer, the last parameter of two dimensions.
    """
    distance = get_metric(metric or "l1")
    last = max((i for i, r in enumerate(real) if r.dim() == 2), default=-1)
    kept = [
        (r, f)
        for i, (r, f) in enumerate(zip(real, fake, strict=True))
        if (r.dim() != 1 or bias) and (i != last or fc)
    ]
    if not kept:
        raise ValueError("no parameter is left to match")
    return torch.stack([distance(f, r) for r, f in kept]).sum()
