"""Put the emulation in torch's place, for the rest of the process."""

import itertools
from types import SimpleNamespace

import torch
import torch.accelerator
import torch.optim.optimizer as optimizer

from . import generators, graphs, ranks, streams
from .report import REPORT
from .tensors import PretendMode, PretendTensor

PROPERTIES = SimpleNamespace(
    name="pretend", major=9, minor=0, total_memory=80 * 2**30, multi_processor_count=132
)


def install() -> None:
    """Let torch see one CUDA device."""
    torch._C._ensureCUDADeviceGuardSet()
    torch._C._set_only_lift_cpu_tensors(True)
    _install_device(torch.cuda)
    _install_streams(torch.cuda)
    _install_generators(torch.cuda)
    torch.accelerator.current_stream = lambda device=None: streams.CLOCKS.current
    torch.accelerator.current_accelerator = lambda check_available=False: torch.device("cuda")
    torch.accelerator.is_available = lambda: True
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.backends.cudnn.enabled = False
    optimizer._foreach_supported_types.append(PretendTensor)
    torch.autograd.set_multithreading_enabled(False)
    save = torch.save
    torch.save = lambda value, *args, **kwargs: save(_plain(value), *args, **kwargs)
    ranks.install()
    PretendMode().__enter__()


def _install_device(cuda) -> None:
    cuda._lazy_init, cuda._is_in_bad_fork = lambda: None, lambda: False
    cuda.is_available = cuda.is_initialized = lambda: True
    cuda.is_bf16_supported = lambda *args, **kwargs: True
    cuda.device_count, cuda.current_device, cuda.set_device = lambda: 1, lambda: 0, lambda device: None
    cuda.get_device_name = lambda device=None: PROPERTIES.name
    cuda.get_device_properties, cuda.get_device_capability = (
        lambda device=None: PROPERTIES,
        lambda device=None: (9, 0),
    )
    cuda.empty_cache = lambda: None
    cuda.max_memory_reserved = cuda.memory_reserved = lambda device=None: 0
    cuda.set_sync_debug_mode = lambda mode: setattr(REPORT, "sync_debug_mode", mode)


def _install_streams(cuda) -> None:
    streams.Stream.is_capturing = lambda self: graphs.recording() is not None
    cuda.Stream, cuda.Event, cuda.stream = streams.Stream, streams.Event, streams.stream
    cuda.CUDAGraph, cuda.graph = graphs.CUDAGraph, graphs.graph
    cuda.current_stream, cuda.default_stream = (
        lambda device=None: streams.CLOCKS.current,
        lambda device=None: streams.DEFAULT,
    )
    cuda.set_stream = lambda stream: setattr(streams.CLOCKS, "current", stream)
    cuda.synchronize = streams.synchronize
    numbers = itertools.count(1)
    cuda.graph_pool_handle = lambda: (0, next(numbers))
    cuda.is_current_stream_capturing = lambda: graphs.recording() is not None


def _install_generators(cuda) -> None:
    default = generators.DEFAULT
    cuda.default_generators = (default,)
    cuda.get_rng_state, cuda.set_rng_state = (
        lambda device=None: default.get_state().clone(),
        lambda state, device=None: default.set_state(state),
    )
    cuda.manual_seed = cuda.manual_seed_all = lambda seed: generators.CpuGenerator.manual_seed(default, seed)
    torch.Generator = generators.Generator


def _plain(value):
    """What torch.save would write of a GPU's tensors. Each that is still there costs a wait."""
    if isinstance(value, PretendTensor):
        REPORT.waits("torch.save of a tensor")
        return value.inner.detach().clone()
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(inner) for inner in value)
    return value
