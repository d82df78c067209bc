"""What a hub counts. The hot path adds to plain integers; Prometheus reads them when it asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Counts:
    """The counters of one hub."""

    def __init__(self) -> None:
        self.deliveries = 0
        self.window_stalls = 0
        self.resumes = 0
        self.restarts = 0
        self.repairs = 0
        self.holes = 0
        self.log_reads = 0
        self.rejected = 0
        self.registry = CollectorRegistry()
        self._first_token = Histogram(
            "headrace_time_to_first_token_seconds",
            "From accepting a request to its first content on this hub.",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.first_token: Callable[[float], None] = self._first_token.observe
        self.gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self.lane_depths: dict[str, int] = {}
        self.provider_levels: Callable[[], Mapping[str, int]] = dict
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        for name, value, text in (
            ("headrace_deliveries", self.deliveries, "Frames with entries written to viewers."),
            ("headrace_window_stalls", self.window_stalls, "Times a viewer had no window left."),
            ("headrace_resumes", self.resumes, "Attaches with a cursor that fitted."),
            ("headrace_restarts", self.restarts, "Attaches with a cursor of another history."),
            ("headrace_repairs", self.repairs, "Streams that the reconcile pass had to repair."),
            ("headrace_holes", self.holes, "Parts that did not fit a tail; the log was read."),
            ("headrace_log_reads", self.log_reads, "Pages read from logs, for viewers and repairs."),
            ("headrace_rejected", self.rejected, "Requests answered with an error."),
        ):
            yield CounterMetricFamily(name, text, value=value)
        for name, (text, read) in self.gauges.items():
            yield GaugeMetricFamily(name, text, value=read())
        depth = GaugeMetricFamily("headrace_lane_depth", "Requests that wait for a worker.", labels=["lane"])
        for lane, value in self.lane_depths.items():
            depth.add_metric([lane], value)
        yield depth
        level = GaugeMetricFamily("headrace_provider", "2 healthy, 1 degraded, 0 down.", labels=["provider"])
        for provider, value in self.provider_levels().items():
            level.add_metric([provider], value)
        yield level

    def exposition(self) -> bytes:
        return generate_latest(self.registry)
