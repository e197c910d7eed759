"""What the server counts, for Prometheus: ``/metrics``."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_PHOTOS = (1, 2, 4, 8, 16, 32)


class Metrics:
    """The counters of a server. All methods of their members may be called by several threads.

    Attributes:
        requests: answered requests, by method, route and code.
        seconds: from the header of a request to the end of its answer, by route.
        received: bytes of bodies that clients have sent.
        sent: bytes of bodies that clients were sent.
        ended: connections that were ended by the server, by code: 400 for those that did not speak HTTP, 408 for those
            that were too slow, 503 for those that were too many, 0 for those that were closed without an answer.
        photos: photos that clients have sent, by model and by what became of them: "computed", "remembered" (seen
            before), "unreadable".
        pending: photos that are being decoded or wait for the network, by model.
        waiting: of those, decoded photos that wait for the network: the length of its queue, by model.
        batch_photos: photos of a batch of the network, by model.
        batch_seconds: the time that the network takes for a batch, by model.
        loads: times that a model was read from its folder.
        changes: changes of a model that were written.
        classes: classes of a model.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        model = ["model"]

        def counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
            return Counter(f"dist_train_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"dist_train_{name}", text, model, registry=registry)

        def histogram(name: str, text: str, label: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"dist_train_{name}", text, [label], buckets=buckets, registry=registry)

        self.requests = counter("http_requests", "Answered requests", ["method", "route", "code"])
        self.seconds = histogram("http_request_seconds", "Time of a request", "route", _SECONDS)
        self.received = counter("http_received_bytes", "Bytes of bodies that clients have sent")
        self.sent = counter("http_sent_bytes", "Bytes of bodies that clients were sent")
        self.ended = counter("http_connections_ended", "Connections that the server has ended", ["code"])
        self.photos = counter("photos", "Photos that were sent", ["model", "result"])
        self.pending = gauge("pending_photos", "Photos that are not yet through the network")
        self.waiting = gauge("waiting_photos", "Decoded photos that wait for the network")
        self.batch_photos = histogram("batch_photos", "Photos of a batch", "model", _PHOTOS)
        self.batch_seconds = histogram("batch_seconds", "Time of a batch", "model", _SECONDS)
        self.loads = counter("model_loads", "Times that a model was read", model)
        self.changes = counter("model_changes", "Changes of a model that were written", model)
        self.classes = gauge("classes", "Classes of a model")

    def text(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self._registry)
