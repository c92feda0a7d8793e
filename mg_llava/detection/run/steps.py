"""A step of a run: numbered items, in lines of results, in planned tasks; what is done is in journals."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mg_llava.work.journal import Journal, Record, read_journals, writer_name
from mg_llava.work.pool import split


class BoxStep:
    """Items ``0 .. count - 1``, whose results are kept by lines.

    Which items form a line, and how many lines a task, is fixed: results do not depend on who makes them, and when. In
    the folder are journals of ``{"line": number, "results": [...]}``, one for each writer.
    """

    def __init__(self, folder: str | Path, count: int, per_line: int, lines: int = 1) -> None:
        self.folder = Path(folder)
        self.count, self.per_line, self.lines = count, per_line, lines
        self.line_count = -(-count // per_line)

    def items(self, line: int) -> range:
        """The items of a line."""
        return range(line * self.per_line, min((line + 1) * self.per_line, self.count))

    def index(self) -> dict[int, Record]:
        """Where each line that is done is, without what it holds; of lines that were made twice, the first found."""
        places: dict[int, Record] = {}
        for record in read_journals(self.folder):
            places.setdefault(record.value["line"], record._replace(value=None))
        return places

    def results(self) -> Iterator[tuple[int, Any]]:
        """Number and result of each item that is done; of lines that were made twice, both."""
        for record in read_journals(self.folder):
            yield from zip(self.items(record.value["line"]), record.value["results"], strict=True)

    def open_tasks(self) -> list[list[int]]:
        """The lines without results, task by task."""
        done = self.index()
        tasks = [
            [line for line in range(*bounds) if line not in done] for bounds in split(self.line_count, self.lines)
        ]
        return [task for task in tasks if task]

    def journal(self) -> Journal:
        """A file for the results that this process writes."""
        return Journal(self.folder / f"{writer_name()}.journal")
