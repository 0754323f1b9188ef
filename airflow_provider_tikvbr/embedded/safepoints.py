"""PD's GC safe points, and the services that hold GC back for a while."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from airflow_provider_tikvbr.embedded.state import ClusterState

GC_WORKER = "gc_worker"
FOREVER = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class ServiceSafePoint:
    """What one service asks to keep.

    :param safe_point: timestamp; nothing newer may be collected.
    :param expires_at: second since the epoch from which on it no longer counts.
    """

    service_id: str
    safe_point: int
    expires_at: int


class SafePoints:
    """GC safe points as PD keeps them.

    Up to version 8 the smallest live service safe point is answered and a lower one refused; from version 9 on services
    are barriers behind a safe point of ``gc_worker``, which is always the one answered (PD,
    ``server/grpc_service.go`` and ``pkg/gc/gc_state_manager.go``).

    :param state: where they are kept.
    :param clock: seconds since the epoch.
    :param barriers: behave like PD 9.
    """

    def __init__(self, *, state: ClusterState, clock: Callable[[], float], barriers: bool) -> None:
        self._state = state
        self._clock = clock
        self._barriers = barriers
        self._services = {
            name: ServiceSafePoint(name, value["safe_point"], value["expires_at"])
            for name, value in state.read("service_safe_point").items()
        }
        if GC_WORKER not in self._services:
            self._put(ServiceSafePoint(GC_WORKER, 0, FOREVER))
        self.gc_safe_point = int(state.read("gc_safe_point").get("value", 0))

    def services(self) -> dict[str, ServiceSafePoint]:
        """The live ones by service, without PD's own ``gc_worker``."""
        self._expire()
        return {name: s for name, s in self._services.items() if name != GC_WORKER}

    @property
    def worker(self) -> ServiceSafePoint:
        """PD's own, which never expires."""
        return self._services[GC_WORKER]

    def update_gc(self, safe_point: int) -> int:
        """Move the GC safe point forward; it never goes back.

        :return: where it stands now.
        """
        if safe_point > self.gc_safe_point:
            self.gc_safe_point = safe_point
            self._state.write("gc_safe_point", [("value", safe_point)])
            worker = self._services[GC_WORKER]
            if worker.safe_point < safe_point:
                self._put(ServiceSafePoint(GC_WORKER, safe_point, FOREVER))
        return self.gc_safe_point

    def update_service(self, service_id: str, ttl_s: int, safe_point: int) -> ServiceSafePoint:
        """Set, refresh or (with a time to live of 0 or less) remove the safe point of a service.

        :return: the safe point that holds GC back: the caller's is in force if it is not below that.
        :raises ValueError: the service is ``gc_worker`` and would not stay for ever, or has no name.
        """
        if not service_id:
            raise ValueError("service id of service safepoint cannot be empty")
        self._expire()
        if service_id == GC_WORKER:
            if ttl_s != FOREVER:
                raise ValueError("TTL of gc_worker's service safe point must be infinity")
            self._advance_worker(safe_point)
        elif ttl_s <= 0:
            self._drop(service_id)
        elif safe_point >= self._minimum().safe_point:
            now = int(self._clock())
            self._put(ServiceSafePoint(service_id, safe_point, min(now + ttl_s, FOREVER)))
        return self._minimum()

    def ttl_s(self, service: ServiceSafePoint) -> int:
        """How long a safe point still counts, in seconds."""
        return service.expires_at - int(self._clock())

    def _minimum(self) -> ServiceSafePoint:
        if self._barriers:
            return self._services[GC_WORKER]
        return min(self._services.values(), key=lambda s: s.safe_point)

    def _advance_worker(self, safe_point: int) -> None:
        held = [s.safe_point for name, s in self._services.items() if name != GC_WORKER]
        if self._barriers:
            safe_point = min([safe_point, *held])
        if safe_point >= self._services[GC_WORKER].safe_point:
            self._put(ServiceSafePoint(GC_WORKER, safe_point, FOREVER))

    def _expire(self) -> None:
        now = int(self._clock())
        for service in [s for s in self._services.values() if s.expires_at <= now]:
            self._drop(service.service_id)

    def _put(self, service: ServiceSafePoint) -> None:
        self._services[service.service_id] = service
        value = {"safe_point": service.safe_point, "expires_at": service.expires_at}
        self._state.write("service_safe_point", [(service.service_id, value)])

    def _drop(self, service_id: str) -> None:
        self._services.pop(service_id, None)
        self._state.remove("service_safe_point", service_id)
