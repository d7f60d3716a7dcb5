"""Progress of a loop: a bar on a terminal, an occasional line in a log file."""

import sys
import time

from tqdm import tqdm

from utils import tell

LINE_SECONDS = 30  # least time between two lines


class Progress:
    """Progress of a loop of `total` steps, of which `done` are complete, shown on stderr unless `hidden`.

    On a terminal it is a bar. Elsewhere read() prints a line, at most one every LINE_SECONDS, so that a log
    file shows that the loop runs.
    """

    def __init__(self, total: int, done: int = 0, title: str = "", leave: bool = True, hidden: bool = False):
        on_terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=title,
            unit="step",
            leave=leave,
            disable=hidden or not on_terminal,
            dynamic_ncols=True,
        )
        self.total = total
        self.done = self.first = done
        self.title = title
        self.lines = not (hidden or on_terminal)
        self.start = self.last = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error) -> None:
        self.bar.close()

    def update(self) -> None:
        """Count one step."""
        self.done += 1
        self.bar.update()

    def read(self, title: str = "", values: dict[str, float] | None = None) -> None:
        """Show the position of the loop and the `values` of its losses."""
        self.title = title or self.title
        shown = {name: f"{value:.3f}" for name, value in (values or {}).items()}
        if not self.bar.disable:
            self.bar.set_description(self.title, refresh=False)
            self.bar.set_postfix(shown)
        now = time.monotonic()
        if self.lines and now - self.last >= LINE_SECONDS:
            self.last = now
            seconds = now - self.start
            left = seconds / max(1, self.done - self.first) * (self.total - self.done)
            losses = "".join(f"  {name} {value}" for name, value in shown.items())
            steps = f"step {self.done:,} of {self.total:,}"
            tell(f"{self.title}: {steps}, {seconds:,.0f} s, about {left:,.0f} s left{losses}")
