"""Certificates that are replaced on disk while connections are open."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.serving import ServerTls
from airflow_provider_tikvbr.exceptions import AuthenticationError, InvalidOptionError
from airflow_provider_tikvbr.proto import brpb_pb2, kvrpcpb_pb2, methods
from airflow_provider_tikvbr.tikv import certificates
from airflow_provider_tikvbr.tikv.certificates import Certificates
from airflow_provider_tikvbr.tikv.channel import Connection
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.http import http_client
from airflow_provider_tikvbr.tikv.options import ClusterOptions, GrpcOptions, TlsOptions
from tests.support.certs import Authority, KeyPair
from tests.tikv.servers import serving

REQUEST = kvrpcpb_pb2.RawGetRequest(key=b"k")


@pytest.fixture
def each_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the files whenever they are asked for, instead of once a second."""
    monkeypatch.setattr(certificates, "LOOK_EVERY_S", 0.0)


class Files:
    """The three files of a client."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)

    def write(self, **pem: bytes) -> None:
        """Replace some files, each at once."""
        for name, data in pem.items():
            new = self.directory / f"{name}.new"
            new.write_bytes(data)
            new.rename(self.directory / f"{name}.pem")

    def write_all(self, ca: Authority, pair: KeyPair) -> None:
        self.write(ca=ca.ca, cert=pair.cert, key=pair.key)

    def load(self) -> TlsOptions:
        options = TlsOptions.load(**{name: str(self.directory / f"{name}.pem") for name in ("ca", "cert", "key")})
        assert options is not None
        return options


@pytest.fixture
def files(tmp_path: Path, authority: Authority, client_pair: KeyPair) -> Files:
    found = Files(tmp_path / "pem")
    found.write_all(authority, client_pair)
    return found


def served(ca: Authority) -> ServerTls:
    pair = ca.issue("127.0.0.1")
    return ServerTls(cert=pair.cert, key=pair.key, ca=ca.ca)


# --- what is read again ---


def test_files_are_read_again_when_they_change(files: Files) -> None:
    options = files.load()
    assert options.renewed() is options
    other = Authority("other")
    pair = other.issue("client")
    files.write_all(other, pair)
    renewed = options.renewed()
    assert renewed == TlsOptions(ca=other.ca, cert=pair.cert, key=pair.key)
    assert renewed.renewed() is renewed


def test_a_link_that_is_swapped(tmp_path: Path, authority: Authority) -> None:
    """Kubernetes keeps the files of a secret behind one link, which it swaps."""
    other = Authority("other")
    for name, ca in (("one", authority), ("two", other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ca.pem").write_bytes(ca.ca)
    (tmp_path / "data").symlink_to("one")
    options = TlsOptions.load(ca=str(tmp_path / "data" / "ca.pem"))
    assert options is not None
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").rename(tmp_path / "data")
    assert options.renewed().ca == other.ca


def test_text_stays(files: Files, authority: Authority, client_pair: KeyPair) -> None:
    text = TlsOptions.load(ca=authority.ca.decode(), cert=client_pair.cert.decode(), key=client_pair.key.decode())
    mixed = TlsOptions.load(
        ca=str(files.directory / "ca.pem"), cert=client_pair.cert.decode(), key=client_pair.key.decode()
    )
    other = Authority("other")
    files.write_all(other, other.issue("client"))
    assert text is not None
    assert text.renewed() is text
    assert Certificates(text).current(look=True) is text
    assert mixed is not None
    assert mixed.renewed() == TlsOptions(ca=other.ca, cert=client_pair.cert, key=client_pair.key)


def test_half_a_renewal_keeps_what_was_read_before(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    options = files.load()
    kept = Certificates(options)
    other = Authority("other")
    pair = other.issue("client")
    with caplog.at_level(logging.WARNING):
        files.write(ca=other.ca, cert=pair.cert)
        with pytest.raises(InvalidOptionError, match="key does not belong to cert"):
            options.renewed()
        for _ in range(3):
            assert kept.current(look=True) is options
        assert len(caplog.records) == 1
        assert "those read before stay in use: key does not belong to cert" in caplog.text
        (files.directory / "key.pem").write_bytes(pair.key[:40])
        assert kept.current(look=True) is options
        (files.directory / "key.pem").unlink()
        for _ in range(3):
            assert kept.current(look=True) is options
        # Once for each state that does not fit.
        assert [r.getMessage().partition("in use: ")[2].partition(" file")[0] for r in caplog.records][2:] == ["key"]
        assert len(caplog.records) == 3
    files.write(key=pair.key)
    assert kept.current(look=True) == TlsOptions(ca=other.ca, cert=pair.cert, key=pair.key)


def test_files_are_looked_at_once_a_second(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    options = files.load()
    kept = Certificates(options)
    assert kept.current() is options
    other = Authority("other")
    files.write_all(other, other.issue("client"))
    now += 0.9
    assert kept.current() is options
    now += 0.2
    renewed = kept.current()
    assert renewed is not None
    assert renewed.ca == other.ca


def test_the_same_certificates_in_new_files_change_nothing(files: Files) -> None:
    options = files.load()
    kept = Certificates(options)
    os.utime(files.directory / "ca.pem", ns=(1, 1))
    assert kept.current(look=True) is options


def test_plain_connections_have_none() -> None:
    assert Certificates(None).current(look=True) is None


# --- open connections ---


async def raw_get(request: Any, _context: Any) -> kvrpcpb_pb2.RawGetResponse:
    return kvrpcpb_pb2.RawGetResponse(value=request.key * 2)


@pytest.mark.usefixtures("each_look")
async def test_calls_under_way_end_on_the_old_channel(files: Files, authority: Authority) -> None:
    go_on = asyncio.Event()

    async def backup(_request: Any, _context: Any) -> AsyncIterator[brpb_pb2.BackupResponse]:
        yield brpb_pb2.BackupResponse(start_key=b"a")
        await go_on.wait()
        yield brpb_pb2.BackupResponse(start_key=b"b")

    async with serving({methods.KV_RAW_GET: raw_get, methods.BACKUP: backup}, tls=served(authority)) as address:
        connection = Connection(address, tls=files.load(), options=GrpcOptions(), store_id=4)
        async with aclosing(connection.stream(methods.BACKUP, brpb_pb2.BackupRequest())) as stream:
            assert (await anext(stream)).start_key == b"a"
            first = connection._current
            files.write_all(authority, authority.issue("renewed"))
            assert (await connection.call(methods.KV_RAW_GET, REQUEST, timeout_s=10)).value == b"kk"
            assert connection._current is not first
            assert connection._retired == {first}
            go_on.set()
            assert [r.start_key async for r in stream] == [b"b"]
        # The last call on it is over.
        assert connection._retired == set()
        await connection.close()
        assert connection._closing == set()


async def test_a_server_with_new_certificates_is_found_at_the_first_try(files: Files, authority: Authority) -> None:
    """Even within the second in which the files are not looked at by themselves."""
    other = Authority("other")
    async with serving({methods.KV_RAW_GET: raw_get}, tls=served(other)) as address:
        connection = Connection(address, tls=files.load(), options=GrpcOptions(), store_id=4)
        with pytest.raises(AuthenticationError, match="the given CA has not signed"):
            await connection.call(methods.KV_RAW_GET, REQUEST, timeout_s=10)
        files.write_all(other, other.issue("client"))
        assert (await connection.call(methods.KV_RAW_GET, REQUEST, timeout_s=10)).value == b"kk"
        await connection.close()


async def test_every_request_under_way_gets_the_new_certificates(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "LOOK_EVERY_S", 3600.0)
    other = Authority("other")
    async with (
        EmbeddedCluster(data_dir=tmp_path / "data", tls=served(other)) as embedded,
        http_client(files.load(), timeout_s=10) as client,
    ):
        files.write_all(other, other.issue("client"))
        url = f"https://{embedded.pd_address}/pd/api/v1/config/cluster-version"
        answers = await asyncio.gather(*(client.get(url) for _ in range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4


async def use(cluster: Cluster) -> None:
    """All four ways to a cluster."""
    assert await cluster.pd.tso() > 0
    assert await cluster.http.schedulers()
    for store in await cluster.up_stores():
        await (await cluster.client(store.id)).switch_mode(import_mode=False)
        assert await cluster.store_config(store, timeout_s=5)


async def test_a_cluster_outlives_the_certificates_of_both_sides(
    files: Files, authority: Authority, tmp_path: Path
) -> None:
    async with EmbeddedCluster(data_dir=tmp_path / "data", stores=2, tls=served(authority)) as embedded:
        options = ClusterOptions(pd=(embedded.pd_address,), tls=files.load())
        async with await Cluster.connect(options) as cluster:
            await use(cluster)
            for name in ("second", "third"):
                ca = Authority(name)
                # Half of a renewal disturbs nobody.
                files.write(cert=ca.issue("client").cert)
                await use(cluster)
                await embedded.renew_tls(served(ca))
                files.write_all(ca, ca.issue("client"))
                await use(cluster)
            assert cluster.pd.certificates.current() != options.tls
