"""The servers of one node: PD on its one port, or a store on its two."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import Mapping
from pathlib import Path

from aiohttp import web

from airflow_provider_tikvbr.embedded.engine import StoreEngine
from airflow_provider_tikvbr.embedded.fault_http import http_faults
from airflow_provider_tikvbr.embedded.faults import Faults
from airflow_provider_tikvbr.embedded.mux import Mux
from airflow_provider_tikvbr.embedded.pd_http import PdHttp
from airflow_provider_tikvbr.embedded.pd_service import PdMember, PdService, PlacementDriver
from airflow_provider_tikvbr.embedded.serving import GrpcServer, ServerTls
from airflow_provider_tikvbr.embedded.status import StatusServer
from airflow_provider_tikvbr.embedded.store import store_handlers
from airflow_provider_tikvbr.embedded.topology import Topology

# Bytes of a request's first line, which holds keys: PD takes as many (Go, ``http.DefaultMaxHeaderBytes``).
MAX_LINE = 1 << 20


def ssl_context(tls: ServerTls) -> ssl.SSLContext:
    """The context of an HTTP server.

    :raises ssl.SSLError: the certificate and its key do not fit.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # The ssl module reads certificates from files only.
    with tempfile.TemporaryDirectory(prefix="tikvbr-tls-") as directory:
        pem = Path(directory) / "server.pem"
        pem.write_bytes(tls.cert.rstrip() + b"\n" + tls.key)
        context.load_cert_chain(pem)
    if tls.ca is not None:
        context.load_verify_locations(cadata=tls.ca.decode("ascii"))
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class PdNode:
    """The servers of one member of PD: gRPC behind a Unix socket, HTTP in this process, one port in front of both.

    :param pd: what PD knows.
    :param member: the member; it learns its address when it starts.
    :param faults: what goes wrong at its calls.
    :param tls: TLS of the port, or None.
    :param sockets: a private directory for the Unix socket.
    """

    def __init__(
        self,
        *,
        pd: PlacementDriver,
        member: PdMember,
        faults: Faults,
        tls: ServerTls | None,
        sockets: Path,
    ) -> None:
        self._member = member
        self._grpc_path = str(sockets / f"{member.name}.sock")
        self._grpc = GrpcServer(handlers=PdService(pd, member).handlers(), faults=faults, pd_member=member.name)
        self._runner = web.AppRunner(
            PdHttp(pd, http_faults(faults, pd_member=member.name)).app(),
            shutdown_timeout=0.1,
            access_log=None,
            max_line_size=MAX_LINE,
        )
        self._context = None if tls is None else ssl_context(tls)
        self._mux: Mux | None = None

    async def start(self, host: str, port: int) -> None:
        """Serve.

        :raises OSError: the port is taken.
        """
        await self._grpc.start(f"unix:{self._grpc_path}")
        await self._runner.setup()
        server = self._runner.server
        if server is None:
            raise RuntimeError("the HTTP runner has no server after its setup")
        self._mux = Mux(grpc_path=self._grpc_path, http_factory=server, tls=self._context)
        port = await self._mux.start(host, port)
        self._member.client_url = f"{'http' if self._context is None else 'https'}://{host}:{port}"

    async def stop(self) -> None:
        """Close the port first, then what is behind it."""
        if self._mux is not None:
            self._mux.close()
        await asyncio.gather(self._runner.cleanup(), self._grpc.stop())
        if self._mux is not None:
            await self._mux.wait_closed()


class StoreNode:
    """A store's servers.

    :param topology: the cluster.
    :param store_id: the store.
    :param engines: the RocksDB of every store.
    :param faults: what goes wrong at its calls.
    :param tls: TLS of both ports, or None.
    """

    def __init__(
        self,
        *,
        topology: Topology,
        store_id: int,
        engines: Mapping[int, StoreEngine],
        faults: Faults,
        tls: ServerTls | None,
    ) -> None:
        self._topology = topology
        self._store = topology.stores[store_id]
        self._tls = tls
        self._grpc = GrpcServer(
            handlers=store_handlers(topology, store_id, engines, faults), faults=faults, store_id=store_id
        )
        context = None if tls is None else ssl_context(tls)
        self._status = StatusServer(
            topology=topology, store=self._store, faults=http_faults(faults, store_id=store_id), tls=context
        )

    async def start(self, host: str, *, port: int = 0, status_port: int = 0) -> None:
        """Serve, and tell PD where.

        :raises OSError: a port is taken.
        """
        port = await self._grpc.start(f"{host}:{port}", tls=self._tls)
        status_port = await self._status.start(host, status_port)
        self._store.address = f"{host}:{port}"
        self._store.status_address = f"{host}:{status_port}"
        self._topology.set_running(self._store.id, True)

    async def stop(self) -> None:
        """Stop both servers."""
        await asyncio.gather(self._grpc.stop(), self._status.stop())
