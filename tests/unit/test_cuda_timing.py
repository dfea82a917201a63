"""Times of a device's events as parts of the host's wall time; the events here are fakes with given times."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from services.accounting import UNKNOWN_CPU, Stage, Timeline, total_ns
from services.cuda_timing import DeviceMarks, boundaries

STAGES = (Stage.UPLOAD, Stage.INFER, Stage.DOWNLOAD)


class FakeClock:
    """Nanoseconds; moved by hand."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000

    def __call__(self) -> int:
        return self.ns


class FakeEvent:
    """Stamped, when it is waited for, with the next of the given times of the device, in ms."""

    def __init__(self, times: Iterator[float], clock: FakeClock, wait_ns: int) -> None:
        self._times = times
        self._clock = clock
        self._wait_ns = wait_ns
        self.ms = 0.0
        self.streams: list[object] = []

    def record(self, stream: object = None) -> None:
        self.streams.append(stream)
        self.ms = next(self._times)

    def synchronize(self) -> None:
        self._clock.ns += self._wait_ns

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.ms - self.ms


def tiles(times: list[float], prepared_ns: int, wait_ns: int, after_ns: int = 0) -> Timeline:
    """A batch whose events the device stamps at `times`: the host prepared before, waited, and copied after."""
    clock = FakeClock()
    given_times = iter(times)
    marks = DeviceMarks(lambda: FakeEvent(given_times, clock, wait_ns), clock)
    timeline = Timeline("inference", clock=clock, cpu_clock=lambda: 0)
    clock.ns += prepared_ns
    marks.begin("stream")
    for stage in STAGES:
        marks.mark(stage, "stream")
    marks.wait()
    clock.ns += after_ns
    marks.cut(timeline)
    return timeline


def test_the_devices_times_divide_the_hosts_interval() -> None:
    # Given 1 ms of preparation, then 6 ms until the thread has its results, of which the device says 2 + 3 + 0.5
    timeline = tiles([100.0, 102.0, 105.0, 105.5], prepared_ns=1_000_000, wait_ns=5_900_000, after_ns=100_000)
    # Then preparation is upload's, inference is exactly the device's, and the rest is download's
    assert [(tile.stage, tile.duration_ns) for tile in timeline.tiles] == [
        (Stage.UPLOAD, 3_000_000),
        (Stage.INFER, 3_000_000),
        (Stage.DOWNLOAD, 1_000_000),
    ]
    # And the thread, which only waited, is not said to have stalled
    assert {tile.cpu_ns for tile in timeline.tiles} == {UNKNOWN_CPU}


@given(
    st.lists(st.floats(-1, 20, allow_nan=False), min_size=3, max_size=3),
    st.integers(0, 10_000_000),
    st.integers(0, 30_000_000),
    st.integers(0, 1_000_000),
)
def test_the_tiles_are_integers_sum_exactly_and_are_never_negative(
    steps: list[float], prepared_ns: int, wait_ns: int, after_ns: int
) -> None:
    # Given any times of a device, also such as its host's clock has no room for
    times = [5.0]
    for step in steps:
        times.append(times[-1] + step)
    timeline = tiles(times, prepared_ns, wait_ns, after_ns)
    assert [tile.stage for tile in timeline.tiles] == list(STAGES)
    assert all(isinstance(tile.duration_ns, int) and tile.duration_ns >= 0 for tile in timeline.tiles)
    assert total_ns(timeline.tiles) == timeline.total_ns == prepared_ns + wait_ns + after_ns


def test_events_are_used_again() -> None:
    made: list[FakeEvent] = []
    clock = FakeClock()

    def new() -> FakeEvent:
        made.append(FakeEvent(iter(range(100)), clock, 10))
        return made[-1]

    marks = DeviceMarks(new, clock)
    for stream in ("one", "two"):
        marks.begin(stream)
        for stage in STAGES:
            marks.mark(stage, stream)
        marks.wait()
        marks.cut(Timeline("inference", clock=clock))
    assert len(made) == 4
    assert all(event.streams == ["one", "two"] for event in made)


def test_fewer_stages_than_before_leave_no_trace_of_those() -> None:
    clock = FakeClock()
    times = iter([0.0, 1.0, 2.0, 3.0, 10.0, 14.0])
    marks = DeviceMarks(lambda: FakeEvent(times, clock, 5_000_000), clock)
    marks.begin(None)
    for stage in STAGES:
        marks.mark(stage, None)
    timeline = Timeline("preprocess", clock=clock)
    marks.begin(None)
    marks.mark(Stage.DECODE, None)
    marks.wait()
    marks.cut(timeline)
    assert [(tile.stage, tile.duration_ns) for tile in timeline.tiles] == [(Stage.DECODE, 5_000_000)]


def test_boundaries_stay_within_the_interval() -> None:
    assert boundaries(100, 200, [0.00003, 0.00004]) == [130, 170]
    assert boundaries(100, 200, [0.00003, 0.5]) == [130, 200]
    assert boundaries(100, 200, [-1.0, 0.00004]) == [100, 140]
