"""Tensors that say cuda:0 and hold a CPU tensor.

Every operation on them passes through run_operation, which refuses what a GPU refuses.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from . import graphs
from .generators import DEFAULT, DEVICE, CpuGenerator, cuda_generator, drawing_from_default
from .nested import leaves, mapped
from .report import REPORT
from .streams import CLOCKS, touch

CPU = torch.device("cpu")
READS_SIZE = {  # the size of the result, or a decision, hangs on values
    f"aten::{name}"
    for name in "nonzero masked_select _unique2 unique_dim unique_consecutive bincount repeat_interleave "
    "argwhere histc equal".split()
} | {"aten::is_nonzero"}
INDEXED = {
    "aten::index",
    "aten::index_put",
    "aten::index_put_",
    "aten::_index_put_impl_",
    "aten::_unsafe_index",
}
COPIES = {"aten::copy_", "aten::_to_copy", "aten::_foreach_copy_", "aten::to"}
NO_CPU_SCALARS = {
    f"aten::{name}"
    for name in "cat stack mm addmm bmm index_select gather scatter scatter_ embedding".split()
}  # elsewhere a CPU tensor without dimensions may stand beside CUDA ones
BATCH_NORMS = {
    "aten::native_batch_norm",
    "aten::cudnn_batch_norm",
}  # they move their statistics without saying so in their schema


class PretendTensor(Tensor):
    """A tensor of the device; `inner` is what it holds."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor):
        wrapper = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
            requires_grad=False,
        )
        wrapper.inner = inner
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run_operation(func, args, kwargs or {})

    def tolist(self):
        return self.detach().cpu().tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
            "memory first."
        )

    def __array__(self, *args, **kwargs):
        return self.numpy()

    def __repr__(self) -> str:
        return f"PretendTensor({tuple(self.shape)}, {self.dtype})"


