from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from airflow.providers.common.compat.sdk import redact
from airflow.sdk import Connection

from airflow_provider_tikvbr.embedded.serving import ServerTls
from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.hooks.tikv import TiKVHook, pem
from airflow_provider_tikvbr.tikv.addresses import AddressMap
from airflow_provider_tikvbr.tikv.keys import ApiVersion
from airflow_provider_tikvbr.tikv.options import ClusterOptions, GrpcOptions
from tests.support.certs import Authority

Connect = Callable[..., TiKVHook]


class Certificate(NamedTuple):
    """A certificate for localhost, its key and who signed it, as PEM text."""

    ca: str
    cert: str
    key: str


@pytest.fixture(scope="session")
def certificate() -> Certificate:
    authority = Authority()
    pair = authority.issue("localhost")
    return Certificate(authority.ca.decode(), pair.cert.decode(), pair.key.decode())


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    def make(**fields: Any) -> TiKVHook:
        monkeypatch.setenv("AIRFLOW_CONN_TIKV_DEFAULT", json.dumps({"conn_type": "tikv", **fields}))
        return TiKVHook()

    return make


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadedCluster]:
    with ThreadedCluster(data_dir=tmp_path_factory.mktemp("v2"), api_version=ApiVersion.V2, stores=2) as cluster:
        yield cluster


# --- reading a connection ---


def test_the_plainest_connection(connect: Connect) -> None:
    assert connect(host="pd0").cluster_options() == ClusterOptions(pd=("pd0:2379",))


def test_endpoints_have_their_own_port_or_the_connections(connect: Connect) -> None:
    assert connect(host="pd0:1,pd1, http://pd2:3", port=99).cluster_options().pd == ("pd0:1", "pd1:99", "pd2:3")


@pytest.mark.parametrize(
    ("uri", "pd"),
    [
        ("tikv://pd0,pd1:1234/?api_version=v2&keyspace_id=7&check_requirements=false", ("pd0:1234", "pd1:1234")),
        ("tikv://[::1]:9/?api_version=v2&keyspace_id=7&check_requirements=false", ("[::1]:9",)),
        ("tikv://pd0%3A1%2Cpd1%3A2/?api_version=v2&keyspace_id=7&check_requirements=false", ("pd0:1", "pd1:2")),
    ],
)
def test_a_connection_written_as_a_uri(monkeypatch: pytest.MonkeyPatch, uri: str, pd: tuple[str, ...]) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", uri)
    options = TiKVHook(tikv_conn_id="other").cluster_options()
    assert options == ClusterOptions(pd=pd, api_version=ApiVersion.V2, keyspace_id=7, check_requirements=False)


def test_everything_a_form_can_give(connect: Connect, certificate: Certificate, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(certificate.ca)
    options = connect(
        host="https://pd0",
        extra={
            "api_version": "V1TTL",
            "cluster_id": "7123456789012345678",
            "keyspace_id": 0,
            "ca": str(tmp_path / "ca.pem"),
            "cert": certificate.cert,
            "private_key": certificate.key,
            "check_requirements": True,
            "connect_timeout": "2s",
            "grpc_keepalive_time": "20s",
            "grpc_keepalive_timeout": 5,
        },
    ).cluster_options()
    assert options.api_version is ApiVersion.V1TTL
    assert options.cluster_id == 7123456789012345678
    assert options.connect_timeout_s == 2
    assert (options.grpc.keepalive_time_s, options.grpc.keepalive_timeout_s) == (20, 5)
    assert options.tls is not None
    assert options.tls.ca == certificate.ca.encode()
    assert options.tls.key == certificate.key.encode()


@pytest.mark.parametrize("conn_type", ["tikv", "TiKV", "generic", ""])
def test_types_that_may_be_meant(connect: Connect, conn_type: str) -> None:
    assert connect(host="pd0", conn_type=conn_type).cluster_options().pd == ("pd0:2379",)


@pytest.mark.parametrize("flag", [0, "0", False, "false"])
def test_flags_of_a_connection(connect: Connect, flag: Any) -> None:
    assert connect(host="pd0", extra={"check_requirements": flag}).cluster_options().check_requirements is False


def test_what_a_form_leaves_empty_means_the_default(connect: Connect) -> None:
    extra = {"api_version": None, "cluster_id": "", "keyspace_id": None, "ca": "", "connect_timeout": None}
    assert connect(host="pd0", extra=extra).cluster_options() == ClusterOptions(pd=("pd0:2379",))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "field host: give the PD endpoints"),
        ({"conn_type": "aws", "host": "pd0"}, "field type: it is aws: name a connection of type tikv"),
        ({"host": "pd0", "port": 70000}, "field host: "),
        ({"host": "pd0", "extra": {"check_requirements": 2}}, "field check_requirements: "),
        ({"host": "pd0", "extra": {"connect_timeout": [1]}}, "field connect_timeout: "),
        ({"host": "pd0:x"}, "field host: "),
        ({"host": "https://pd0"}, "field host: PD endpoint https://pd0:2379 needs TLS"),
        ({"host": "pd0", "extra": {"apiversion": "v2"}}, "field apiversion: there is no such field; there are api_v"),
        ({"host": "pd0", "extra": "{'ca': ''}"}, "field extra: it is not a JSON object"),
        ({"host": "pd0", "extra": "[1]"}, "field extra: it is not a JSON object"),
        ({"host": "pd0", "extra": {"api_version": "v3"}}, "field api_version: .*give v1, v1ttl or v2"),
        ({"host": "pd0", "extra": {"keyspace_id": 1 << 24}}, "field keyspace_id: .*16777215"),
        ({"host": "pd0", "extra": {"keyspace": "no name"}}, "field keyspace: "),
        ({"host": "pd0", "extra": {"keyspace": 3, "keyspace_id": 4}}, "field keyspace: keyspace is 3, but keyspace_id"),
        ({"host": "pd0", "extra": {"address_map": {"a": 5}}}, "field address_map: "),
        ({"host": "pd0", "extra": {"grpc_max_recv_msg_size": -1}}, "field grpc_max_recv_msg_size: "),
        ({"host": "pd0", "extra": {"cluster_id": "x"}}, "field cluster_id: "),
        ({"host": "pd0", "extra": {"check_requirements": "maybe"}}, "field check_requirements: "),
        ({"host": "pd0", "extra": {"connect_timeout": "soon"}}, "field connect_timeout: "),
        ({"host": "pd0", "extra": {"ca": "/no/such/file"}}, "field ca, cert, private_key: .*/no/such/file"),
    ],
)
def test_a_mistake_is_named_in_one_sentence(connect: Connect, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidOptionError, match=f"^connection tikv_default, {says}") as caught:
        connect(**fields).cluster_options()
    assert "\n" not in str(caught.value)


