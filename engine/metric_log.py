"""metrics.jsonl, TensorBoard events and pictures of a run folder."""

import json
from pathlib import Path

from torch import Tensor

from engine.files import save_picture, write_atomic


class MetricLog:
    """The metrics of a run, one line for each epoch or other `unit`. lines: the lines so far."""

    def __init__(self, folder: Path, unit: str):
        self.folder = folder
        self.unit = unit
        self.lines: list[dict] = []
        self._tensorboard = None

    def read(self, epochs: int) -> None:
        """Read metrics.jsonl and keep the lines of the first `epochs` epochs."""
        path = self.folder / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        self.lines = [line for line in lines if line[self.unit] <= epochs]

    def write(self, pictures: Tensor | None) -> None:
        """Write all lines, the TensorBoard events of the last line, and its picture if there is one.

        pictures: (C, H, W) in [-1, 1].
        """
        line = self.lines[-1]
        text = "".join(json.dumps(row) + "\n" for row in self.lines)
        write_atomic(self.folder / "metrics.jsonl", lambda path: path.write_text(text))
        if pictures is not None:
            save_picture(self.folder / "outputs" / f"img_{line[self.unit]:04d}.png", pictures)
        if self._tensorboard is None:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            self._tensorboard = SummaryWriter(str(self.folder), purge_step=line[self.unit])
        for name, value in line.items():
            if name not in (self.unit, "step", "seconds"):
                self._tensorboard.add_scalar(name.replace("_", "/", 1), value, line[self.unit])
        if pictures is not None:
            self._tensorboard.add_image("samples", (pictures.clamp(-1, 1) + 1) / 2, line[self.unit])
        self._tensorboard.flush()
