"""Collectives of several processes: those of NCCL, on a GPU each, run over gloo."""

import torch.distributed as dist
from torch import Tensor

from . import graphs
from .streams import touch
from .tensors import PretendTensor


def install() -> None:
    """Let torch.distributed take tensors of the device."""
    begin, reduce, broadcast = dist.init_process_group, dist.all_reduce, dist.broadcast

    def collective(call):
        def work(tensor: Tensor, *args, **kwargs) -> None:
            if not isinstance(tensor, PretendTensor):
                raise RuntimeError("No backend type associated with device type cpu")  # NCCL's
            inner, graph = tensor.inner.detach(), graphs.recording()
            if graph is not None:
                graph.keep(inner)
                graph.record(lambda: call(inner, *args, **kwargs), [inner], [inner], [])
            touch([inner], [inner])
            call(inner, *args, **kwargs)

        return work

    dist.init_process_group = lambda backend, **options: begin("gloo", **options)
    dist.all_reduce, dist.broadcast = collective(reduce), collective(broadcast)