class PretendMode(TorchDispatchMode):
    """Sees the operations whose tensors do not say cuda:0.

    They are those that make one, and those that may not have a generator of the device.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run_operation(func, args, kwargs or {})


@cache
def _schema(func) -> tuple[str, list[tuple[int, str]], bool, bool]:
    """The name; the arguments written to (place, name); whether it takes a generator; whether it draws."""
    schema = func._schema
    written = [
        (i, a.name)
        for i, a in enumerate(schema.arguments)
        if a.alias_info is not None and a.alias_info.is_write
    ]
    takes_generator = any(a.name == "generator" for a in schema.arguments)
    return schema.name, written, takes_generator, torch.Tag.nondeterministic_seeded in func.tags


@dataclass
class Call:
    """An operation with its arguments flattened. wanted: the device that it names for its result."""

    func: Any
    args: tuple
    kwargs: dict
    name: str
    flat: list
    cuda: list[PretendTensor]
    cpu: list[Tensor]
    wanted: torch.device | None
    generator: torch.Generator | None
    random: bool
    written: list[PretendTensor] = field(default_factory=list)

    @property
    def to_cpu(self) -> bool:
        return self.wanted is not None and self.wanted.type == "cpu"

    @property
    def to_cuda(self) -> bool:
        return self.wanted is not None and self.wanted.type == "cuda"

    @property
    def crosses(self) -> bool:
        """Whether it copies between host and device."""
        return bool(
            (self.cuda and self.to_cpu)
            or (self.to_cuda and not self.cuda and self.cpu)
            or (self.name in COPIES and self.cuda and self.cpu)
        )


def _parse(func, args: tuple, kwargs: dict) -> Call:
    name, written, takes_generator, random = _schema(func)
    flat = [*leaves(args), *leaves(list(kwargs.values()))]
    cuda = [value for value in flat if isinstance(value, PretendTensor)]
    cpu = [value for value in flat if isinstance(value, Tensor) and not isinstance(value, PretendTensor)]
    wanted, generator = kwargs.get("device"), kwargs.get("generator")
    if takes_generator and generator is None:
        generator = next((value for value in flat if isinstance(value, CpuGenerator)), None)
    wanted = None if wanted is None else torch.device(wanted)
    call = Call(func, args, kwargs, name, flat, cuda, cpu, wanted, generator, random)
    values = [args[i] if i < len(args) else kwargs.get(argument) for i, argument in written]
    if name in BATCH_NORMS and args[5]:
        values += [args[3], args[4]]
    call.written = [value for value in leaves(values) if isinstance(value, PretendTensor)]
    return call


def run_operation(func, args: tuple, kwargs: dict) -> Any:
    """An operation of PyTorch: refused, or computed on the CPU and given back as tensors of the device."""
    if func is torch.ops.aten.is_pinned.default:
        return getattr(args[0], "pinned", False)
    if func is torch.ops.aten._pin_memory.default:
        pinned = args[0].clone()
        pinned.pinned = True
        return pinned
    call = _parse(func, args, kwargs)
    if not call.cuda and not call.to_cuda:
        if cuda_generator(call.generator) is not None:
            REPORT.fault(f"{func}: Expected a 'cpu' device type for generator but found 'cuda'")
        return func(*args, **kwargs)
    if call.name == "aten::_local_scalar_dense":
        _host_reads(call, "item()")
        return func(call.cuda[0].inner)
    if call.crosses:
        _check_copy(call)
    elif call.cuda and call.cpu:
        _check_devices(call)
    masks = call.name in INDEXED and any(
        isinstance(i, PretendTensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
    )
    if call.name in READS_SIZE or masks:
        _host_reads(call, str(func))
    if call.random:
        _check_generator(call)
    return _compute(call)


# what is refused, and what makes the host wait


def _host_reads(call: Call, what: str) -> None:
    REPORT.waits(what)
    if graphs.recording() is not None:
        REPORT.fault(f"{what} while a graph is recorded: cudaErrorStreamCaptureUnsupported")
    touch([tensor.inner for tensor in call.cuda], [])
    CLOCKS.host_waits()


def _check_copy(call: Call) -> None:
    down = call.to_cpu or (call.name == "aten::copy_" and not isinstance(call.args[0], PretendTensor))
    what = f"{call.func} {'device to host' if down else 'host to device'}"
    if graphs.recording() is not None:
        REPORT.fault(f"{what} while a graph is recorded: cudaErrorStreamCaptureUnsupported")
    asynchronous = call.kwargs.get("non_blocking") and all(
        getattr(value, "pinned", False) for value in call.cpu
    )
    if down or not asynchronous:
        REPORT.waits(what)
    if down:
        touch([tensor.inner for tensor in call.cuda], [])
        CLOCKS.host_waits()


def _check_devices(call: Call) -> None:
    func, args = call.func, call.args
    if call.name in INDEXED:
        if not isinstance(args[0], PretendTensor):
            REPORT.fault(
                f"{func}: indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        if any(isinstance(i, Tensor) and not isinstance(i, PretendTensor) for i in args[1]):
            REPORT.waits(f"{func} with an index on the CPU")
            if graphs.recording() is not None:
                REPORT.fault(f"{func} with an index on the CPU while a graph is recorded")
        if (
            len(args) > 2
            and isinstance(args[2], Tensor)
            and not isinstance(args[2], PretendTensor)
            and args[2].dim() > 0
        ):
            REPORT.fault(f"{func}: a value on the CPU is put into a CUDA tensor")
        return
    if any(value.dim() > 0 for value in call.cpu):
        REPORT.fault(
            f"{func}: Expected all tensors to be on the same device, but found at least two devices, cuda:0 "
            "and cpu!"
        )
    if call.name in NO_CPU_SCALARS:
        REPORT.fault(f"{func}: a CPU scalar tensor beside CUDA tensors")
    if isinstance(args[0], Tensor) and not isinstance(args[0], PretendTensor) and _schema(func)[1]:
        REPORT.fault(f"{func}: in place on a CPU tensor, with a CUDA operand")
    recorded = "" if graphs.recording() is None else ", a constant of the recorded graph"
    REPORT.note("CPU scalars in CUDA operations", f"{func}{recorded}")


def _check_generator(call: Call) -> None:
    if call.generator is None:
        return
    own = cuda_generator(call.generator)
    if own is None:
        REPORT.fault(f"{call.func}: Expected a 'cuda' device type for generator but found 'cpu'")
    call.generator = own
    if graphs.recording() is not None and own is not DEFAULT and graphs.recording() not in own.registered:
        REPORT.fault(f"{call.func}: draws from an unregistered generator while a graph is recorded")


# the computation


def _compute(call: Call) -> Any:
    args, kwargs = (
        mapped(call.args, _held),
        {name: mapped(value, _held) for name, value in call.kwargs.items()},
    )
    inputs = [*leaves(args), *leaves(list(kwargs.values()))]
    if isinstance(kwargs.get("device"), str):
        kwargs["device"] = CPU
    if "pin_memory" in kwargs:
        kwargs["pin_memory"] = False
    copied = call.name == "aten::_to_copy" and call.crosses
    if copied:
        kwargs.pop("non_blocking", None)

    def work() -> Any:
        if call.random and call.generator is None:
            with drawing_from_default():
                return call.func(*args, **kwargs)
        return call.func(*args, **kwargs)

    graph = graphs.recording()
    if graph is not None:
        for tensor in call.written:
            graph.keep(tensor.inner)
        if call.random:
            graph.keep_generator(call.generator or DEFAULT)
    output = work()
    if copied and output is args[0]:
        output = output.clone()
    given_back = mapped(output, lambda value: _result(call, value, inputs))
    results = leaves(given_back)
    for tensor in call.written:
        if tensor.shape != tensor.inner.shape:
            raise NotImplementedError(f"{call.func} changes a shape in place")
    made = [value.inner for value in results if isinstance(value, PretendTensor)]
    held = {tensor.inner.untyped_storage()._cdata for tensor in call.cuda}
    fresh = [value for value in made if value.untyped_storage()._cdata not in held]
    touch([tensor.inner for tensor in call.cuda], [*(tensor.inner for tensor in call.written), *fresh])
    if graph is not None:
        graph.record(
            work,
            inputs,
            [tensor.inner for tensor in call.written],
            [getattr(value, "inner", value) for value in results],
        )
    return given_back


def _held(value: Any) -> Any:
    if isinstance(value, PretendTensor):
        return value.inner
    return CPU if isinstance(value, torch.device) and value.type == "cuda" else value


def _result(call: Call, value: Any, inputs: list) -> Any:
    """What an output becomes: its argument where it was written in place, else a tensor of the device."""
    if not isinstance(value, Tensor) or call.to_cpu:
        return value
    for tensor in call.written:
        if value is tensor.inner:
            return tensor
    if any(value is given for given in inputs):
        value = value.detach() if call.name == "aten::detach" else value.view_as(value)
    return PretendTensor(value)
