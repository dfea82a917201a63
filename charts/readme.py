"""Writes a chart's README from its values: `python -m charts.readme charts/beyond-inference`.

A comment that begins with `# --` above a key of values.yaml is the key's row; what is above the mark in README.md is
written by hand and stays.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

MARK = "<!-- From here on made from values.yaml by `make chart-docs`. -->"
_KEY = re.compile(r"^( *)([A-Za-z][\w-]*):")
_COMMENT = re.compile(r"^ *# -- (.*)$")


class Row(NamedTuple):
    """A value that is explained. `default`: as YAML in one line."""

    name: str
    default: str
    text: str


def rows(chart: Path) -> Iterator[Row]:
    """In the order of the file."""
    text = (chart / "values.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    path: list[tuple[int, str]] = []
    said: str | None = None
    for line in text.splitlines():
        comment = _COMMENT.match(line)
        if comment:
            said = comment.group(1)
            continue
        key = _KEY.match(line)
        if key is None:
            continue
        indent = len(key.group(1))
        path = [(depth, name) for depth, name in path if depth < indent] + [(indent, key.group(2))]
        if said is not None:
            value: Any = values
            for _, name in path:
                value = value[name]
            yield Row(".".join(name for _, name in path), _inline(value), said)
            said = None


def _inline(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).removesuffix("\n...\n").strip()


def leaves(chart: Path) -> Iterator[str]:
    """Names of what has to be explained: a map counts as a whole where its row says so, else its members do."""
    explained = {row.name for row in rows(chart)}

    def walk(value: Any, name: str) -> Iterator[str]:
        if name in explained or not isinstance(value, dict) or not value:
            yield name
        else:
            for key, below in value.items():
                yield from walk(below, f"{name}.{key}" if name else key)

    yield from walk(yaml.safe_load((chart / "values.yaml").read_text(encoding="utf-8")), "")


def document(chart: Path) -> str:
    """The whole README."""
    above = (chart / "README.md").read_text(encoding="utf-8").partition(MARK)[0]
    lines = ["| value | default | what it is |", "| --- | --- | --- |"]
    for row in rows(chart):
        default = row.default.replace("|", "\\|")
        lines.append(f"| `{row.name}` | `{default}` | {row.text.replace('|', chr(92) + '|')} |")
    return f"{above}{MARK}\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    """See the module."""
    chart = Path(sys.argv[1])
    (chart / "README.md").write_text(document(chart), encoding="utf-8")


if __name__ == "__main__":
    main()
