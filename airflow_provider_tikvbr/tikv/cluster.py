"""A connected cluster: everything a job needs to talk to it, checked once at the start."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from packaging.version import Version

from airflow_provider_tikvbr.exceptions import (
    ApiVersionError,
    StoreUnavailableError,
    TikvBrError,
    WrongClusterError,
)
from airflow_provider_tikvbr.tikv.finish import finish
from airflow_provider_tikvbr.tikv.keys import ApiVersion, KeyCodec
from airflow_provider_tikvbr.tikv.keyspaces import find_keyspace
from airflow_provider_tikvbr.tikv.model import Store
from airflow_provider_tikvbr.tikv.options import ClusterOptions
from airflow_provider_tikvbr.tikv.pd import PDClient
from airflow_provider_tikvbr.tikv.pd_http import PDHttp
from airflow_provider_tikvbr.tikv.regions import RegionCache
from airflow_provider_tikvbr.tikv.retry import Backoff
from airflow_provider_tikvbr.tikv.status import store_api_version, store_config
from airflow_provider_tikvbr.tikv.store import StoreClient
from airflow_provider_tikvbr.tikv.versions import check_stores, check_v2, oldest_version, parse_version

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterDescription:
    """A cluster in a few words.

    :param pd_leader: host and port of PD's leader.
    :param pd_members: number of PD's members.
    :param stores_up: number of TiKV stores that are up.
    :param stores_total: number of TiKV stores that PD knows, up or not.
    :param tikv_versions: the versions of the stores that are up, lowest first, each once.
    """

    cluster_id: int
    pd_leader: str
    pd_members: int
    stores_up: int
    stores_total: int
    tikv_versions: tuple[str, ...]
    api_version: ApiVersion


class Cluster:
    """A connected cluster. Make it with :meth:`connect` inside the running loop, and close it.

    :param pd: PD's gRPC API.
    :param http: PD's HTTP API.
    :param api_version: what every store that answered says.
    :param keyspace_id: the keyspace to work in.
    :param cluster_version_text: the version that PD holds the cluster to, as PD writes it.
    """

    def __init__(
        self,
        *,
        options: ClusterOptions,
        pd: PDClient,
        http: PDHttp,
        api_version: ApiVersion,
        cluster_version_text: str,
        keyspace_id: int = 0,
    ) -> None:
        self.options = options
        self.pd = pd
        self.http = http
        self.regions = RegionCache(pd)
        self.api_version = api_version
        self.codec = KeyCodec(api_version, keyspace_id)
        self.cluster_version_text = cluster_version_text
        self.cluster_version: Version = parse_version(cluster_version_text)
        self._clients: dict[int, StoreClient] = {}
        self._retired: list[StoreClient] = []
        self._stores: dict[int, Store] = {}

    @classmethod
    async def connect(cls, options: ClusterOptions) -> Cluster:
        """Find the leader, then check the cluster's id, the stores' versions and their API version.

        :raises PDUnavailableError: no PD leader is found within ``connect_timeout_s``.
        :raises AuthenticationError: one side speaks TLS and the other does not, or a certificate is refused.
        :raises WrongClusterError: the cluster is not the expected one.
        :raises UnsupportedError: stores are too old, also for their API version, or are TiFlash nodes; or the cluster
            has no keyspaces, or cannot tell them by name.
        :raises InvalidOptionError: PD does not know the keyspace, it is not enabled, or name and number disagree.
        :raises ApiVersionError: the stores disagree about the API version, or have another than expected.
        :raises StoreUnavailableError: no store is up, or no store that is up answers.
        """
        pd = await PDClient.connect(options)
        http = PDHttp(pd)
        try:
            _check_cluster_id(pd, options)
            stores = await pd.stores()
            if options.check_requirements:
                check_stores(stores)
            api_version = await _told_api_version(_up(stores), pd)
            _check_api_version(api_version, options)
            keyspace_id = await find_keyspace(pd, options, api_version)
            text = await http.cluster_version()
            cluster = cls(
                options=options,
                pd=pd,
                http=http,
                api_version=api_version,
                cluster_version_text=text,
                keyspace_id=keyspace_id,
            )
            cluster._remember(stores)
            if options.check_requirements and cluster.codec.is_v2:
                check_v2(*cluster.oldest_version)
        except BaseException:
            await http.close()
            await pd.close()
            raise
        return cluster

    async def __aenter__(self) -> Cluster:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection, also when cancelled meanwhile; a second time does nothing."""
        await finish(self._close())

    async def _close(self) -> None:
        clients = [*self._clients.values(), *self._retired]
        self._clients.clear()
        self._retired.clear()
        await asyncio.gather(*(client.close() for client in clients))
        await self.http.close()
        await self.pd.close()

    @property
    def cluster_id(self) -> int:
        """The number that PD gave to the cluster."""
        return self.pd.cluster_id

    @property
    def oldest_version(self) -> tuple[Version, str]:
        """The version that every store has at least, and how to tell it to a user, from what PD said last."""
        return oldest_version(self.cluster_version_text, self._stores.values())

    async def data_stores(self) -> tuple[Store, ...]:
        """The TiKV stores that may hold data, by id: those that are being removed serve what they still have."""
        stores = await self.pd.stores()
        self._remember(stores)
        return tuple(store for store in stores if not store.is_tiflash)

    async def up_stores(self) -> tuple[Store, ...]:
        """The TiKV stores that PD counts as up now, by id."""
        stores = await self.pd.stores()
        self._remember(stores)
        return _up(stores)

    async def client(self, store_id: int) -> StoreClient:
        """The connection to a store; the same one each time, until the store moves to another address.

        :raises StoreUnavailableError: PD does not know the store.
        """
        if store_id not in self._stores:
            self._remember(await self.pd.stores())
        store = self._stores.get(store_id)
        if store is None:
            raise StoreUnavailableError(f"PD at {self.pd.leader_address} knows no store {store_id}", store_id=store_id)
        client = self._clients.get(store_id)
        if client is not None and _addresses(client.store) != _addresses(store):
            # Calls under way on the old address may still end well.
            self._retired.append(client)
            client = None
        if client is None:
            client = StoreClient(
                store, tls=self.pd.certificates, options=self.options.grpc, address_map=self.options.address_map
            )
            self._clients[store_id] = client
        return client

    async def store_config(self, store: Store, *, timeout_s: float) -> dict[str, Any]:
        """A store's configuration; see :func:`~airflow_provider_tikvbr.tikv.status.store_config`."""
        return await store_config(
            store, self.pd.certificates, timeout_s=timeout_s, address_map=self.options.address_map
        )

    async def describe(self) -> ClusterDescription:
        """The cluster in a few words, fresh from PD."""
        stores = [store for store in await self.pd.stores() if not store.is_tiflash]
        up = _up(stores)
        versions = sorted({store.version for store in up}, key=parse_version)
        return ClusterDescription(
            cluster_id=self.cluster_id,
            pd_leader=self.pd.leader_address,
            pd_members=len(self.pd.members),
            stores_up=len(up),
            stores_total=len(stores),
            tikv_versions=tuple(versions),
            api_version=self.api_version,
        )

    def _remember(self, stores: Iterable[Store]) -> None:
        self._stores = {store.id: store for store in stores}


