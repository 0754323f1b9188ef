"""Finding the placement driver's leader among its members.

``GetMembers`` may be asked of any member and needs no cluster id; its answer names the leader and every member by
their client URLs. Source: ``pdpb.proto``; PD, ``server/grpc_service.go``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from airflow_provider_tikvbr.exceptions import PDUnavailableError, TerminalError, TikvBrError, WrongClusterError
from airflow_provider_tikvbr.proto import methods, pdpb_pb2
from airflow_provider_tikvbr.tikv.addresses import Target
from airflow_provider_tikvbr.tikv.certificates import Certificates
from airflow_provider_tikvbr.tikv.channel import Connection
from airflow_provider_tikvbr.tikv.options import ClusterOptions
from airflow_provider_tikvbr.tikv.security import diagnose

ASK_TIMEOUT_S = 3.0
PAUSE_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """PD's leader, as a member told it.

    :param url: its client URL.
    :param members: host and port of every member, the leader first.
    """

    cluster_id: int
    url: str
    members: tuple[str, ...]

    @property
    def address(self) -> str:
        """Host and port of the leader."""
        return self.members[0]


class Members:
    """One connection per member, kept until the end: calls under way on an old leader are not disturbed.

    :param options: TLS and gRPC settings, and the address map.
    """

    def __init__(self, options: ClusterOptions) -> None:
        self.options = options
        self.certificates = Certificates(options.tls)
        self._connections: dict[Target, Connection] = {}

    def given(self, endpoint: str) -> Target:
        """A member at an endpoint that the user gave: it is reached there, whatever the address map says."""
        return self.options.address_map.behind(endpoint)

    def told(self, address: str) -> Target:
        """A member at an address that the cluster told."""
        return self.options.address_map.target(address)

    def connection(self, member: Target) -> Connection:
        """The connection to a member."""
        found = self._connections.get(member)
        if found is None:
            found = Connection(member, tls=self.certificates, options=self.options.grpc)
            self._connections[member] = found
        return found

    async def close(self) -> None:
        """Close every connection."""
        await asyncio.gather(*(connection.close() for connection in self._connections.values()))


async def find_leader(
    members: Members, endpoints: Sequence[Target], *, timeout_s: float, cluster_id: int | None = None
) -> Leader:
    """Ask every endpoint at once, again and again, until one names a leader that answers itself.

    :param endpoints: the members known so far.
    :param timeout_s: how long to try, in seconds.
    :param cluster_id: the cluster that the members must belong to; None accepts any, but only one.
    :raises PDUnavailableError: no endpoint answered, or none knew of a leader that answers.
    :raises AuthenticationError: TLS on one side only, or a certificate is refused.
    :raises WrongClusterError: an endpoint belongs to another cluster.
    """
    deadline = time.monotonic() + timeout_s
    diagnosed = False
    while True:
        left = deadline - time.monotonic()
        leader, failures = await _round(members, endpoints, min(ASK_TIMEOUT_S, max(left, 0.1)), cluster_id)
        if leader is not None:
            return leader
        if not diagnosed:
            # Certificates do not mend themselves: say so now instead of trying until the time is up.
            diagnosed = True
            await _raise_if_tls_is_wrong(members, failures, max(deadline - time.monotonic(), 0.5))
        if deadline - time.monotonic() < PAUSE_S:
            raise _unavailable(endpoints, failures, timeout_s)
        await asyncio.sleep(PAUSE_S)


async def _round(
    members: Members, endpoints: Sequence[Target], timeout_s: float, cluster_id: int | None
) -> tuple[Leader | None, dict[Target, TikvBrError]]:
    """Ask all endpoints once; the first usable answer wins and the other questions are dropped."""
    tasks = {asyncio.create_task(_ask(members, one, timeout_s, cluster_id)): one for one in endpoints}
    failures: dict[Target, TikvBrError] = {}
    pending = set(tasks)
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                try:
                    return task.result(), failures
                except WrongClusterError:
                    raise
                except TikvBrError as err:
                    failures[tasks[task]] = err
        return None, failures
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _ask(members: Members, endpoint: Target, timeout_s: float, cluster_id: int | None) -> Leader:
    response = await _get_members(members, endpoint, timeout_s)
    if not response.header.cluster_id or not response.leader.client_urls:
        raise PDUnavailableError(
            f"PD at {endpoint} has no leader", endpoints=(endpoint.address,), address=endpoint.address
        )
    if cluster_id is not None and response.header.cluster_id != cluster_id:
        raise WrongClusterError(
            f"PD at {endpoint} belongs to cluster {response.header.cluster_id}, not to {cluster_id}",
            address=endpoint.address,
        )
    url = response.leader.client_urls[0]
    address = _address(url)
    others = (_address(member.client_urls[0]) for member in response.members if member.client_urls)
    leader = Leader(
        cluster_id=response.header.cluster_id,
        url=url,
        members=tuple(dict.fromkeys((address, *others))),
    )
    if members.told(address) != endpoint:
        await _check_leader(members, endpoint, leader, timeout_s)
    return leader


async def _check_leader(members: Members, endpoint: Target, leader: Leader, timeout_s: float) -> None:
    """A member may name a leader that has just died, or one under a name that means nothing here."""
    target = members.told(leader.address)
    reached = f" (reached at {target.reach})" if target.is_mapped else ""
    try:
        response = await _get_members(members, target, timeout_s)
    except TerminalError:
        raise
    except TikvBrError as err:
        remedy = "" if target.is_mapped else " (an address map can say where it does)"
        raise PDUnavailableError(
            f"PD at {endpoint} names {leader.url}{reached} as its leader, which does not answer from here{remedy}: {err}",
            endpoints=(endpoint.address, leader.address),
            address=endpoint.address,
        ) from err
    if response.header.cluster_id != leader.cluster_id:
        raise WrongClusterError(
            f"PD at {endpoint} names {leader.url}{reached} as its leader, but that belongs to another cluster"
            f" ({response.header.cluster_id} instead of {leader.cluster_id})",
            address=endpoint.address,
        )


async def _get_members(members: Members, endpoint: Target, timeout_s: float) -> pdpb_pb2.GetMembersResponse:
    request = pdpb_pb2.GetMembersRequest()
    return await members.connection(endpoint).call(methods.PD_GET_MEMBERS, request, timeout_s=timeout_s)


async def _raise_if_tls_is_wrong(members: Members, failures: dict[Target, TikvBrError], left_s: float) -> None:
    """Raise only when TLS explains the silence of some endpoint: none answered, so nothing else could help it."""
    timeout_s = min(2.0, left_s)
    tls = members.certificates.current()
    results = await asyncio.gather(*(diagnose(endpoint, tls, timeout_s=timeout_s) for endpoint in failures))
    for endpoint, error in zip(failures, results, strict=True):
        if error is not None:
            raise error from failures[endpoint]


def _unavailable(
    endpoints: Sequence[Target], failures: dict[Target, TikvBrError], timeout_s: float
) -> PDUnavailableError:
    tried = [str(endpoint) for endpoint in endpoints]
    reasons = "; ".join(dict.fromkeys(str(failures[endpoint]) for endpoint in endpoints if endpoint in failures))
    return PDUnavailableError(
        f"no PD leader found within {timeout_s:g} s, tried {', '.join(tried)}: check the PD endpoints and the"
        f" network ({reasons})",
        endpoints=tuple(tried),
    )


def _address(url: str) -> str:
    return urlsplit(url).netloc if "://" in url else url
