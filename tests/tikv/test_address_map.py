"""A cluster whose addresses mean nothing here, reached through an address map."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.serving import ServerTls
from airflow_provider_tikvbr.exceptions import AuthenticationError, PDUnavailableError, StoreUnavailableError
from airflow_provider_tikvbr.rawbr.backup import backup
from airflow_provider_tikvbr.rawbr.checksum import verify_backup
from airflow_provider_tikvbr.rawbr.options import backup_options, checksum_options, restore_options
from airflow_provider_tikvbr.rawbr.restore import restore
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.tikv.addresses import AddressMap
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiVersion, UserKey
from airflow_provider_tikvbr.tikv.options import ClusterOptions, TlsOptions
from tests.support.certs import Authority, KeyPair
from tests.tikv.servers import closed_port

DOMAIN = "inside.invalid"


@pytest.fixture
def inner_pair(authority: Authority) -> KeyPair:
    """A certificate for the inner names alone."""
    return authority.issue(f"*.{DOMAIN}")


@asynccontextmanager
async def inside(directory: Path, tls: ServerTls | None = None, *, stores: int = 3) -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(
        data_dir=directory,
        api_version=ApiVersion.V2,
        domain=DOMAIN,
        pd_members=3,
        stores=stores,
        replicas=min(2, stores),
        split_keys=[UserKey(b"%02d" % i) for i in range(5, 20, 5)],
        tls=tls,
    ) as embedded:
        yield embedded


def options(
    embedded: EmbeddedCluster, tls: TlsOptions | None = None, *, changed: dict[str, str] | None = None
) -> ClusterOptions:
    """From outside: the address of one PD member that does not lead, and the map."""
    return ClusterOptions(
        pd=(embedded.pd_addresses[1],),
        tls=tls,
        address_map=AddressMap.parse({**embedded.address_map, **(changed or {})}),
        connect_timeout_s=5,
    )


@pytest.mark.parametrize("secure", [False, True])
async def test_a_whole_job_from_outside(
    secure: bool, tmp_path: Path, authority: Authority, inner_pair: KeyPair, client_pair: KeyPair
) -> None:
    served = ServerTls(cert=inner_pair.cert, key=inner_pair.key, ca=authority.ca) if secure else None
    tls = TlsOptions(ca=authority.ca, cert=client_pair.cert, key=client_pair.key) if secure else None
    storage = open_storage(f"local://{tmp_path}/place")
    pairs = [(UserKey(b"%02d" % i), b"value %d" % i) for i in range(20)]
    async with inside(tmp_path / "source", served) as embedded:
        await embedded.put(pairs)
        async with await Cluster.connect(options(embedded, tls)) as source:
            assert source.pd.leader_address == f"pd-0.{DOMAIN}:2379"
            assert {store.address for store in await source.up_stores()} == {
                f"tikv-{n}.{DOMAIN}:20160" for n in (1, 2, 3)
            }
            assert (await backup(source, storage, backup_options(checksum=True))).verified
            assert (await verify_backup(source, storage, checksum_options())).matches
            # The search for a new leader goes through the map too.
            embedded.lead_pd(1)
            await embedded.stop_pd(0)
            assert await source.pd.tso() > 0
            assert source.pd.leader_address == f"pd-1.{DOMAIN}:2379"
            assert await source.http.schedulers()
    async with inside(tmp_path / "target", served, stores=1) as embedded:
        async with await Cluster.connect(options(embedded, tls)) as target:
            assert (await restore(target, storage, restore_options(checksum=True))).verified
        assert [(p.key, p.value) for p in await embedded.pairs()] == pairs


async def test_without_the_map(tmp_path: Path) -> None:
    async with inside(tmp_path) as embedded:
        with pytest.raises(PDUnavailableError, match=f"names http://pd-0.{DOMAIN}:2379 as its leader"):
            await Cluster.connect(ClusterOptions(pd=embedded.pd_addresses, connect_timeout_s=1))


async def test_hosts_alone_keep_their_ports(tmp_path: Path) -> None:
    """Where every inner address is reached at the same port, as with names of one's own."""
    async with inside(tmp_path, stores=1) as embedded:
        (store,) = embedded.topology.stores.values()
        leader = embedded.pd.members[0]
        leader.advertised_url = f"http://pd-0.{DOMAIN}:{leader.client_url.rpartition(':')[2]}"
        store.advertised = f"tikv-1.{DOMAIN}:{store.address.rpartition(':')[2]}"
        store.advertised_status = f"tikv-1.{DOMAIN}:{store.status_address.rpartition(':')[2]}"
        found = AddressMap.parse(f"pd-0.{DOMAIN}=127.0.0.1,tikv-1.{DOMAIN}=127.0.0.1")
        async with await Cluster.connect(ClusterOptions(pd=(embedded.pd_address,), address_map=found)) as cluster:
            await (await cluster.client(store.id)).switch_mode(import_mode=False)


async def test_errors_name_both_addresses(tmp_path: Path) -> None:
    nobody = closed_port()
    store, status, pd = f"tikv-1.{DOMAIN}:20160", f"tikv-1.{DOMAIN}:20180", f"pd-0.{DOMAIN}:2379"
    async with inside(tmp_path, stores=1) as embedded:
        async with await Cluster.connect(options(embedded, changed={store: nobody})) as cluster:
            with pytest.raises(
                StoreUnavailableError, match=re.escape(f"store 1 at {store} (reached at {nobody}) is")
            ) as caught:
                await (await cluster.client(1)).switch_mode(import_mode=False)
            assert caught.value.address == store
        with pytest.raises(
            StoreUnavailableError, match=re.escape(f"status server of store 1 at {status} (reached at {nobody}) does")
        ):
            await Cluster.connect(options(embedded, changed={status: nobody}))
        with pytest.raises(
            PDUnavailableError, match=re.escape(f"names http://{pd} (reached at {nobody}) as its leader")
        ):
            await Cluster.connect(options(embedded, changed={pd: nobody}))


async def test_certificates_are_checked_for_the_inner_names(tmp_path: Path, authority: Authority) -> None:
    """A certificate for where a server is reached vouches for nobody: anyone could have one for a shared address."""
    outer = authority.issue("127.0.0.1")
    tls = TlsOptions(ca=authority.ca)
    async with inside(tmp_path, ServerTls(cert=outer.cert, key=outer.key), stores=1) as embedded:
        with pytest.raises(AuthenticationError) as caught:
            await Cluster.connect(options(embedded, tls))
    message = str(caught.value)
    assert message.startswith(
        f"pd-1.{DOMAIN}:2379 (reached at {embedded.pd_addresses[1]}) shows a certificate for other"
    )
    assert f"pd-1.{DOMAIN}" in message