def test_a_key_that_is_not_pem_is_not_shown(connect: Connect, certificate: Certificate) -> None:
    body = certificate.key.splitlines()[1]
    with pytest.raises(InvalidOptionError) as caught:
        connect(host="pd0", extra={"ca": certificate.ca, "private_key": body}).cluster_options()
    assert body not in str(caught.value)


def test_the_private_key_is_hidden_from_logs(connect: Connect, certificate: Certificate) -> None:
    extra = {"ca": certificate.ca, "cert": certificate.cert, "private_key": certificate.key}
    connect(host="pd0", extra=extra).cluster_options()
    assert certificate.key.splitlines()[1] not in str(redact(f"so {certificate.key}"))


def test_each_line_of_the_private_key_is_hidden(connect: Connect) -> None:
    key = Authority().issue("nobody").key.decode()
    extra = {"ca": "-----BEGIN CERTIFICATE-----", "private_key": key.replace("\n", " ")}
    with pytest.raises(InvalidOptionError):
        connect(host="pd0", extra=extra).cluster_options()
    for line in key.splitlines()[1:-2]:
        assert line not in str(redact(f"so {line} it goes"))
    assert "MII" not in str(redact(json.dumps(key)))


# --- what a task says instead ---


def test_parameters_count_instead_of_fields(connect: Connect, certificate: Certificate) -> None:
    extra = {
        "ca": "/no/such/file",
        "check_requirements": True,
        "grpc_keepalive_time": "20s",
        "grpc_keepalive_timeout": "nonsense",
        "keyspace": "tenant",
        "keyspace_id": 7,
        "address_map": {"pd0": "10.0.0.1"},
    }
    options = connect(host="pd0", extra=extra).cluster_options(
        ca=certificate.ca,
        cert=certificate.cert,
        key=certificate.key,
        check_requirements="False",
        grpc_keepalive_timeout=timedelta(seconds=7),
        grpc_max_recv_msg_size="1048576",
        keyspace="9",
        address_map="tikv-0:1=localhost:2",
    )
    assert options.tls is not None
    assert (options.tls.ca, options.tls.key) == (certificate.ca.encode(), certificate.key.encode())
    assert options.check_requirements is False
    assert (options.grpc.keepalive_time_s, options.grpc.keepalive_timeout_s) == (20, 7)
    assert options.grpc.max_receive_bytes == 1 << 20
    assert (options.keyspace, options.keyspace_id) == ("", 9)
    assert options.address_map == AddressMap.parse("tikv-0:1=localhost:2")


