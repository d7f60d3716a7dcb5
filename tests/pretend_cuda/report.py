"""What was seen: waits of the host, faults, races between streams, graphs recorded."""

import json
import sys
import warnings
from collections import Counter, defaultdict
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2]) + "/"


class Fault(RuntimeError):
    """What a GPU would have refused."""


class Report:
    """Counts by kind; each entry is (phase, what, where). phase: the test, or what the caller sets."""

    def __init__(self):
        self.phase = "setup"
        self.sync_debug_mode = "default"  # or "warn", or "error": torch.cuda.set_sync_debug_mode
        self.counts: defaultdict[str, Counter] = defaultdict(Counter)

    def note(self, kind: str, what: object, place: str | None = None) -> None:
        """Count one."""
        self.counts[kind][self.phase, str(what), place or where()] += 1

    def waits(self, what: object) -> None:
        """The host waits for the device."""
        self.note("host waits", what)
        if self.sync_debug_mode == "error":
            raise Fault(f"called a synchronizing CUDA operation: {what}")
        if self.sync_debug_mode == "warn":
            warnings.warn(f"called a synchronizing CUDA operation: {what}", stacklevel=2)

    def fault(self, message: str) -> None:
        """Note and raise what a GPU would refuse."""
        self.note("faults", message)
        raise Fault(message)

    def total(self, kind: str, what: str = "") -> int:
        """How many of a kind whose text holds `what`."""
        return sum(n for (_, text, _), n in self.counts[kind].items() if what in text)

    def clear(self) -> None:
        """Forget all."""
        self.counts.clear()

    def write(self, path: str) -> None:
        """As JSON: kind -> [[count, phase, what, where]], the most frequent first."""
        entries = {
            kind: [[n, *entry] for entry, n in counter.most_common()] for kind, counter in self.counts.items()
        }
        Path(path).write_text(json.dumps(entries, indent=1))


REPORT = Report()


def where() -> str:
    """The two innermost lines of the project, tests aside."""
    frame, entries = sys._getframe(1), []
    while frame is not None and len(entries) < 2:
        name = frame.f_code.co_filename
        if name.startswith(ROOT) and "/tests/" not in name and "/.venv/" not in name:
            entries.append(f"{name[len(ROOT) :]}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(entries) or "?"
