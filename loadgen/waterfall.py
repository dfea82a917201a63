"""One request in the terminal: a row per part of its time, in the order in which the parts were accounted.

From a run's files (`run.json`, `requests.csv`), or from a Jaeger's query API. Exact nanoseconds, not a display's
microseconds: of a span they are in its attribute, because Jaeger keeps microseconds.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from loadgen.errors import PlanError

# As services.tracing names them; a reader of stored spans depends on the names, not on the writer.
_NAMESPACE = "beyond."
_EXACT = "beyond.duration_ns"
_CPU = "beyond.cpu_ns"
_STAGE = "beyond.stage"
# What else is known of a part, in this order; durations among it overlap the parts.
_FACTS = (
    *(
        "system",
        "destination",
        "partition",
        "offset",
        "attempt",
        "request_bytes",
        "reply_bytes",
        "publish_ns",
        "age_ns",
    ),
    *("batch_size", "batch_id"),
)
_TRACE_ID = 32
_BAR = 40
_TIMEOUT_S = 10.0
_MOST_BYTES = 64 << 20  # of a trace: what a stranger answers is bounded


class Row(NamedTuple):
    """A part of a request. Nanoseconds, `start_ns` from the request's begin; `cpu_ns` None where it is not known.

    `depth`: how many spans it is within. `exact`: False for a span of which only microseconds are known. `facts`: what
    else is known of it, by the names of `services.accounting.Fact`.
    """

    name: str
    start_ns: int
    duration_ns: int
    cpu_ns: int | None = None
    depth: int = 0
    exact: bool = True
    facts: Mapping[str, int | str] = {}


class Request(NamedTuple):
    """`where_from`: what is said of it. `total_ns` of all; `rows` in order."""

    title: str
    total_ns: int
    rows: Sequence[Row]
    notes: Sequence[str] = ()


def names_of_rows(parts: Sequence[tuple[str, str]]) -> list[str]:
    """`stage @ where` for each (stage, where); what occurs more than once says what it came after."""
    counts = Counter(parts)
    names = []
    for index, (stage, where) in enumerate(parts):
        after = f" after {parts[index - 1][0]}" if counts[stage, where] > 1 and index else ""
        names.append(f"{stage}{after} @ {where}")
    return names


def render(request: Request, width: int = 120) -> str:
    """Lines for a terminal of `width` columns: name, exact nanoseconds, share, and a bar on the request's scale."""
    names = [f"{'  ' * row.depth}{row.name}" for row in request.rows]
    left = max([len(name) for name in names] + [5])
    digits = max([len(f"{row.duration_ns:,}") for row in request.rows] + [len(f"{request.total_ns:,}")])
    bar = max(10, min(_BAR, width - left - 2 * digits - 18))
    lines = [request.title, ""]
    lines.append(f"{'':<{left}}  {'ns':>{digits}}  {'CPU ns':>{digits}}  {'share':>6}")
    for name, row in zip(names, request.rows, strict=True):
        cpu = "" if row.cpu_ns is None else f"{row.cpu_ns:,}"
        share = f"{row.duration_ns / request.total_ns:.1%}" if request.total_ns > 0 else ""
        exact = " " if row.exact else "~"
        lines.append(
            f"{name:<{left}} {exact}{row.duration_ns:>{digits},}  {cpu:>{digits}}  {share:>6}  "
            f"{_drawn(row, request.total_ns, bar)}".rstrip()
        )
    lines.append(f"{'total':<{left}}  {request.total_ns:>{digits},}")
    notes = [*request.notes, *_told(request.rows)]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _told(rows: Sequence[Row]) -> list[str]:
    """Lines of facts. Over a broker, on one clock, how long the message lay there is the difference of two of them."""
    lines = []
    for row in rows:
        said = [f"{n} {v:,}" if n.endswith(("_ns", "_bytes")) else f"{n} {v}" for n, v in row.facts.items()]
        if said:
            lines.append(f"  {row.name}: {', '.join(said)}")
    if not lines:
        return []
    published = [int(row.facts["publish_ns"]) for row in rows if "publish_ns" in row.facts]
    # The age of a request is told by who received it, beside the record's place; a reply's is told by the hop.
    ages = [int(row.facts["age_ns"]) for row in rows if "age_ns" in row.facts and "partition" in row.facts]
    if len(published) == len(ages) == 1:
        lines.append(
            f"  so the consumer had the record {ages[0]:,} ns after it was handed over, "
            f"and {ages[0] - published[0]:,} ns after the sender knew that the broker has it"
        )
    return ["facts of parts, which overlap them and are in no sum:", *lines]