@pytest.mark.parametrize("empty", ["", None, "None"])
def test_parameters_that_are_empty_leave_it_to_the_fields(connect: Connect, empty: Any) -> None:
    extra = {
        "check_requirements": False,
        "grpc_keepalive_time": "20s",
        "grpc_max_recv_msg_size": 5,
        "keyspace": "tenant",
        "address_map": "pd0=10.0.0.1",
    }
    hook = connect(host="pd0", extra=extra)
    names = "ca cert key check_requirements grpc_keepalive_time grpc_keepalive_timeout grpc_max_recv_msg_size"
    assert hook.cluster_options(**dict.fromkeys(f"{names} keyspace address_map".split(), empty)) == ClusterOptions(
        pd=("pd0:2379",),
        check_requirements=False,
        grpc=GrpcOptions(keepalive_time_s=20, max_receive_bytes=5),
        keyspace="tenant",
        address_map=AddressMap.parse("pd0=10.0.0.1"),
    )


@pytest.mark.parametrize(
    ("parameters", "parameter"),
    [
        ({"ca": "/no/such/file"}, "ca"),
        ({"key": "nonsense"}, "key"),
        ({"check_requirements": "maybe"}, "check_requirements"),
        ({"grpc_keepalive_time": "soon"}, "grpc_keepalive_time"),
        ({"grpc_keepalive_timeout": 0}, "grpc_keepalive_timeout"),
        ({"grpc_max_recv_msg_size": "32MiB"}, "grpc_max_recv_msg_size"),
        ({"keyspace": "no name"}, "keyspace"),
        ({"keyspace": 1 << 24}, "keyspace"),
        ({"address_map": "a=b:1"}, "address_map"),
    ],
)
def test_a_parameter_that_is_wrong_is_named(connect: Connect, parameters: dict[str, Any], parameter: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        connect(host="pd0").cluster_options(**parameters)
    assert caught.value.parameter == parameter
    assert "connection" not in str(caught.value)


# --- PEM text ---


def test_pem_that_lost_its_line_breaks_is_mended(certificate: Certificate) -> None:
    both = certificate.cert + certificate.key
    assert pem(both.replace("\n", "")) == both
    assert pem(both.replace("\n", " ")) == both
    assert pem(both.replace("\n", "\\n")) == both
    assert pem(both) == both


@pytest.mark.parametrize("text", ["/etc/tikv/ca.pem", "", "-----BEGIN CERTIFICATE----- cut"])
def test_what_is_no_pem_block_stays(text: str) -> None:
    assert pem(text) == text


# --- trying a connection ---


def test_a_working_connection_is_described(connect: Connect, cluster: ThreadedCluster) -> None:
    works, message = connect(host=cluster.pd_address, extra={"api_version": "v2"}).test_connection()
    assert works, message
    assert message == (
        f"Cluster {cluster.topology.cluster_id}: PD leader {cluster.pd_address} of 1 member, stores 2/2 Up,"
        " TiKV 8.5.0, API version V2."
    )


def test_airflow_finds_the_hook_by_the_connections_type(cluster: ThreadedCluster) -> None:
    host, _, port = cluster.pd_address.partition(":")
    hook = Connection(conn_id="x", conn_type="tikv", host=host, port=int(port)).get_hook()  # type: ignore[no-untyped-call]
    assert isinstance(hook, TiKVHook)
    assert hook.tikv_conn_id == "x"


def test_tls_as_pem_text(connect: Connect, certificate: Certificate, tmp_path: Path) -> None:
    tls = ServerTls(cert=certificate.cert.encode(), key=certificate.key.encode(), ca=certificate.ca.encode())
    with ThreadedCluster(data_dir=tmp_path, stores=1, host="localhost", tls=tls) as cluster:
        extra = {
            "ca": certificate.ca.replace("\n", " "),
            "cert": certificate.cert,
            "private_key": certificate.key.replace("\n", ""),
        }
        works, message = connect(host=cluster.pd_address, extra=extra).test_connection()
        assert works, message
        works, message = connect(host=cluster.pd_address, extra={"connect_timeout": 3}).test_connection()
        assert not works
        assert "TLS" in message


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"api_version": "v1"}, "V2, but V1 is expected"),
        ({"cluster_id": "5"}, "cluster 5 is expected"),
        ({"api_version": "x"}, "field api_version"),
    ],
)
def test_a_cluster_that_is_not_as_expected(
    connect: Connect, cluster: ThreadedCluster, extra: dict[str, Any], says: str
) -> None:
    works, message = connect(host=cluster.pd_address, extra=extra).test_connection()
    assert not works
    assert says in message


def test_a_cluster_that_is_not_there(connect: Connect) -> None:
    works, message = connect(host="127.0.0.1:1", extra={"connect_timeout": "500ms"}).test_connection()
    assert not works
    assert "127.0.0.1:1" in message


def test_a_connection_that_is_not_there() -> None:
    works, message = TiKVHook(tikv_conn_id="nobody").test_connection()
    assert not works
    assert message.startswith("tikv_conn_id names the connection nobody, which is not defined")
