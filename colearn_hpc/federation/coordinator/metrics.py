"""Figures for Prometheus, on the loopback address. Off unless asked for; needs ``prometheus_client``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from colearn_hpc.errors import ConfigurationError


def serve_metrics(status: Callable[[], dict[str, Any]], port: int) -> None:
    """Serve them from a thread for the life of the process.

    Args:
        status: tells how the run stands (``Coordinator.status``).
        port: to listen on.

    Raises:
        ConfigurationError: ``prometheus_client`` is not installed, or the port is taken.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    except ImportError as error:
        raise ConfigurationError(
            f"--metrics needs prometheus_client: pip install prometheus_client ({error})"
        ) from None

    class Collector:
        def collect(self) -> Iterator[Any]:
            now = status()
            for key, text in (("bytes_in", "rows received"), ("bytes_out", "means sent")):
                yield CounterMetricFamily(f"colearn_{key}", f"Bytes of {text}.", now[key])
            here = GaugeMetricFamily("colearn_site_state", "1 for the state a site is in.", labels=["site", "state"])
            heard = GaugeMetricFamily("colearn_site_heard_seconds", "Since a site was last heard.", labels=["site"])
            for site in now["sites"]:
                here.add_metric([site["name"], "left out" if site["left_out"] else site["state"]], 1)
                if site["heard_seconds_ago"] is not None:
                    heard.add_metric([site["name"]], site["heard_seconds_ago"])
            yield here
            yield heard

    registry = CollectorRegistry()
    registry.register(Collector())
    try:
        start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        raise ConfigurationError(f"--metrics {port}: {error.strerror}; choose another port") from None