def _drawn(row: Row, total_ns: int, width: int) -> str:
    """A bar from where the part begins; what is too short to be seen is a dot."""
    if total_ns <= 0:
        return ""
    first = max(0, round(row.start_ns / total_ns * width))
    last = min(width, round((row.start_ns + row.duration_ns) / total_ns * width))
    return " " * min(first, width - 1) + ("#" * (last - first) if last > first else ".")


# --- from a run's files ----------------------------------------------------------------------------------------------


def from_run(folder: Path, wanted: str) -> Request:
    """The request whose trace id, traceparent or id is `wanted`. Raises `PlanError`.

    An exemplar of run.json has its tiles one by one; of every other request requests.csv has sums by stage and place.
    """
    path = folder / "requests.csv"
    exemplar = _exemplar(folder / "run.json", wanted)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for record in csv.DictReader(file):
                if wanted in (record.get("id"), record.get("traceparent"), _trace_id(record.get("traceparent") or "")):
                    return _stored(record, exemplar)
    except OSError as error:
        raise PlanError(
            f"{path} cannot be read: {error.strerror or error}; give --run a run's folder, or a --jaeger"
        ) from None
    except (csv.Error, UnicodeDecodeError, ValueError, KeyError) as error:
        raise PlanError(f"{path} is no file of requests: {error}; it is written beside run.json") from None
    raise PlanError(f"{path} has no request '{wanted}'; take a trace id, a traceparent or an id from it")


def _trace_id(traceparent: str) -> str:
    parts = traceparent.split("-")
    return parts[1] if len(parts) == 4 else ""


