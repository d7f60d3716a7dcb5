"""Optimisers whose state a CUDA graph can read on the device, and the moving average of weights."""

import torch
from torch import Tensor, nn


def fused(parameters: list[nn.Parameter]) -> dict[str, bool]:
    """Optimiser arguments that make a step one fused kernel if the parameters are on CUDA."""
    return {"fused": True} if parameters[0].is_cuda else {}


def make_sgd(
    parameters: list[nn.Parameter], lr: float, momentum: float = 0.9, weight_decay: float = 5e-4
) -> torch.optim.SGD:
    """SGD, by default with the settings of stage 3.

    On CUDA the learning rate is on the device, where a CUDA graph reads it.
    """
    rate = torch.tensor(lr, device=parameters[0].device) if parameters[0].is_cuda else lr
    return torch.optim.SGD(
        parameters, lr=rate, momentum=momentum, weight_decay=weight_decay, **fused(parameters)
    )


ADAM_BETAS = (0.0, 0.9)  # of GANs with a gradient penalty (arXiv:1704.00028)


def make_adam(
    parameters: list[nn.Parameter], lr: float, betas: tuple[float, float] = ADAM_BETAS
) -> torch.optim.Adam:
    """Adam. On CUDA the learning rate and step count are on the device, where a CUDA graph reads them."""
    if not parameters[0].is_cuda:
        return torch.optim.Adam(parameters, lr=lr, betas=betas)
    rate = torch.tensor(lr, device=parameters[0].device)
    return torch.optim.Adam(parameters, lr=rate, betas=betas, fused=True, capturable=True)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate, in place if it is a tensor on the device."""
    for group in optimizer.param_groups:
        if torch.is_tensor(group["lr"]):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Load a state dict, but keep this optimiser's settings that depend on the device.

    These are lr, foreach, fused and capturable: the checkpoint may come from another device.
    """
    group = optimizer.param_groups[0]
    own = {name: group.get(name) for name in ("foreach", "fused", "capturable", "lr")}
    groups = [
        saved | {name: value for name, value in own.items() if name in saved}
        for saved in state["param_groups"]
    ]
    optimizer.load_state_dict(state | {"param_groups": groups})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter).copy_(value)  # the parameter's memory layout


@torch.no_grad()
def move(average: nn.Module, module: nn.Module, share: float | Tensor) -> None:
    """Move the weights of `average` by a share of the way to those of `module`; buffers are copied."""
    for target, source in zip(average.parameters(), module.parameters(), strict=True):
        target.lerp_(source, share)
    for target, source in zip(average.buffers(), module.buffers(), strict=True):
        target.copy_(source)


@torch.no_grad()
def follow(average: nn.Module, module: nn.Module, steps: Tensor, ema: float) -> None:
    """Update the exponential moving average of a module's weights by one step; buffers are copied.

    steps (): number of earlier updates, increased by one. Update t uses the decay
    min(ema, (1 + t) / (10 + t)), so that the weights of the first steps are soon forgotten.
    """
    share = 1 - ((1 + steps) / (10 + steps)).clamp(max=ema)
    steps += 1
    move(average, module, share)
