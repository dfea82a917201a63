"""What a load Job runs: `run_load.py FOLDER ARGUMENTS...` is `loadgen run ARGUMENTS`, and hands the results over.

A pod that has ended can only be asked for its log, so the results go there, after the report: an archive as text
between two marks, which `make loadtest` takes out again. Exit status: that of the run.
"""

from __future__ import annotations

import base64
import io
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from types import FrameType

BEGIN, END = "----- results, tar.xz in base64 -----", "----- end of results -----"
# Kubernetes cuts a log at 10 MiB by default, and the oldest part goes.
MOST_BYTES = 7 * 1024 * 1024
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


def main(argv: list[str]) -> int:
    """See the module."""
    folder = Path(argv[0])
    run = subprocess.Popen([sys.executable, "-m", "loadgen", "run", *argv[1:], "--out", str(folder)])  # noqa: S603 # ours

    def stop(number: int, _: FrameType | None) -> None:
        run.send_signal(number)  # it keeps what is finished

    signal.signal(signal.SIGTERM, stop)
    status = run.wait()
    if (folder / NEEDED).exists():
        data, left_out = archive(folder)
        for name in left_out:
            print(f"{name} is too large for the log and was left out; load.resultsClaim keeps it")
        print(BEGIN)
        print(base64.encodebytes(data).decode(), end="")
        print(END, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
