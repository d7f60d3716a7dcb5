"""The matching term of stage 2: what `--match` names, its default weight, and its value on a batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from augment import Augmentation
from engine.runtime import Runtime
from engine.tensors import frozen
from losses import match_distributions, match_features, match_gradients, match_logits
from models import Classifier

# Default weight of each matching term in the generator's loss, for --match-weight (arXiv:2303.04707 and its code; dist is ours).
MATCH_WEIGHTS = {"logit": 0.01, "feat": 0.001, "grad": 0.001, "dist": 1.0, "none": 0.0}


def matching_loss(
    match: str,
    pool_model: Classifier,
    real: Tensor,
    fake: Tensor,
    y: Tensor,
    augment: Augmentation | None,
    metric: str | None,
    bias: bool,
    fc: bool,
    runtime: Runtime,
) -> Tensor:
    """The distance between real and generated images (B, C, H, W) of the same labels y as `pool_model` sees them.

    The two pass the network separately, in the mode it is in, under one draw of the augmentation. Gradients reach `fake`.
    """
    if match == "grad":  # a gradient of a gradient, which cannot be compiled
        parameters = list(pool_model.parameters())
        real_grads = torch.autograd.grad(F.cross_entropy(pool_model(real, augment), y), parameters)
        fake_grads = torch.autograd.grad(F.cross_entropy(pool_model(fake, augment), y), parameters, create_graph=True)
        return match_gradients(real_grads, fake_grads, metric, bias=bias, fc=fc)
    forward = runtime.compiled(Classifier.logits_and_features)
    with torch.no_grad():
        real_logits, real_features = forward(pool_model, real, augment)
    with frozen(pool_model):
        fake_logits, fake_features = forward(pool_model, fake, augment)
    if match == "feat":
        return match_features(real_features, fake_features, metric)
    if match == "dist":
        layers = (
            [*(pooled(f) for f in features), logits] for features, logits in ((real_features, real_logits), (fake_features, fake_logits))
        )
        return match_distributions(*layers, y)
    return match_logits(real_logits, fake_logits, metric)


def pooled(features: Tensor) -> Tensor:
    """Features (B, C, h, w) averaged over 4 x 4 patches, (B, D)."""
    return F.adaptive_avg_pool2d(features, min(4, features.shape[-1])).flatten(1)