def _exemplar(path: Path, wanted: str) -> Mapping[str, Any] | None:
    """The exemplar of that trace, if run.json has it."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        for cell in run["cells"]:
            for exemplar in (cell.get("exemplars") or {}).values():
                if wanted in (exemplar["id"], exemplar["traceparent"], _trace_id(exemplar["traceparent"])):
                    return dict(exemplar)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # requests.csv has the request all the same
    return None


def _stored(record: Mapping[str, str], exemplar: Mapping[str, Any] | None) -> Request:
    total = int(record["total_ns"])
    error = f", failed: {record['error']}" if record["error"] else ""
    title = f"{record['id']}  {record['target']}, {record['size']}, {record['load']}{error}  {record['traceparent']}"
    if exemplar is not None and exemplar["id"] == record["id"]:
        parts = [
            (
                str(tile["stage"]),
                str(tile["where"]),
                round(tile["ms"] * 1e6),
                None if tile["cpu_ms"] is None else round(tile["cpu_ms"] * 1e6),
            )
            for tile in exemplar["tiles"]
        ]
        facts = [_facts(tile.get("facts", {})) for tile in exemplar["tiles"]]
        notes: list[str] = []
    else:
        parts = list(_sums(record))
        facts = [{} for _ in parts]
        notes = [
            "of this request the sums by stage and place were kept, not their order: see the exemplars in run.json"
        ]
    names = names_of_rows([(stage, where) for stage, where, _, _ in parts])
    rows, start = [], 0
    for name, (_, _, duration, cpu), known in zip(names, parts, facts, strict=True):
        rows.append(Row(name, start, duration, cpu, facts=known))
        start += duration
    return Request(title, total, rows, notes)


def _facts(found: Mapping[str, Any], prefix: str = "") -> dict[str, int | str]:
    """Those that have names of ours."""
    return {name: found[prefix + name] for name in _FACTS if isinstance(found.get(prefix + name), int | str)}


def _sums(record: Mapping[str, str]) -> Iterator[tuple[str, str, int, int | None]]:
    for column, text in record.items():
        if "@" not in column or not column.endswith("_ns") or column.endswith("_cpu_ns") or not int(text):
            continue
        name = column.removesuffix("_ns")
        stage, _, where = name.partition("@")
        cpu = record.get(f"{name}_cpu_ns")
        yield stage, where, int(text), int(cpu) if cpu else None


# --- from Jaeger -----------------------------------------------------------------------------------------------------


def from_jaeger(url: str, trace_id: str) -> Request:
    """The trace `trace_id` (32 hexadecimal digits) from the query API at `url`. Raises `PlanError`."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise PlanError(f"--jaeger '{url}' is not http://host:port; the query API is on port 16686")
    if len(trace_id) != _TRACE_ID or not set(trace_id) <= set("0123456789abcdef"):
        raise PlanError(f"'{trace_id}' is no trace id; give its 32 hexadecimal digits (requests.csv has them)")
    address = f"{url.rstrip('/')}/api/traces/{trace_id}"
    try:
        with urlopen(address, timeout=_TIMEOUT_S) as answer:  # noqa: S310 # the scheme was checked
            content = answer.read(_MOST_BYTES)
    except HTTPError as error:
        if error.code == 404:
            raise PlanError(
                f"{url} has no trace {trace_id}; was it sampled (--sample-ratio), and sent there (--spans)?"
            ) from None
        raise PlanError(f"{url} answered {error.code} {error.reason}; is it the query API of a Jaeger?") from None
    except (URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise PlanError(f"{url} does not answer: {reason}; start a Jaeger, or read a run's files (--run)") from None
    try:
        found = json.loads(content)["data"][0]
        return _trace(found, trace_id)
    except IndexError:
        raise PlanError(f"{url} has no trace {trace_id}; was it sampled (--sample-ratio), and sent there?") from None
    except (ValueError, KeyError, TypeError) as error:
        raise PlanError(f"{url} answered what no Jaeger does ({error!r}); is it the query API?") from None


def _trace(found: Mapping[str, Any], trace_id: str) -> Request:
    """Spans in the order of the tree; a parent's children by their begin."""
    spans = found["spans"]
    ids = {span["spanID"] for span in spans}
    services = {name: process["serviceName"] for name, process in found["processes"].items()}
    children: dict[str | None, list[Mapping[str, Any]]] = {}
    orphans = 0
    for span in spans:
        parent = next((r["spanID"] for r in span.get("references", []) if r["refType"] == "CHILD_OF"), None)
        orphans += parent is not None and parent not in ids
        children.setdefault(parent if parent in ids else None, []).append(span)
    roots = sorted(children.get(None, []), key=lambda span: span["startTime"])
    begin = roots[0]["startTime"]
    rows: list[Row] = []
    stack = [(span, 0) for span in reversed(roots)]
    seen: set[str] = set()
    while stack:
        span, depth = stack.pop()
        if span["spanID"] in seen:
            continue
        seen.add(span["spanID"])
        tags = {tag["key"]: tag["value"] for tag in span.get("tags", [])}
        exact = tags.get(_EXACT)
        cpu = tags.get(_CPU)
        rows.append(
            Row(
                f"{tags.get(_STAGE, span['operationName'])} @ {services[span['processID']]}",
                (span["startTime"] - begin) * 1000,
                span["duration"] * 1000 if exact is None else int(exact),
                None if cpu is None else int(cpu),
                depth,
                exact is not None,
                _facts(tags, _NAMESPACE) if _STAGE in tags else {},
            )
        )
        below = sorted(children.get(span["spanID"], []), key=lambda child: child["startTime"])
        stack += [(child, depth + 1) for child in reversed(below)]
    notes = (
        ["~ in microseconds, as Jaeger keeps it: the span has no exact duration"]
        if any(not row.exact for row in rows)
        else []
    )
    if orphans:
        notes.append(f"{orphans} spans have a parent that is not in the trace: it is not whole")
    return Request(f"trace {trace_id}, {len(rows)} spans", rows[0].duration_ns, rows, notes)
