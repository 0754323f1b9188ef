"""The servers of a cluster: which stores and which members of PD are up, and how they come and go."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path

from airflow_provider_tikvbr.embedded.engine import StoreEngine
from airflow_provider_tikvbr.embedded.faults import Faults
from airflow_provider_tikvbr.embedded.node import PdNode, StoreNode
from airflow_provider_tikvbr.embedded.pd_service import PdMember, PlacementDriver
from airflow_provider_tikvbr.embedded.records import StoreRecord
from airflow_provider_tikvbr.embedded.serving import ServerTls

# The ports at which TiKV usually listens.
STORE_PORT = 20160
STATUS_PORT = 20180
# A port that was just closed may take a moment until it can be opened again.
PORT_WAIT_S = 5.0


class Fleet:
    """Starts and stops servers, one change of a server at a time.

    :param pd: what PD knows.
    :param engines: the RocksDB of every store.
    :param faults: what goes wrong at the servers' calls.
    :param host: where they listen.
    :param domain: the domain of the names that stores advertise, or empty.
    :param tls: TLS of every port, or None.
    """

    def __init__(
        self,
        *,
        pd: PlacementDriver,
        engines: Mapping[int, StoreEngine],
        faults: Faults,
        host: str,
        domain: str,
        tls: ServerTls | None,
    ) -> None:
        self._pd = pd
        self._topology = pd.topology
        self._engines = engines
        self._faults = faults
        self._host = host
        self._domain = domain
        self._tls = tls
        self._stores: dict[int, StoreNode] = {}
        self._members: dict[str, PdNode] = {}
        self._locks: dict[int | str, asyncio.Lock] = {}
        self._held: dict[int, list[socket.socket]] = {}
        self._deaths: set[asyncio.Task[None]] = set()
        self._sockets = Path(tempfile.mkdtemp(prefix="tikvbr-"))
        self._topology.on_death.append(self._bury)

    async def close(self) -> None:
        """Stop every server."""
        self._topology.on_death.remove(self._bury)
        await asyncio.gather(*(node.stop() for node in self._members.values()))
        await asyncio.gather(*(node.stop() for node in self._stores.values()), *self._deaths)
        self._stores.clear()
        self._members.clear()
        for store_id in list(self._held):
            self._let_go(store_id)
        shutil.rmtree(self._sockets, ignore_errors=True)

    async def renew_tls(self, tls: ServerTls | None) -> None:
        """Restart every server that runs with other certificates, at the addresses they have."""
        self._tls = tls
        leader, stores = self._pd.leader, list(self._stores)
        members = [at for at, member in enumerate(self._pd.members) if self.is_up(member)]
        for store_id in stores:
            await self._stores.pop(store_id).stop()
        for at in members:
            await self._members.pop(self._pd.members[at].name).stop()
        for at in members:
            await self.start_pd(at)
        for store_id in stores:
            await self.start_store(store_id)
        self._pd.leader = leader

    def _lock(self, name: int | str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    # --- members of PD ---

    def is_up(self, member: PdMember) -> bool:
        """Whether a member of PD runs."""
        return member.name in self._members

    def lead_pd(self, member: PdMember | None) -> None:
        """Make a member of PD the leader; None for an election that does not end.

        A new leader knows nothing of what the last one kept in memory: paused schedulers and operators (PD,
        ``server/cluster/cluster.go``, which makes its coordinator anew).
        """
        if member is not None and member is not self._pd.leader:
            self._pd.schedulers.forget()
            self._pd.operators.forget()
        self._pd.leader = member

    async def stop_pd(self, at: int) -> None:
        """Take a member of PD down, by its place; most of them that are left elect another leader.

        :raises KeyError: it is not running.
        """
        stopped = self._pd.members[at]
        async with self._lock(stopped.name):
            await self._members.pop(stopped.name).stop()
        if self._pd.leader is stopped or 2 * len(self._members) <= len(self._pd.members):
            self.lead_pd(self._candidate())

    async def start_pd(self, at: int) -> None:
        """Bring a member of PD back, at the address it had; it leads where nobody does and most members run.

        :raises RuntimeError: it is running.
        :raises OSError: somebody else has taken its port.
        """
        member = self._pd.members[at]
        await self.start_member(member, int(member.client_url.rpartition(":")[2]), wait_s=PORT_WAIT_S)
        if self._pd.leader is None:
            self.lead_pd(self._candidate())

    def _candidate(self) -> PdMember | None:
        majority = 2 * len(self._members) > len(self._pd.members)
        return next((m for m in self._pd.members if self.is_up(m)), None) if majority else None

    async def start_member(self, member: PdMember, port: int, *, wait_s: float = 0.0) -> None:
        """Start a member of PD.

        :param port: 0 for any.
        :param wait_s: for how long to wait for the port.
        :raises RuntimeError: it is running.
        :raises OSError: the port is taken.
        """
        async with self._lock(member.name):
            if self.is_up(member):
                raise RuntimeError(f"{member.name} is running")
            for last in _tries(wait_s):
                node = PdNode(pd=self._pd, member=member, faults=self._faults, tls=self._tls, sockets=self._sockets)
                try:
                    await node.start(self._host, port)
                except OSError:
                    await node.stop()
                    if last:
                        raise
                    await asyncio.sleep(_PAUSE_S)
                else:
                    self._members[member.name] = node
                    return

    # --- stores ---

    async def stop_store(self, store_id: int) -> None:
        """Take a store down: its ports close, and its regions elect other leaders where a majority is left.

        :raises KeyError: it is not running.
        """
        async with self._lock(store_id):
            await self._stores.pop(store_id).stop()
            # What a process keeps in memory ends with it.
            self._engines[store_id].import_mode.switch(False)
            self._engines[store_id].download_limiter.set_rate(0)
            self._topology.set_running(store_id, False)
            self._hold(self._topology.stores[store_id])

    async def kill_store(self, store_id: int, reason: str) -> None:
        """Let a store die for good, whether it runs or not."""
        self._topology.kill(store_id, reason)
        await asyncio.gather(*self._deaths)

    async def start_store(self, store_id: int, port: int | None = None) -> None:
        """Bring a store back, at the address it had.

        :param port: the port of a store that has had none yet; 0 for any.
        :raises RuntimeError: it died for good, or runs already.
        :raises OSError: the port is taken.
        """
        store = self._topology.stores[store_id]
        async with self._lock(store_id):
            if store.death or store_id in self._stores:
                raise RuntimeError(f"store {store_id} cannot start: {store.death or 'it is running'}")
            if self._domain:
                store.advertised = f"tikv-{store.id}.{self._domain}:{STORE_PORT}"
                store.advertised_status = f"tikv-{store.id}.{self._domain}:{STATUS_PORT}"
            wait_s = PORT_WAIT_S if port is None else 0.0
            port = int(store.address.rpartition(":")[2]) if port is None else port
            status_port = int(store.status_address.rpartition(":")[2] or 0)
            self._let_go(store_id)
            for last in _tries(wait_s):
                node = self._stores[store_id] = StoreNode(
                    topology=self._topology,
                    store_id=store_id,
                    engines=self._engines,
                    faults=self._faults,
                    tls=self._tls,
                )
                try:
                    await node.start(self._host, port=port, status_port=status_port)
                    return
                except OSError:
                    await self._stores.pop(store_id).stop()
                    if last:
                        raise
                    await asyncio.sleep(_PAUSE_S)

    def _bury(self, store: StoreRecord) -> None:
        if store.id in self._stores:
            task = asyncio.get_running_loop().create_task(self._end(store.id))
            self._deaths.add(task)
            task.add_done_callback(self._deaths.discard)

    async def _end(self, store_id: int) -> None:
        # Somebody may stop it while its death waits for its turn.
        with contextlib.suppress(KeyError):
            await self.stop_store(store_id)

    def _hold(self, store: StoreRecord) -> None:
        """Keep the ports of a store that is down from being given to somebody else; they refuse connections.

        Without that a client that dials in vain may even be given the port itself, and talk to itself.
        """
        for address in (store.address, store.status_address):
            host, _, port = address.rpartition(":")
            # Without it the store comes back all the same, but for the rare case; a test may have taken the address away.
            with contextlib.suppress(OSError, ValueError):
                family, kind, proto, _, place = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
                held = socket.socket(family, kind, proto)
                self._held.setdefault(store.id, []).append(held)
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                held.bind(place)

    def _let_go(self, store_id: int) -> None:
        for held in self._held.pop(store_id, ()):
            held.close()


_PAUSE_S = 0.05


def _tries(wait_s: float) -> list[bool]:
    """One item for each try within a time; the last one is True."""
    return [*([False] * int(wait_s / _PAUSE_S)), True]
