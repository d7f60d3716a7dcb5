"""Plain names of continual-learning rows: what is in memory, how it is stored, and how it is replayed.

A new run is named by its flags. A record older than 2026-11-28 holds one word for each row, such as
condensed-fill-ace_scan12_rd; old_names.json says what these words mean.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

SETS = {"cifar10": "CIFAR-10", "fashion": "Fashion-MNIST", "mnist": "MNIST"}
COLUMNS = ["memory", "replay loss", "stored as", "passes", "rehearsal"]
REAL = "real images"
MEMORIES = {
    "condensed": "condensed images",
    "dim": "generator",
    "dgr": "generator (DGR)",
    "finetune": "no memory",
    "joint": "all tasks at once",
    "unlimited": "every image",
}
LOSSES = {
    "er": "ER",
    "condensed": "ER",
    "unlimited": "ER",
    "er-ace": "ER-ACE",
    "cls-er": "CLS-ER",
    "der++": "DER++",
    "gdumb": "GDumb",
    "dim": "distillation",
    "dgr": "distillation",
    "finetune": "–",
    "joint": "–",
}
CODECS = {"png": "PNG", "webp": "WebP", "jpeg": "JPEG", "jpeg-scan": "JPEG scans"}
MATCHES = {"mean": "mean features", "dist": "energy distance", "grad": "gradients"}
# The columns of each label in records older than 2026-11-28.
OLD_NAMES = json.loads((Path(__file__).parent / "old_names.json").read_text())


@dataclass(frozen=True)
class Name:
    """The columns of a row. details: what no column shows."""

    memory: str
    loss: str
    stored: str
    passes: int
    rehearsal: str
    details: str = ""

    @property
    def curve(self) -> str:
        """The name of a curve over budgets: the memory, or the method where real images are the memory."""
        parts = [self.loss if self.memory == REAL else self.memory]
        parts += ["new networks"] * (self.loss == "new networks")
        return ", ".join(parts + [f"{self.passes} passes"] * (self.passes > 1))

    def cells(self) -> list[str]:
        details = f" ({self.details})" if self.details else ""
        return [self.memory + details, self.loss, self.stored, str(self.passes), self.rehearsal]

    def __str__(self) -> str:
        memory, loss, stored, passes, rehearsal = self.cells()
        return f"{memory}, loss of {loss}, {stored}, passes {passes}, rehearsal {rehearsal}"


def from_flags(method: str, flags: dict, generator: dict | None = None) -> Name:
    """The name of a run. generator: what results.json says of its generators."""
    memory = MEMORIES.get(method, REAL)
    if (flags.get("condense_lr") or 1) < 1e-6:
        memory = "real images that condensing starts from"
    if method == "condensed" and not flags.get("fill_real"):
        memory += ", no real ones"
    stored = CODECS.get(flags.get("codec"), "raw")
    if stored.startswith("JPEG"):
        stored += f" q{flags.get('quality') or 75}"
    if method in ("finetune", "joint"):
        stored = "–"
    if generator:
        stored = generator["storage"]
    loss = "new networks" if flags.get("retrain") else flags.get("replay_loss") or method
    steps = flags.get("rehearse_steps")
    match = (flags.get("condense_match") or "mean").replace("mean-last", "mean")
    falling = ", falling rate" if flags.get("rehearse_decay") == "linear" else ""
    return Name(
        memory,
        LOSSES.get(loss, loss),
        stored,
        flags.get("epochs") or (1 if flags.get("track") == "online" else 5),
        f"{steps} steps{falling}" if steps else "none",
        MATCHES.get(match, match) if memory.startswith("condensed") else "",
    )


def from_label(row: dict) -> Name:
    """The name of a row of an older record, whose label is one word for all that a row is."""
    if columns := OLD_NAMES.get(row["label"]):
        return Name(*columns)
    return replace(from_flags(row["method"], {"epochs": 1}, row["generator"]), details=row["label"])


def names_of(rows: Sequence[dict]) -> list[Name]:
    """The name of each row. Settings in which rows of one name, set and budget differ become its details."""
    names = [Name(**row["name"]) if "name" in row else from_label(row) for row in rows]
    alike = defaultdict(list)
    for number, (name, row) in enumerate(zip(names, rows, strict=True)):
        if "settings" in row:
            alike[name, row["data"], row["memory_bytes"]].append(number)
    for numbers in alike.values():
        settings = [rows[number]["settings"] for number in numbers]
        differing = {
            key for one in settings for key in one if any(one[key] != other.get(key) for other in settings)
        }
        for number, own in zip(numbers, settings, strict=True):
            details = [names[number].details] * bool(names[number].details)
            details += [f"{key.replace('_', ' ')} {own[key]}" for key in sorted(differing & own.keys())]
            names[number] = replace(names[number], details=", ".join(details))
    return names
