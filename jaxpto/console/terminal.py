"""The console and the tables of commands: plain text, numbers never cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from jaxpto.console.options import as_typed

FOLDED = 40  # characters from which a column of words may be folded
_UNBOUNDED = 10_000


class _CommandConsole(Console):
    """A console that spells settings as the options of a command."""

    config: type | None = None

    def print(self, *objects: Any, **how: Any) -> None:
        """Print as any console does."""
        if self.config is not None:
            objects = tuple(as_typed(one, self.config) if isinstance(one, str) else one for one in objects)
        super().print(*objects, **how)


def console(config: type | None = None, *, stderr: bool = False, quiet: bool = False) -> Console:
    """The console of a command: names with brackets and colons are printed as they are, and lines are not broken.

    Args:
        config: dataclass of the command's options; settings in what is printed are spelled as these (see `as_typed`).
        stderr: write to stderr in place of stdout.
        quiet: print nothing.
    """
    made = _CommandConsole(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False, soft_wrap=True)
    made.config = config
    return made


class WholeTable(Table):
    """A table whose numbers are never cut: where the terminal is narrower, lines go on beyond its edge.

    Only columns of more than 40 characters are folded, at spaces, to fit the terminal as far as they can.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType | Segment]:
        whole = Measurement.get(console, options.update(max_width=_UNBOUNDED), self).maximum
        for column in self.columns:
            texts = [_plain(cell) for cell in (column.header, *column.cells)]
            width = max((cell_len(line) for text in texts for line in text.splitlines()), default=0)
            word = max((cell_len(word) for text in texts for word in text.split()), default=0)
            whole -= max(0, width - max(FOLDED, word))
        wide = options.update(max_width=max(options.max_width, whole), no_wrap=False, overflow="fold")
        yield from super().__rich_console__(console, wide)


def _plain(cell: RenderableType) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)
