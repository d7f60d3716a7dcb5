"""bf16 and TF32: what the device multiplies in hardware."""

import contextlib
import functools
import subprocess
import sys
import warnings

import torch


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16 products.

    The answer comes from the device's own description, so it is always the same on one machine. CUDA: compute
    capability 8.0 (Ampere) or later, or ROCm. CPU: AVX512-BF16, AMX or Arm's BF16 in Linux's /proc/cpuinfo or
    macOS's sysctl; False on other systems.
    """
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & cpu_features())


@functools.lru_cache
def cpu_features() -> frozenset[str]:
    """The names of the CPU's instruction sets as the system lists them; empty if they cannot be read."""
    if sys.platform == "darwin":
        command = ("sysctl", "-n", "hw.optional.arm.FEAT_BF16")
        answer = subprocess.run(command, capture_output=True, text=True).stdout
        return frozenset({"bf16"} if answer.strip() == "1" else ())
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as cpus:
        for line in cpus:
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return frozenset(value.split())
    return frozenset()


def allow_tf32(on: bool) -> None:
    """Turn TF32 on or off for float32 matrix products and convolutions on CUDA.

    torch 2.9 and later have two sets of names for this setting, and reading the older set raises an error
    while the two disagree.
    """
    matmul = torch.backends.cuda.matmul
    cudnn = torch.backends.cudnn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some releases of torch warn about the older names
        matmul.allow_tf32 = on
        cudnn.allow_tf32 = on
    if hasattr(matmul, "fp32_precision"):
        for products in (matmul, cudnn.conv, cudnn.rnn):
            products.fp32_precision = "tf32" if on else "ieee"
