"""Files that tests make: pictures, checkpoints of the reference code, and damaged or malicious ones."""

import os
import pickle
import zlib

import torch
from PIL import Image
from torch import nn

from models import build_gan
from models.gan import GAN


def picture(path, colour=(10, 200, 30), size=(40, 20), mode="RGB") -> None:
    """Write a picture of one color, with a dot of its own in the middle, since equal pictures are refused."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, colour)
    shade = zlib.crc32(f"{path.parent.name}/{path.name}".encode()) % 256
    image.putpixel((size[0] // 2, size[1] // 2), (shade, shade, shade))
    image.convert(mode).save(path)


def reference_checkpoint(path, channels=3, size=32, width=6, classes=10):
    """A file as the reference code writes it: four state dicts and nothing that says what they are."""
    generator, discriminator = build_gan(
        {"num_classes": classes, "channels": channels, "image_size": size, "width": width, "z_dim": 100}
    )
    gan = GAN(generator, discriminator, 1e-4)
    state = {name: part for name, part in gan.state_dict().items() if name != "generator_ema"}
    torch.save(state, path)
    return generator


class Code:
    """Pickles to a call that creates a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (os.mkdir, (self.marker,))


def bad_checkpoints(folder, good) -> dict[str, str]:
    """file name -> what the error says."""
    content = good.read_bytes()
    (folder / "half.pth").write_bytes(content[: len(content) // 2])
    state = torch.load(good, weights_only=True)
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    old = (folder / "old.pth").read_bytes()
    for i in range(20):
        (folder / f"old{i}.pth").write_bytes(old[: len(old) * i // 20])
    (folder / "empty.pth").write_bytes(b"")
    (folder / "text.pth").write_text("hello\n" * 100)
    (folder / "folder.pth").mkdir()
    torch.save([1, 2], folder / "list.pth")
    torch.save({"a": torch.zeros(1)}, folder / "other.pth")
    torch.save(nn.Linear(1, 1), folder / "module.pth")
    torch.save({"generator": Code(folder / "executed"), "discriminator": {}}, folder / "code.pth")
    (folder / "rawcode.pth").write_bytes(pickle.dumps(Code(folder / "executed")))
    torch.save({**state, "config": {**state["config"], "width": 7}}, folder / "width.pth")
    torch.save({**state, "config": {**state["config"], "image_size": 30}}, folder / "size.pth")
    torch.save({**state, "config": {**state["config"], "depth": 3}}, folder / "config.pth")
    torch.save({**state, "info": {"name": "x"}}, folder / "info.pth")
    torch.save({**state, "generator": {}, "generator_ema": None}, folder / "hollow.pth")
    return {
        "missing.pth": "no such file",
        "half.pth": "or truncated",
        **{f"old{i}.pth": "or truncated" for i in range(20)},
        "empty.pth": "or truncated",
        "text.pth": "or truncated",
        "folder.pth": "is a folder",
        "list.pth": "holds a list",
        "other.pth": "expected a checkpoint with generator and discriminator, found a",
        "module.pth": "pickled code",
        "code.pth": "pickled code",
        "rawcode.pth": "expected a checkpoint of tensors and plain values",
        "width.pth": "does not fit",
        "size.pth": "size 30",
        "config.pth": "no networks of the sizes",
        "info.pth": "not a DiM checkpoint",
        "hollow.pth": "does not fit",
    }
