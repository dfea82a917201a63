"""A grid on this machine: the local stack, started anew for each point."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from loadgen import report_html, scrape
from loadgen.errors import PlanError
from loadgen.experiment import Deployment, carry_out, save
from loadgen.plan import Plan
from loadgen.progress import Display
from loadgen.samples import Sample
from loadgen.scale import Point, until
from loadgen.scrape import Served
from loadgen.target import OipTarget, image_tensor
from services.accounting import monotonic_ns
from services.errors import ServiceError
from services.local.deployments import TABLE, Options, Replicas
from services.local.stack import Stack

# Until each replica has answered: a consumer that joins late waits for the group's next turn.
_BALANCE_S = 60.0
_TRIES = 8  # requests per replica and try


class Here:
    """See `Site`."""

    def __init__(
        self,
        plan: Plan,
        samples: Mapping[str, Sequence[Sample]],
        transport: str,
        options: Options,
        folder: Path,
        report: Display,
        kafka: str | None = None,
        redis: str | None = None,
    ) -> None:
        """`folder`: the stack's record, logs and broker's data. Raises `PlanError` for an unknown transport."""
        if transport not in TABLE:
            raise PlanError(f"--transport '{transport}' is none of {', '.join(TABLE)}")
        self._plan = plan
        self._samples = samples
        self._transport = transport
        self._options = options
        self._folder = folder
        self._report = report
        self._kafka, self._redis = kafka, redis
        self._stack: Stack | None = None

    def change(self, point: Point) -> None:
        """See `Site.change`."""
        if not TABLE[self._transport].remote(self._options) and point.inference != 1:
            raise PlanError(f"{self._transport} has its engine in the door's process: --inference can only be 1")
        self.close()
        self._stack = Stack(
            [self._transport],
            self._options,
            self._folder,
            kafka=self._kafka,
            redis=self._redis,
            say=lambda what: self._report(what, 0, 0),
            replicas=Replicas(*point),
        )
        self._stack.start()
        self._balance(self._stack)

    def _balance(self, stack: Stack) -> None:
        """Ask until every replica has answered."""
        sample = next(iter(self._samples.values()))[0]
        target = OipTarget(stack.doors()[self._transport], self._plan.task, self._plan.timeout_s)
        idle: list[str] = []
        try:
            until(lambda: self._ask(target, sample, idle), _BALANCE_S, lambda: f"no work reaches {', '.join(idle)}")
        finally:
            target.close()

    def _ask(self, target: OipTarget, sample: Sample, idle: list[str]) -> bool:
        before = self.served()
        tensor = image_tensor(sample.data)
        asked = [target.send(tensor, f"balance-{i}", monotonic_ns()) for i in range(_TRIES * len(before))]
        for exchange in asked:
            exchange.result(self._plan.timeout_s + 1)
        after = self.served()
        idle[:] = [name for name, count in after.items() if count.requests == before[name].requests]
        return not idle

    def carry_out(self, point: Point, folder: Path) -> None:
        """See `Site.carry_out`."""
        stack = self._running()
        door = Deployment(
            f"grpc://{stack.doors()[self._transport]}",
            {"client": os.getpid(), **stack.pids(self._transport)},
            stack.metrics(self._transport),
        )
        finished = carry_out(self._plan, {point.name: door}, self._samples, self._report)
        save(finished, folder)
        report_html.write(finished.run, folder / "report.html")
        if finished.run["interrupted"]:
            raise KeyboardInterrupt

    def served(self) -> Mapping[str, Served]:
        """See `Site.served`."""
        found = {}
        for url in self._running().metrics(self._transport):
            try:
                found[url.removeprefix("http://").partition("/")[0]] = scrape.served(scrape.read(url))
            except (OSError, ValueError) as error:
                raise ServiceError(f"{url}: {error}") from None
        return found

    def _running(self) -> Stack:
        if self._stack is None:
            raise ServiceError("nothing was started yet")
        return self._stack

    def close(self) -> None:
        """See `Site.close`."""
        if self._stack is not None:
            self._report("stopping the suite", 0, 0)
            self._stack.stop()
            self._stack = None
