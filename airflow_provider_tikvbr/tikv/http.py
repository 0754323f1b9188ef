"""What the HTTP clients of PD and of the stores share: certificates that are renewed, and where addresses are reached."""

from __future__ import annotations

import ssl

import httpx

from airflow_provider_tikvbr.tikv.addresses import NO_ADDRESS_MAP, AddressMap
from airflow_provider_tikvbr.tikv.certificates import Certificates
from airflow_provider_tikvbr.tikv.finish import finish
from airflow_provider_tikvbr.tikv.options import TlsOptions
from airflow_provider_tikvbr.tikv.security import ssl_context


def http_client(
    tls: Certificates | TlsOptions | None, *, timeout_s: float, address_map: AddressMap = NO_ADDRESS_MAP
) -> httpx.AsyncClient:
    """A client for a cluster's HTTP services. Make it inside the running loop and close it.

    :param tls: certificates, or what keeps them up to date; None means plain connections.
    :param timeout_s: time limit of each step of a request, in seconds.
    :param address_map: where to reach the addresses that the cluster tells; URLs name those.
    """
    return httpx.AsyncClient(
        transport=ClusterTransport(Certificates.of(tls), address_map),
        timeout=timeout_s,
        # Without this a proxy from the environment would get in between.
        trust_env=False,
        follow_redirects=True,
    )


class ClusterTransport(httpx.AsyncBaseTransport):
    """Sends requests where the address map says, over connections made with the certificates of now.

    :param certificates: for every connection.
    :param address_map: where addresses are reached.
    """

    def __init__(self, certificates: Certificates, address_map: AddressMap) -> None:
        self._certificates = certificates
        self._map = address_map
        self._tls = certificates.current()
        self._context = self._new_context()
        # A pool takes connections to one place for alike, whosever certificate they checked: so a mapped server has
        # a pool of its own.
        self._pools: dict[str, httpx.AsyncHTTPTransport] = {}
        self._retired: list[httpx.AsyncHTTPTransport] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; httpx calls this."""
        self._renew(self._certificates.current())
        used = self._tls
        try:
            return await self._send(request)
        except httpx.TransportError as err:
            if not is_tls_failure(err):
                raise
            # Perhaps the server has new certificates, and so have we by now; another request may have found them first.
            self._renew(self._certificates.current(look=True))
            if self._tls is used:
                raise
        return await self._send(request)

    async def aclose(self) -> None:
        """Close every connection."""
        # httpcore forgets those that are still open when it is cancelled while it closes them.
        await finish(self._close_pools())

    async def _close_pools(self) -> None:
        pools = [*self._pools.values(), *self._retired]
        self._pools.clear()
        self._retired.clear()
        for pool in pools:
            await pool.aclose()

    async def _send(self, request: httpx.Request) -> httpx.Response:
        address = request.url.netloc.decode("ascii")
        target = self._map.target(address)
        if not target.is_mapped:
            return await self._pool("").handle_async_request(request)
        # The headers keep the host that the URL named, and the certificate must be for it.
        moved = httpx.Request(
            request.method,
            request.url.copy_with(netloc=target.reach.encode("ascii")),
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": target.host},
        )
        return await self._pool(address).handle_async_request(moved)

    def _pool(self, name: str) -> httpx.AsyncHTTPTransport:
        found = self._pools.get(name)
        if found is None:
            found = self._pools[name] = httpx.AsyncHTTPTransport(verify=self._context, trust_env=False)
        return found

    def _renew(self, tls: TlsOptions | None) -> None:
        if tls is self._tls:
            return
        self._tls = tls
        self._context = self._new_context()
        # Requests under way end well where they are.
        self._retired.extend(self._pools.values())
        self._pools.clear()

    def _new_context(self) -> ssl.SSLContext | bool:
        return ssl_context(self._tls) if self._tls is not None else False


def is_tls_failure(err: BaseException | None) -> bool:
    """Whether a request failed because the two sides do not agree on TLS or on certificates."""
    while err is not None:
        if isinstance(err, ssl.SSLError) and not isinstance(err, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            return True
        err = err.__cause__ or err.__context__
    return False