def _up(stores: Iterable[Store]) -> tuple[Store, ...]:
    return tuple(store for store in stores if store.is_up and not store.is_tiflash)


def _addresses(store: Store) -> tuple[str, str]:
    return store.address, store.data_address


def _check_cluster_id(pd: PDClient, options: ClusterOptions) -> None:
    if options.cluster_id is not None and pd.cluster_id != options.cluster_id:
        raise WrongClusterError(
            f"PD at {pd.leader_address} belongs to cluster {pd.cluster_id}, but cluster {options.cluster_id} is"
            " expected: check the PD endpoints or the expected cluster id",
            address=pd.leader_address,
        )


def _check_api_version(found: ApiVersion, options: ClusterOptions) -> None:
    if options.api_version is not None and found is not options.api_version:
        raise ApiVersionError(
            f"the cluster has API version {found.name}, but {options.api_version.name} is expected: check the PD"
            " endpoints or the expected API version"
        )


async def _told_api_version(stores: tuple[Store, ...], pd: PDClient) -> ApiVersion:
    """The API version on which all stores agree; while no store answers they are asked again, for the time to connect."""
    backoff = Backoff(base_s=0.1, cap_s=1.0, budget_s=pd.options.connect_timeout_s)
    while True:
        try:
            return await _common_api_version(stores, pd)
        except StoreUnavailableError as err:
            # Without a status server, or without a store, another try would say the same.
            if not any(store.status_address for store in stores) or not backoff.remaining_s:
                raise
            await backoff.sleep(err)


async def _common_api_version(stores: tuple[Store, ...], pd: PDClient) -> ApiVersion:
    """The API version on which all stores agree. A store that is down cannot be asked; one at least must answer."""
    if not stores:
        raise StoreUnavailableError("no TiKV store of the cluster is up: start the stores and try again")
    # Every question is waited for: none goes on behind the back of a connection that is refused.
    answers = await asyncio.gather(*(_ask(store, pd) for store in stores), return_exceptions=True)
    found: dict[ApiVersion, list[Store]] = {}
    silent: list[TikvBrError] = []
    for store, answer in zip(stores, answers, strict=True):
        if isinstance(answer, ApiVersion):
            found.setdefault(answer, []).append(store)
        elif isinstance(answer, StoreUnavailableError):
            silent.append(answer)
        else:
            raise answer
    if not found:
        raise StoreUnavailableError(
            f"no store that PD counts as up tells its API version: {'; '.join(str(error) for error in silent)}"
        )
    if len(found) > 1:
        raise ApiVersionError(f"the stores have different API versions: {_who_says_what(found)}: give all the same one")
    for error in silent:
        log.warning("%s; its API version is taken to be that of the other stores", error)
    return next(iter(found))


async def _ask(store: Store, pd: PDClient) -> ApiVersion:
    options = pd.options
    timeout_s = min(5.0, options.connect_timeout_s)
    return await store_api_version(store, pd.certificates, timeout_s=timeout_s, address_map=options.address_map)


def _who_says_what(found: Mapping[ApiVersion, list[Store]]) -> str:
    return "; ".join(
        f"{version.name} on " + ", ".join(f"store {store.id} ({store.address})" for store in stores)
        for version, stores in sorted(found.items())
    )
