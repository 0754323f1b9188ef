"""A store's HTTP status server: the API version that clients read from its configuration, and signs of life."""

from __future__ import annotations

import json
import ssl
from typing import Any

from aiohttp import web

from airflow_provider_tikvbr.embedded.records import StoreRecord
from airflow_provider_tikvbr.embedded.topology import Topology
from airflow_provider_tikvbr.tikv.keys import ApiVersion


class StatusServer:
    """Serves ``/config``, ``/status`` and ``/metrics`` of one store.

    :param topology: the cluster.
    :param store: the store.
    :param faults: the middleware that lets requests go wrong.
    :param tls: serve HTTPS, or None for plain HTTP.
    """

    def __init__(
        self, *, topology: Topology, store: StoreRecord, faults: Any, tls: ssl.SSLContext | None = None
    ) -> None:
        self._topology = topology
        self._store = store
        self._tls = tls
        app = web.Application(middlewares=[faults])
        app.router.add_get("/config", self._config)
        app.router.add_get("/status", self._status)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)

    async def start(self, host: str, port: int) -> int:
        """Listen.

        :param port: 0 for any.
        :return: the port.
        :raises OSError: the port is taken.
        """
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, ssl_context=self._tls).start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Close the port and its connections."""
        await self._runner.cleanup()

    async def _config(self, _request: web.Request) -> web.Response:
        api_version = self._topology.api_version if self._store.api_version is None else self._store.api_version
        return web.Response(text=json.dumps(store_config(api_version)), content_type="application/json")

    async def _status(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _metrics(self, _request: web.Request) -> web.Response:
        led = sum(1 for r in self._topology.regions if r.led_by(self._store.id))
        held = sum(1 for r in self._topology.regions if r.peer_on(self._store.id))
        lines = [
            "# TYPE tikv_raftstore_region_count gauge",
            f'tikv_raftstore_region_count{{type="leader"}} {led}',
            f'tikv_raftstore_region_count{{type="region"}} {held}',
        ]
        return web.Response(text="\n".join(lines) + "\n")


def store_config(api_version: ApiVersion) -> dict[str, Any]:
    """The sections of a TiKV configuration that tell how it encodes and moves raw data."""
    return {
        "storage": {
            "engine": "raft-kv",
            "max-key-size": 8192,
            "api-version": 2 if api_version is ApiVersion.V2 else 1,
            "enable-ttl": api_version is not ApiVersion.V1,
        },
        "coprocessor": {
            "batch-split-limit": 10,
            "region-max-size": "384MiB",
            "region-split-size": "256MiB",
            "region-max-keys": 3840000,
            "region-split-keys": 2560000,
        },
        "backup": {"num-threads": 2, "batch-size": 8, "sst-max-size": "384MiB", "s3-multi-part-size": "5MiB"},
        "import": {"num-threads": 2, "stream-channel-window": 128, "import-mode-timeout": "10m"},
    }
