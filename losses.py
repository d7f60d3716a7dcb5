"""Adversarial losses, gradient penalty and matching losses: tensors in, scalar out.

A new matching loss is a function of two views and one line of LOSSES; pool_match.py then takes it as --match.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


@dataclass(frozen=True)
class View:
    """The real or the generated images of a matching batch, as a network sees them.

    labels: (B,). num_classes: number of classes of a class-balanced batch, whose images stand class by class,
    as many of each; 0 in a batch of the GAN, where labels come in any order. logits: (B, K). features: the
    outputs (B, C, h, w) of the network's stages. gradients: only for a loss that needs them, in place of
    logits and features: for each class the gradients of the cross-entropy, in the order of the parameters.
    """

    labels: Tensor
    num_classes: int = 0
    logits: Tensor | None = None
    features: Sequence[Tensor] = ()
    gradients: Sequence[Sequence[Tensor]] = ()

    @property
    def layers(self) -> list[Tensor]:
        """The features of each stage, averaged over 4 x 4 patches, and the logits: (B, D) each."""
        return [*map(pooled, self.features), self.logits]

    def by_class(self, layers: Sequence[Tensor]) -> list[Tensor]:
        """Layers (B, ...) of a class-balanced batch as (num_classes, B / num_classes, ...)."""
        return [layer.unflatten(0, (self.num_classes, -1)) for layer in layers]


def pooled(features: Tensor) -> Tensor:
    """Features (B, C, h, w) averaged over 4 x 4 patches, (B, D)."""
    return F.adaptive_avg_pool2d(features, min(4, features.shape[-1])).flatten(1)


def per_layer(
    distance: Callable[[Tensor, Tensor], Tensor], real: Sequence[Tensor], fake: Sequence[Tensor]
) -> Tensor:
    """distance(real, fake) of each layer: (layers,)."""
    return torch.stack([distance(r, f) for r, f in zip(real, fake, strict=True)])


def match_logits(real: View, fake: View, metric: str | None = None) -> Tensor:
    """mean((log_softmax(real) - log_softmax(fake))^2) over logits (B, K); with `metric`, that distance
    between the log-softmaxes."""
    distance = METRICS[metric] if metric else F.mse_loss
    return distance(F.log_softmax(fake.logits, dim=1), F.log_softmax(real.logits, dim=1))


def match_features(real: View, fake: View, metric: str | None = None) -> Tensor:
    """Sum over layers of the distance (default l1) between the batch means of real and fake features."""
    distance = METRICS[metric or "l1"]
    return per_layer(
        lambda r, f: distance(f.float().mean(0), r.float().mean(0)), real.features, fake.features
    ).sum()


def match_gradients(
    real: View, fake: View, metric: str | None = None, bias: bool = False, fc: bool = False
) -> Tensor:
    """Sum over layers of the distance (default l1) between parameter gradients, averaged over classes.

    Gradient matching of DC (arXiv:2006.05929). bias: include parameters of one dimension (biases and norms).
    fc: include the last layer, the last parameter of two dimensions.
    """
    distance = METRICS[metric or "l1"]
    losses = []
    for r, f in zip(real.gradients, fake.gradients, strict=True):
        last = max((i for i, gradient in enumerate(r) if gradient.dim() == 2), default=-1)
        kept = [i for i, gradient in enumerate(r) if (gradient.dim() != 1 or bias) and (i != last or fc)]
        losses.append(torch.stack([distance(f[i], r[i]) for i in kept]).sum())
    return torch.stack(losses).mean()


def match_distributions(real: View, fake: View) -> Tensor:
    """Energy distance of each class, averaged over classes and layers.

    A distance between paired images, or between means of few images, pulls the images of a class to their
    mean. This one does not, since |f - f'| rewards generated images that differ.
    """
    if real.num_classes:
        return per_layer(energy_distance, real.by_class(real.layers), fake.by_class(fake.layers)).mean()
    return per_layer(partial(energy_distance, y=real.labels), real.layers, fake.layers).mean()


def energy_distance(real: Tensor, fake: Tensor, y: Tensor | None = None) -> Tensor:
    """Energy distance between the real and the generated images of each class, averaged over classes.

    real (C, m, D), fake (C, n, D): features of m and n images of each of C classes, m two or more. The
    distance of a class is
        2 E|f - r| - E|f - f'| - E|r - r'|
    over pairs of distinct images; the second term is 0 if n is 1 (Szekely & Rizzo 2013,
    doi:10.1016/j.jspi.2013.03.018). It is zero in expectation for two draws of one distribution, and
    otherwise positive in expectation. The unit is the mean distance between two real images of a class.

    With y (B,), real and fake are features (B, D) of images with these labels. A class of n_c images then
    has the weight n_c (n_c - 1), its number of pairs, and the unit is the mean distance between real images
    of all classes.
    """
    real, fake = real.float(), fake.float()
    among_real = _distances(real, real)
    among_fake = _distances(fake, fake)
    across = _distances(fake, real)
    if y is None:
        across = across.mean((1, 2))  # (C,)
        among_fake, among_real = (
            x.sum((1, 2)) / max(1, x.shape[1] * (x.shape[1] - 1)) for x in (among_fake, among_real)
        )
        unit = among_real.mean()
    else:
        unit = among_real.mean()
        same = (y[:, None] == y).float()  # (B, B)
        count = same.sum(1)
        num_pairs = (same.sum() - len(y)).clamp(min=1)
        across = (across * same * (count - 1) / count).sum() / num_pairs
        among_fake = (among_fake * same).sum() / num_pairs
        among_real = (among_real * same).sum() / num_pairs
    return (2 * across - among_fake - among_real).mean() / unit.clamp(min=1e-6)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (..., n, m) between rows (..., n, D) and (..., m, D), in float32's precision even
    if rows are equal."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def match_means(real: View, fake: View, layers: slice = slice(None)) -> Tensor:
    """mean_distance, averaged over `layers`: those of View.layers."""
    sides = (view.by_class(view.layers[layers]) for view in (real, fake))
    return per_layer(mean_distance, *sides).mean()


def mean_distance(real: Tensor, fake: Tensor) -> Tensor:
    """Squared distance between the mean features of each class, averaged over classes.

    Distribution matching of DM (Zhao & Bilen 2023, arXiv:2110.04181), Eq. 5. real (C, m, D), fake (C, n, D).
    The unit is the mean squared deviation of a real image from the mean of its class.
    """
    real, fake = real.float(), fake.float()
    mean = real.mean(1, keepdim=True)
    spread = (real - mean).square().sum(2).mean().clamp(min=1e-6)
    return (fake.mean(1) - mean.squeeze(1)).square().sum(1).mean() / spread


def match_standardized_logits(real: View, fake: View, temperature: float = 2.0) -> Tensor:
    """T^2 KL(softmax(z(real) / T) || softmax(z(fake) / T)) averaged over images; z: each image's logits with
    mean 0 and deviation 1.

    Logit standardisation and self-knowledge distillation of Li et al. 2025 (arXiv:2501.04202).
    """
    target, logits = (
        (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True).clamp(min=1e-6)
        for x in (real.logits, fake.logits)
    )
    return distillation_loss(logits, target, temperature)


def match_attention(real: View, fake: View) -> Tensor:
    """Sum over layers of attention_distance, and the distillation loss of the logits; D2M (Sajedi et al.
    2024, arXiv:2411.12841)."""
    maps = per_layer(attention_distance, real.by_class(real.features), fake.by_class(fake.features))
    return maps.sum() + distillation_loss(fake.logits, real.logits)


def attention_distance(real: Tensor, fake: Tensor, power: int = 4) -> Tensor:
    """Squared distance between the mean attention maps of each class, averaged over classes.

    real (C, m, channels, h, w), fake (C, n, channels, h, w): features of one layer. The attention map of an
    image is the sum over its channels of |feature|^power, divided by its norm. Embedding matching of D2M.
    """

    def mean_map(features: Tensor) -> Tensor:  # (C, h * w)
        maps = features.float().abs().pow(power).sum(2).flatten(2)
        return (maps / maps.norm(dim=2, keepdim=True).clamp(min=1e-6)).mean(1)

    return (mean_map(fake) - mean_map(real)).square().sum(1).mean()


@dataclass(frozen=True)
class Loss:
    """A matching loss: weight * distance(real, fake) of two views.

    weight: default of --match-weight. needs: some of "classes", class-balanced batches (--match-batch);
    "trained", trained networks, so that --condense-match, whose networks are untrained, does not offer it;
    "gradients", View.gradients. options: flags of pool_match.py that are handed on to `distance`.
    """

    distance: Callable[..., Tensor]
    weight: float = 1.0
    needs: Collection[str] = ()
    options: tuple[str, ...] = ()


# By the name in --match. The weights of logit, feat and grad are those of arXiv:2303.04707 and its code.
LOSSES: dict[str, Loss] = {
    "logit": Loss(match_logits, 0.01, {"trained"}, ("metric",)),
    "feat": Loss(match_features, 0.001, {"trained"}, ("metric",)),
    "grad": Loss(match_gradients, 0.001, {"gradients"}, ("metric", "bias", "fc")),
    "dist": Loss(match_distributions),
    "mean": Loss(match_means, 1.0, {"classes", "trained"}),
    "mean-last": Loss(partial(match_means, layers=slice(-2, -1)), 1.0, {"classes"}),  # DM's
    "standardized": Loss(match_standardized_logits, 1.0, {"trained"}),
    "attention": Loss(match_attention, 1.0, {"classes", "trained"}),
}


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
