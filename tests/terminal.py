"""As much of a terminal as the display of the load generator uses: what would be on the screen."""

from __future__ import annotations

import re

_ESCAPE = re.compile(r"\x1b\[(\d*)([A-Z])")


class Screen:
    """Cells after all that was written; a line that is longer than the terminal wraps, as there."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._lines: list[list[str]] = [[]]
        self._row = self._column = 0
        self.wrapped = 0

    def write(self, text: str) -> None:
        at = 0
        while at < len(text):
            match = _ESCAPE.match(text, at)
            if match:
                self._escape(int(match[1] or 1), match[2])
                at = match.end()
                continue
            self._put(text[at])
            at += 1

    def _escape(self, number: int, kind: str) -> None:
        if kind == "F":  # to the start of a line further up
            self._row, self._column = max(0, self._row - number), 0
        elif kind == "K":  # erase to the end of the line
            del self._lines[self._row][self._column :]
        elif kind == "J":  # erase to the end of the screen
            del self._lines[self._row][self._column :]
            del self._lines[self._row + 1 :]
        else:
            raise AssertionError(f"an escape that no terminal has to know: {number}{kind}")

    def _put(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n":  # a terminal's driver returns the carriage, too
            self._next()
        else:
            if self._column == self._columns:
                self.wrapped += 1
                self._next()
            line = self._lines[self._row]
            line.extend(" " * (self._column + 1 - len(line)))
            line[self._column] = character
            self._column += 1

    def _next(self) -> None:
        self._row, self._column = self._row + 1, 0
        while len(self._lines) <= self._row:
            self._lines.append([])

    @property
    def lines(self) -> list[str]:
        return ["".join(line).rstrip() for line in self._lines]
