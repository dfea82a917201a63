"""The critical path of a trace by the rules of Jaeger's page, from the JSON of its query API.

In our own words after jaeger-ui's `TracePage/CriticalPath`: children are cut to their parents, or dropped where they
begin after them; a consumer below a producer is pruned with all that is below it; from the end of a span backwards the
path goes to the child that ended last before where it stands, strictly, and out to the parent from where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Node:
    """A span. Times in microseconds, as Jaeger keeps them."""

    id: str
    name: str
    service: str
    kind: str
    begin: int
    end: int
    parent: str
    links: tuple[tuple[str, str], ...]
    tags: dict[str, Any]
    children: list[Node] = field(default_factory=list)


def nodes(trace: Mapping[str, Any]) -> dict[str, Node]:
    """The spans of one trace by id, children attached."""
    services = {key: process["serviceName"] for key, process in trace["processes"].items()}
    found = {}
    for span in trace["spans"]:
        tags = {tag["key"]: tag["value"] for tag in span["tags"]}
        parents = [r["spanID"] for r in span["references"] if r["refType"] == "CHILD_OF"]
        links = tuple((r["traceID"], r["spanID"]) for r in span["references"] if r["refType"] == "FOLLOWS_FROM")
        found[span["spanID"]] = Node(
            span["spanID"],
            span["operationName"],
            services[span["processID"]],
            tags.get("span.kind", "internal"),
            span["startTime"],
            span["startTime"] + span["duration"],
            parents[0] if parents else "",
            links,
            tags,
        )
    for node in found.values():
        if node.parent in found:
            found[node.parent].children.append(node)
    return found


def critical_path(root: Node) -> list[tuple[Node, int]]:
    """(span, microseconds of it on the path), from the end to the beginning."""
    _sanitize(root)
    path: list[tuple[Node, int]] = []
    _walk(root, root.end, path)
    return path


def _sanitize(node: Node) -> None:
    kept = []
    for child in node.children:
        if child.begin >= node.end or child.end <= node.begin or (node.kind, child.kind) == ("producer", "consumer"):
            continue
        child.begin, child.end = max(child.begin, node.begin), min(child.end, node.end)
        _sanitize(child)
        kept.append(child)
    node.children = kept


def _walk(node: Node, until: int, path: list[tuple[Node, int]]) -> None:
    at, first = until, True
    while True:
        before = [child for child in node.children if first or child.end < at]
        if not before:
            break
        last = max(before, key=lambda child: child.end)
        if at > last.end:
            path.append((node, at - last.end))
        _walk(last, last.end, path)
        at, first = last.begin, False
    if at > node.begin:
        path.append((node, at - node.begin))


def shares(path: Sequence[tuple[Node, int]]) -> dict[str, int]:
    """Microseconds by span name."""
    sums: dict[str, int] = {}
    for node, duration in path:
        sums[node.name] = sums.get(node.name, 0) + duration
    return sums
