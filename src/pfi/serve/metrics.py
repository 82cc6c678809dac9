"""Counts and times for Prometheus: no texts, no profiles and no tokens among them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from pfi.serve.service import Service

if TYPE_CHECKING:
    from starlette.types import Scope

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_NOW = {
    "running": "requests that are being decoded",
    "waiting": "requests that wait for a row",
    "adapters": "adapters that are loaded",
}
_SO_FAR = {
    "prompt_tokens": "tokens of prompts",
    "cached_tokens": "of these, tokens that came from the prefix cache",
    "new_tokens": "tokens that were decoded",
    "adapter_loads": "adapters that were read",
}


class Metrics:
    """The server's counts since it started."""

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "pfi_requests", "requests", ["path", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "pfi_request_seconds",
            "time from a request to the end of its response",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._first = Histogram(
            "pfi_first_token_seconds",
            "time from a request to the first token of its answer",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.answering = Gauge(
            "pfi_answering", "requests that are being answered", registry=self._registry
        )
        self._registry.register(_Engines(service))

    def request(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request that has ended; status 0: the client went before it was answered."""
        # The route's own path: what clients write has no end of variants.
        path = str(getattr(scope.get("route"), "path", "other"))
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def first_token(self, seconds: float) -> None:
        """Note how long a first token took."""
        self._first.observe(seconds)

    def text(self) -> tuple[bytes, str]:
        """What Prometheus reads, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _Engines(Collector):
    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> list[Metric]:
        return []  # so that registering asks no engine

    def collect(self) -> Iterator[Metric]:
        stats = [asdict(one) for one in self._service.stats()]
        for name, what in _NOW.items():
            value = sum(one[name] for one in stats)
            yield GaugeMetricFamily(f"pfi_engine_{name}", what, value=value)
        for name, what in _SO_FAR.items():
            value = sum(one[name] for one in stats)
            yield CounterMetricFamily(f"pfi_engine_{name}", what, value=value)
