"""A real Jaeger (v2), in memory, on loopback: the official image, or built once from its source by Go.

It takes OTLP over gRPC and HTTP, and answers the query API that its page uses. The page itself is only in the image:
it is not in the source that the Go module proxy has.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import stat
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from services.local import jars
from services.local.broker import container_engine
from services.local.errors import LocalStackError
from services.local.ports import free_ports
from services.local.processes import Process

VERSION = "2.13.0"
# Jaeger 2.13.0 is tagged as a module under its old numbering.
MODULE = "github.com/jaegertracing/jaeger@v1.76.0"
IMAGE = f"docker.io/jaegertracing/jaeger:{VERSION}"
DOWNLOAD = f"Jaeger {VERSION}'s source and what it is made of, about 500 MB, by Go; five to ten minutes, once"
OTLP_GRPC, QUERY, OTLP_HTTP = 4317, 16686, 4318

_BUILD_S = 3600
# Clock-skew adjustment would move spans about until they fit: off, as all times are of one clock per tree anyway.
_CONFIG = """\
service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines:
    traces:
      receivers: [otlp]
      exporters: [jaeger_storage_exporter]
  telemetry:
    metrics:
      level: none
    logs:
      level: warn
extensions:
  jaeger_query:
    storage:
      traces: memory
    max_clock_skew_adjust: 0s
    http:
      endpoint: "127.0.0.1:{query}"
    grpc:
      endpoint: "127.0.0.1:{query_grpc}"
  jaeger_storage:
    backends:
      memory:
        memory:
          max_traces: 100000
receivers:
  otlp:
    protocols:
      grpc:
        endpoint: "127.0.0.1:{otlp_grpc}"
        max_recv_msg_size_mib: 64
      http:
        endpoint: "127.0.0.1:{otlp_http}"
exporters:
  jaeger_storage_exporter:
    trace_storage: memory
"""


def cache() -> Path:
    """Where the built binary is kept."""
    return jars.cache().parent / f"jaeger-{VERSION}"


def binary() -> Path | None:
    """The built one; None where there is none yet."""
    path = cache() / "jaeger"
    return path if path.exists() else None


def build(say: Callable[[str], None] = lambda _: None) -> Path:
    """Build it, if need be; safe against interruption and a second process. Raises `LocalStackError`."""
    found = binary()
    if found is not None:
        return found
    go = shutil.which("go")
    if go is None:
        raise LocalStackError(
            "Go is missing, which builds Jaeger; on Debian: apt install golang-go (1.21 or later, which fetches the "
            "version that Jaeger wants); or start docker or podman, whose image also has Jaeger's page; "
            "or send spans to a Jaeger of yours: --spans otlp://host:port"
        )
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = binary()
        if found is not None:  # another process was faster
            return found
        say(f"fetching {DOWNLOAD}")
        module = json.loads(_go(go, ["mod", "download", "-json", MODULE], folder))
        with tempfile.TemporaryDirectory(dir=folder) as work:
            source = Path(work) / "source"
            # The module cache is read-only, and Jaeger builds only as the main module: by its own go.mod and go.sum.
            shutil.copytree(module["Dir"], source)
            for path in (source, *source.rglob("*")):
                path.chmod(path.stat().st_mode | stat.S_IWUSR)
            say("building Jaeger")
            _go(go, ["build", "-trimpath", "-ldflags", "-s -w", "-o", f"{work}/jaeger", "./cmd/jaeger"], source)
            (Path(work) / "jaeger").rename(folder / "jaeger")
    return folder / "jaeger"


def _go(go: str, arguments: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(  # noqa: S603 # what `which` found
            [go, *arguments], cwd=folder, capture_output=True, text=True, timeout=_BUILD_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise LocalStackError(f"go {arguments[0]} did not end within {_BUILD_S} s") from None
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise LocalStackError(f"Jaeger cannot be built, go {arguments[0]} says:\n" + "\n".join(lines[-10:]))
    return done.stdout


class Jaeger:
    """One Jaeger. `otlp`: where spans go, as `--spans` takes it; `url`: its query API and, in the image, its page."""

    def __init__(self, folder: Path, *, usual_ports: bool = False) -> None:
        """`folder`: for its configuration and log. `usual_ports`: 4317, 16686 and 4318, where they are free."""
        self._folder = folder
        self._process: Process | None = None
        usual = (OTLP_GRPC, QUERY, OTLP_HTTP) if usual_ports else (0, 0, 0)
        self._otlp_grpc, self._query, self._otlp_http = (free_ports(1, port)[0] for port in usual)
        self.otlp = f"otlp://127.0.0.1:{self._otlp_grpc}"
        self.otlp_http = f"http://127.0.0.1:{self._otlp_http}"
        self.url = f"http://127.0.0.1:{self._query}"
        self.has_page = False

    @property
    def pid(self) -> int | None:
        """Of its process, if it runs."""
        return self._process.pid if self._process is not None and self._process.running() else None

    def ended(self) -> str | None:
        """A report if it was started and has ended."""
        return None if self._process is None or self._process.running() else self._process.exit_report()

    def start(self, deadline_s: float = 60.0, say: Callable[[str], None] = lambda _: None) -> None:
        """Start it (fetch or build it, first), and wait until it answers. Raises `LocalStackError`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "jaeger.yaml"
        [internal] = free_ports(1)
        config.write_text(
            _CONFIG.format(
                query=self._query, query_grpc=internal, otlp_grpc=self._otlp_grpc, otlp_http=self._otlp_http
            ),
            encoding="utf-8",
        )
        log = self._folder / "jaeger.log"
        engine = container_engine()
        if engine is not None:
            say(f"starting {IMAGE}")
            self.has_page = True
            self._process = self._launch_container(engine, config, log)
            deadline_s += 300  # to pull it
        else:
            self._process = Process("jaeger", [str(build(say)), "--config", str(config)], log)
        deadline = time.monotonic() + deadline_s
        while not self._answers():
            if not self._process.running():
                raise LocalStackError(self._process.exit_report())
            if time.monotonic() > deadline:
                raise LocalStackError(f"Jaeger at {self.url} does not answer within {deadline_s:.0f} s; see {log}")
            time.sleep(0.05)

    def _launch_container(self, engine: str, config: Path, log: Path) -> Process:
        """The official image. Has not run on a machine of ours yet."""
        command = [engine, "run", "--rm", "--init", "--network", "host", "--name", f"beyond-jaeger-{self._query}"]
        mounts = ["-v", f"{config.resolve()}:/jaeger.yaml:ro"]
        return Process("jaeger", [*command, *mounts, IMAGE, "--config", "/jaeger.yaml"], log)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/api/services", timeout=2) as answer:  # noqa: S310 # loopback
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError, ValueError):
            return False

    def stop(self, deadline_s: float = 10.0) -> None:
        """May be called twice."""
        if self._process is not None:
            self._process.stop(deadline_s)
