"""What a load Job runs: `run_load.py FOLDER ARGUMENTS...` is `loadgen run ARGUMENTS`, and hands the results over.

A pod that has ended can only be asked for its log, so the results go there, after the report: an archive as text
between two marks, which `make loadtest` takes out again. Exit status: that of the run; 1 where its
results cannot be handed over, 2 where the pod's part is not told.

One of several pods (LOAD_PARTS) sends the part that its index among them says (JOB_COMPLETION_INDEX, from 0).
"""

from __future__ import annotations

import base64
import io
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

BEGIN, END = "----- results, tar.xz in base64 -----", "----- end of results -----"
# Kubernetes cuts a log at 10 MiB by default, and the oldest part goes.
MOST_BYTES = 7 * 1024 * 1024
_LINE = 8192
# Exit statuses of its own, beside those of a run.
BROUGHT_NOTHING, WRONG = 1, 2
# The page and the tables are made anew from them; the rows of all requests are what may be too much.
NEEDED, IF_ROOM = "run.json", "requests.csv"


def archive(folder: Path, most_bytes: int = MOST_BYTES) -> tuple[bytes, list[str]]:
    """The results as an archive of at most `most_bytes`, where they fit; and what was left out."""
    whole = _archive(folder, [NEEDED, IF_ROOM])
    if len(whole) <= most_bytes:
        return whole, []
    return _archive(folder, [NEEDED]), [IF_ROOM]


def _archive(folder: Path, names: list[str]) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:xz") as tar:
        for name in names:
            if (folder / name).exists():
                tar.add(folder / name, arcname=name)
    return held.getvalue()


def text(data: bytes) -> str:
    """In base64. A node adds some 40 bytes to each line of a log, so lines are long."""
    whole = base64.b64encode(data).decode()
    return "\n".join(whole[i : i + _LINE] for i in range(0, len(whole), _LINE))


def part_of(environment: Mapping[str, str]) -> str | None:
    """The part that this pod sends, as 2/3; None where it sends all."""
    if "LOAD_PARTS" not in environment:
        return None
    return f"{int(environment['JOB_COMPLETION_INDEX']) + 1}/{int(environment['LOAD_PARTS'])}"


def main(argv: list[str]) -> int:
    """See the module."""
    folder, flags = Path(argv[0]), argv[1:]
    try:
        part = part_of(os.environ)
    except (KeyError, ValueError) as error:
        print(f"LOAD_PARTS and JOB_COMPLETION_INDEX do not say which part this pod sends: {error!r}", file=sys.stderr)
        return WRONG
    if part is not None:
        # A claim may be of all of them.
        folder = folder.with_name(f"{folder.name}-{part.replace('/', '-of-')}")
        flags = [*flags, "--part", part]
    run = subprocess.Popen([sys.executable, "-m", "loadgen", "run", *flags, "--out", str(folder)])  # noqa: S603 # ours

    def stop(number: int, _: FrameType | None) -> None:
        run.send_signal(number)  # it keeps what is finished

    signal.signal(signal.SIGTERM, stop)
    status = run.wait()
    if (folder / NEEDED).exists():
        try:
            data, left_out = archive(folder)
        except OSError as error:
            print(f"the results in {folder} cannot be handed over: {error}", file=sys.stderr)
            return status or BROUGHT_NOTHING
        for name in left_out:
            print(f"{name} is too large for the log and was left out; load.resultsClaim keeps it")
        print(BEGIN)
        print(text(data))
        print(END, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
