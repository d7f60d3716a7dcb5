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

SAFE_ON_CPU = (2, 9)  # earlier torch writes past a buffer in some compiled means (seen in 2.6 and 2.8)
# Limit for one forward pass: one variant for each network, set of operations, train or eval mode, with or
# without gradients.
COMPILED_VARIANTS = 64
COMPILED_BATCH = 16  # smallest batch that is compiled; torch would compile another variant for fewer images


@functools.lru_cache
def finds_compiler(device: torch.device) -> bool:
    """Whether torch.compile works on `device`. If it does not, print a warning line with the reason."""
    if device.type == "cpu" and tuple(map(int, torch.__version__.split(".")[:2])) < SAFE_ON_CPU:
        expected = ".".join(map(str, SAFE_ON_CPU))
        reason = f"torch {torch.__version__} compiles wrongly on a CPU, expected {expected} or later"
        tell(f"warning: --compile: {reason}, so steps run eagerly")
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


@functools.lru_cache
def compile_forward(forward: Callable) -> Callable:
    """torch.compile of forward(module, *inputs), shared by all modules.

    inputs: tensors, dataclasses of tensors (Augmentations) or None. The first dimension of each tensor may
    have any size, and the other sizes are fixed, so that a batch of another size needs no new compilation.
    Modules of one architecture share their code. Batches of fewer than COMPILED_BATCH images run eagerly.
    Random numbers must be drawn outside `forward`. Raises FailedRun if compilation fails.
    """
    config = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # until torch 2.6
    setattr(config, limit, COMPILED_VARIANTS)

    def rebuilt(module: nn.Module, *inputs):
        values = (value[0](*value[1:]) if isinstance(value, tuple) else value for value in inputs)
        return forward(module, *values)

    # dynamic=False: torch does not guess which sizes change; they are marked below
    fast = torch.compile(rebuilt, dynamic=False)

    def call(module: nn.Module, *inputs):
        if len(inputs[0]) < COMPILED_BATCH:
            return forward(module, *inputs)
        plain = []
        for value in inputs:
            tensors = [value] if torch.is_tensor(value) else []
            if is_dataclass(value):
                tensors = itertools.chain(*value.parameters)
                # Passed as its type and fields: torch 2.6 treats each instance as a new constant, and would
                # recompile for each.
                value = (type(value), *vars(value).values())
            for tensor in tensors:
                if tensor.dim() and len(tensor) > 1:
                    torch._dynamo.maybe_mark_dynamic(tensor, 0)
            plain.append(value)
        try:
            with warnings.catch_warnings():  # tracing reads .grad of inputs that are not leaves, which warns
                warnings.simplefilter("ignore", UserWarning)
                return fast(module, *plain)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            reason = f"the step could not be compiled ({str(error.inner_exception).splitlines()[0]})"
            raise FailedRun(f"{reason}; --no-compile runs it as it is") from error

    return call
