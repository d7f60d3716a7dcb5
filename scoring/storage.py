"""Storage of weights and images: precision, compression, size in bytes, and the exported file of a
generator."""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from data import DataInfo
from engine.files import write_tensors
from engine.tensors import to_host
from models import SCALE, STORAGES, GanCheckpoint, decode
from utils import UsageError

BYTES = dict(zip(STORAGES, (4, 2, 1), strict=True))  # bytes of one weight
CODECS = ("raw", "png", "webp", "jpeg", "jpeg-scan")
LOSSY = ("jpeg", "jpeg-scan")
LENGTH_BYTES = 2  # bytes that store the length of a compressed image


def num_bytes(module: nn.Module, storage: str = "fp32") -> int:
    """Size in bytes of `module` as encode() stores it: parameters and floating-point buffers (BatchNorm's
    statistics).

    Only shapes are read, so the module may be on the meta device.
    """
    return sum(_num_bytes(tensor, channels, storage) for _, tensor, channels in _floating(module))


def _num_bytes(tensor: Tensor, channels: int, storage: str) -> int:
    if storage != "int8":
        return BYTES[storage] * tensor.numel()
    return tensor.numel() + 4 * tensor.shape[channels] if tensor.dim() > 1 else 2 * tensor.numel()


@torch.no_grad()
def encode(module: nn.Module, storage: str) -> dict[str, Tensor]:
    """Encode the parameters and floating-point buffers of `module`: tensors by name, on the CPU;
    models.decode is the inverse.

    storage: fp32, fp16 or int8. int8 stores weights as whole numbers in -127..127 with a float32 scale per
    output channel (under the weight's name and ".scale"), and tensors of one dimension (biases, norms,
    statistics) as fp16. Raises UsageError if a value does not fit into fp16.
    """
    tensors, values = {}, to_host({name: tensor.detach() for name, tensor, _ in _floating(module)})
    for name, _, channels in _floating(module):
        tensor = values[name]
        if storage == "int8" and tensor.dim() > 1:
            others = [dim for dim in range(tensor.dim()) if dim != channels]
            scale = (tensor.abs().amax(others, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
            tensors[name], tensors[name + SCALE] = (tensor / scale).round().to(torch.int8), scale
        else:
            tensors[name] = tensor.clone() if storage == "fp32" else _half(tensor, storage)
    return tensors


@torch.no_grad()
def store(module: nn.Module, storage: str) -> nn.Module:
    """Round the values of `module` in place to what encode() keeps of them. Raises UsageError if a value does
    not fit."""
    if storage != "fp32":
        kept = decode(encode(module, storage))
        for name, tensor, _ in _floating(module):
            tensor.copy_(kept[name])
    return module


def export_generator(path: Path, checkpoint: GanCheckpoint, storage: str) -> None:
    """Write the checkpoint's generator as safetensors: its values at `storage`, and the metadata that
    read_gan needs.

    The file, read back, gives the same images as store(generator, storage).
    """
    generator = checkpoint.generator()
    whole_numbers = {
        name: tensor for name, tensor in generator.state_dict().items() if not tensor.is_floating_point()
    }
    tensors = encode(generator, storage) | whole_numbers
    metadata = {
        "config": checkpoint.config,
        "info": checkpoint.info.to_dict(),
        "val_size": checkpoint.val_size,
        "storage": storage,
    }
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_tensors(
        path, lambda temporary: temporary.write_bytes(save(tensors, {"generator": json.dumps(metadata)}))
    )


def _floating(module: nn.Module) -> Iterator[tuple[str, Tensor, int]]:
    """Yield (name, tensor, dimension of its output channels) of each parameter and floating-point buffer."""
    for path, part in module.named_modules():
        channels = 1 if isinstance(part, nn.ConvTranspose2d) else 0
        for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            if tensor.is_floating_point():
                yield f"{path}.{name}".removeprefix("."), tensor, channels


def _half(tensor: Tensor, storage: str) -> Tensor:
    half = tensor.half()
    if not torch.isfinite(half).all():
        raise UsageError(
            f"--storage {storage}: a value of {tensor.abs().max():g} does not fit, expected at most 65504; "
            "use fp32"
        )
    return half


@dataclass(frozen=True)
class Codec:
    """Encoder and decoder of a uint8 image (H, W) or (H, W, 3). shared: number of bytes that are stored once
    for all images."""

    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes], np.ndarray]
    shared: int = 0


