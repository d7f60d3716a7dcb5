"""torch.compile of forward passes, shared by modules and batch sizes."""

import functools
import itertools
import logging
import warnings
from collections.abc import Callable
from dataclasses import is_dataclass

import torch
from torch import nn

from utils import FailedRun, tell

SAFE_ON_CPU = (
    2,
    9,
    # earlier torch compiles some means over channels and pixels to code that writes past its buffer (seen: 2.6,
    # 2.8)
)


@functools.lru_cache
def finds_compiler(device: torch.device) -> bool:
    """Whether torch.compile works on `device`. If it does not, print a warning line with the reason."""
    if device.type == "cpu" and tuple(map(int, torch.__version__.split(".")[:2])) < SAFE_ON_CPU:
        needed = ".".join(map(str, SAFE_ON_CPU))
        tell(
            f"warning: --compile: torch {torch.__version__} compiles wrongly on a CPU, expected {needed} or "
            "later, so steps run eagerly"
        )
        return False
    for name in ("torch.utils.cpp_extension", "torch._inductor"):
        logging.getLogger(name).setLevel(logging.ERROR)  # their messages are for developers of torch
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
        return True
    except Exception as error:  # a broken or missing compiler may raise any error
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        tell(f"warning: --compile: torch.compile does not work here ({reason[:200]}), so steps run eagerly")
        return False


# limit for one forward pass: one for each network, set of operations, train or eval mode, with or without
# gradients
COMPILED_VARIANTS = 64
COMPILED_BATCH = 16  # smallest batch that is compiled; torch would compile another variant for fewer images


@functools.lru_cache
def compile_forward(forward: Callable) -> Callable:
    """torch.compile of forward(module, *inputs), shared by all modules; inputs are tensors, Augmentations or
    None.

    The first dimension of each tensor may have any size, and the other sizes are fixed, so that a batch of
    another size needs no new compilation. Modules of one architecture share their code. Batches of fewer than
    COMPILED_BATCH images run eagerly. Random numbers must be drawn outside `forward`. Raises FailedRun if
    compilation fails.
    """
    limit = (
        "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
    )  # until torch 2.6
    setattr(torch._dynamo.config, limit, COMPILED_VARIANTS)

    def rebuilt(module: nn.Module, *inputs):
        return forward(
            module, *(value[0](*value[1:]) if isinstance(value, tuple) else value for value in inputs)
        )

    fast = torch.compile(
        rebuilt, dynamic=False
    )  # torch does not guess which sizes change; they are marked below

    def call(module: nn.Module, *inputs):
        if len(inputs[0]) < COMPILED_BATCH:
            return forward(module, *inputs)
        for value in inputs:
            tensors = (
                itertools.chain(*value.parameters)
                if is_dataclass(value)
                else [value]
                if torch.is_tensor(value)
                else []
            )
            for tensor in tensors:
                if tensor.dim() and len(tensor) > 1:
                    torch._dynamo.maybe_mark_dynamic(tensor, 0)
        # A dataclass is passed as its type and fields: torch 2.6 treats each instance as a new constant, and
        # would recompile for each.
        inputs = [(type(value), *vars(value).values()) if is_dataclass(value) else value for value in inputs]
        try:
            with warnings.catch_warnings():  # tracing reads .grad of inputs that are not leaves, which warns
                warnings.simplefilter("ignore", UserWarning)
                return fast(module, *inputs)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            reason = str(error.inner_exception).splitlines()[0]
            raise FailedRun(
                f"the step could not be compiled ({reason}); --no-compile runs it as it is"
            ) from error

    return call