def _pillow_codec(kind: str, **options) -> Codec:
    def encode(array: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(array).save(file, kind, **options)
        return file.getvalue()

    def decode(code: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(code)) as picture:
            return np.asarray(picture)

    return Codec(encode, decode)


MARKER = 2  # bytes of a marker of a JPEG stream
START_OF_SCAN = b"\xff\xda"  # the last marker before the data


def _jpeg_codec(quality: int, info: DataInfo) -> Codec:
    """JPEG whose tables, the same for all images, are stored once (ITU-T T.81, annex B.5: abbreviated
    streams)."""
    tables = _pillow_codec("JPEG", quality=quality, streamtype=1).encode(_blank(info))
    pictures = _pillow_codec("JPEG", quality=quality, streamtype=2)
    return Codec(pictures.encode, lambda code: pictures.decode(tables[:-MARKER] + code[MARKER:]), len(tables))


def _jpeg_scan_codec(quality: int, info: DataInfo) -> Codec:
    """JPEG of which all that comes before and after the data of the scan, the same for all images of one
    size, is stored once."""
    pictures = _pillow_codec("JPEG", quality=quality)
    blank = pictures.encode(_blank(info))
    begin, marker = MARKER, b""
    while marker != START_OF_SCAN:  # segment after segment, each a marker and the length of what follows it
        marker = blank[begin : begin + MARKER]
        begin += MARKER + int.from_bytes(blank[begin + MARKER : begin + 2 * MARKER], "big")
    head, end = blank[:begin], blank[-MARKER:]
    return Codec(
        lambda array: pictures.encode(array)[begin:-MARKER],
        lambda code: pictures.decode(head + code + end),
        len(head + end),
    )


def _blank(info: DataInfo) -> np.ndarray:
    side = info.image_size
    return np.zeros((side, side) if info.channels == 1 else (side, side, 3), np.uint8)


def make_codec(name: str, quality: int, info: DataInfo) -> Codec | None:
    """Return the codec called `name` for images of a set, or None for raw pixels. Raises UsageError if Pillow
    was built without it."""
    if name == "raw":
        return None
    if name in LOSSY:
        return (_jpeg_codec if name == "jpeg" else _jpeg_scan_codec)(quality, info)
    if name == "png":
        codec = _pillow_codec("PNG", optimize=True)
    else:
        codec = _pillow_codec("WEBP", lossless=True, method=6)
        if info.channels == 1:  # WEBP gives back three equal channels
            codec = Codec(codec.encode, lambda code, decode=codec.decode: decode(code)[..., 0])
    try:
        codec.encode(_blank(info))
    except (KeyError, OSError) as error:
        raise UsageError(f"--codec {name}: this Pillow cannot write it ({error})") from None
    return codec


def encode_images(codec: Codec, images: Tensor) -> list[bytes]:
    """Encode each of the uint8 images (B, C, H, W)."""
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()  # (B, H, W, C)
    return [
        codec.encode(np.ascontiguousarray(array.squeeze(2) if array.shape[2] == 1 else array))
        for array in arrays
    ]


def decode_images(codec: Codec, codes: list[bytes], info: DataInfo) -> Tensor:
    """Decode what encode_images returned to uint8 images (B, C, H, W) on the CPU: exact, unless the codec is
    lossy (JPEG)."""
    shape = (len(codes), info.image_size, info.image_size, info.channels)
    arrays = np.stack([codec.decode(code) for code in codes]) if codes else np.empty(0, np.uint8)
    images = torch.from_numpy(arrays.reshape(shape)).permute(0, 3, 1, 2)
    return images.clone(memory_format=torch.contiguous_format)


def roundtrip(name: str, codec: Codec | None, info: DataInfo) -> Callable[[Tensor], Tensor] | None:
    """What the codec called `name` makes of uint8 images (B, C, H, W), on their device; None if it changes
    nothing."""
    if name not in LOSSY:
        return None
    return lambda images: decode_images(codec, encode_images(codec, images), info).to(images.device)
