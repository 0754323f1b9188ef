from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.tikv.options import ClusterOptions, GrpcOptions, TlsOptions, parse_keyspace, parse_pd
from tests.support.certs import Authority, KeyPair


@pytest.mark.parametrize(
    ("text", "endpoints"),
    [
        ("pd0:2379", ("pd0:2379",)),
        ("pd0", ("pd0:2379",)),
        (" pd0:1 , pd1:2,, ", ("pd0:1", "pd1:2")),
        ("pd0:1,pd0:1", ("pd0:1",)),
        ("http://pd0:1/", ("pd0:1",)),
        ("HTTP://pd0", ("pd0:2379",)),
        ("[::1]:5", ("[::1]:5",)),
        ("http://[fe80::1]", ("[fe80::1]:2379",)),
        ("10.0.0.1:2379", ("10.0.0.1:2379",)),
    ],
)
def test_pd_endpoints_are_read(text: str, endpoints: tuple[str, ...]) -> None:
    assert parse_pd(text) == endpoints


def test_scheme_must_agree_with_tls() -> None:
    assert parse_pd("https://pd0:1,pd1:2", tls=True) == ("pd0:1", "pd1:2")
    with pytest.raises(InvalidOptionError, match="http://pd0:1 is plain but certificates are given") as plain:
        parse_pd("http://pd0:1", tls=True)
    assert plain.value.parameter == "pd"
    with pytest.raises(InvalidOptionError, match="https://pd0:1 needs TLS but no certificates are given"):
        parse_pd("https://pd0:1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " , ",
        "pd0:port",
        "pd0:99999",
        "pd0:0",
        ":2379",
        "pd0:1/path",
        "pd0:1?x=1",
        "pd0:1#x",
        "ftp://pd0:1",
        "p d:1",
        "[::1:5",
        "::1:5",
    ],
)
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        parse_pd(text)
    assert caught.value.parameter == "pd"


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_a_default_port_that_cannot_be_is_refused(port: int) -> None:
    with pytest.raises(InvalidOptionError):
        parse_pd("pd0", default_port=port)


def test_a_password_in_an_endpoint_is_not_repeated() -> None:
    with pytest.raises(InvalidOptionError) as caught:
        parse_pd("http://user:hunter2@pd0:2379")
    assert "hunter2" not in str(caught.value)
    assert "pd0:2379" in str(caught.value)


def test_default_port() -> None:
    assert parse_pd("pd0", default_port=7) == ("pd0:7",)


def test_tls_from_text_and_from_files(authority: Authority, client_pair: KeyPair, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(authority.ca)
    (tmp_path / "key.pem").write_bytes(client_pair.key)
    options = TlsOptions.load(
        ca=str(tmp_path / "ca.pem"), cert=client_pair.cert.decode(), key=str(tmp_path / "key.pem")
    )
    assert options == TlsOptions(ca=authority.ca, cert=client_pair.cert, key=client_pair.key)
    assert client_pair.key.decode().splitlines()[1] not in repr(options)


def test_ca_alone_is_enough(authority: Authority) -> None:
    assert TlsOptions.load(ca=authority.ca.decode()) == TlsOptions(ca=authority.ca)


def test_nothing_given_means_no_tls() -> None:
    assert TlsOptions.load(ca=None, cert="", key=None) is None


def test_tls_mistakes_name_the_parameter(authority: Authority, client_pair: KeyPair, tmp_path: Path) -> None:
    ca, cert, key = authority.ca.decode(), client_pair.cert.decode(), client_pair.key.decode()
    other = authority.issue("other").key.decode()
    locked = (
        load_pem_private_key(client_pair.key, None)
        .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
        .decode()
    )
    (tmp_path / "text").write_text("hello")
    nothing = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    cases: list[tuple[str, str | None, str | None, str | None, str]] = [
        ("ca", None, cert, key, "cert and key given without ca"),
        ("key", ca, cert, None, "cert is given without key"),
        ("cert", ca, None, key, "key is given without cert"),
        ("ca", str(tmp_path / "missing"), None, None, "cannot be read: No such file or directory"),
        ("ca", str(tmp_path), None, None, "cannot be read: Is a directory"),
        ("ca", str(tmp_path / "text"), None, None, "is not in PEM form"),
        ("ca", nothing, None, None, "holds no certificate"),
        ("cert", ca, nothing, key, "holds no certificate"),
        ("key", ca, cert, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "holds no private key"),
        ("key", ca, cert, other, "does not belong to cert"),
        ("key", ca, cert, locked, "protected by a password"),
    ]
    for parameter, ca_text, cert_text, key_text, message in cases:
        with pytest.raises(InvalidOptionError, match=message) as caught:
            TlsOptions.load(ca=ca_text, cert=cert_text, key=key_text)
        assert caught.value.parameter == parameter


def test_cluster_options_check_themselves() -> None:
    with pytest.raises(InvalidOptionError, match="no PD endpoint"):
        ClusterOptions(pd=())
    with pytest.raises(InvalidOptionError, match="connect_timeout_s is 0"):
        ClusterOptions(pd=("pd0:1",), connect_timeout_s=0)
    with pytest.raises(InvalidOptionError, match="keyspace id 16777216 is outside"):
        ClusterOptions(pd=("pd0:1",), keyspace_id=1 << 24)
    with pytest.raises(InvalidOptionError, match="keepalive_time_s is -1"):
        GrpcOptions(keepalive_time_s=-1)
    with pytest.raises(InvalidOptionError, match="keyspace 'a b' is no name"):
        ClusterOptions(pd=("pd0:1",), keyspace="a b")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, (None, "")),
        ("", (None, "")),
        (0, (0, "")),
        (" 5 ", (5, "")),
        ("007", (7, "")),
        (0xFFFFFF, (0xFFFFFF, "")),
        ("orders", (None, "orders")),
        ("DEFAULT", (None, "DEFAULT")),
        ("7th_key-space", (None, "7th_key-space")),
    ],
)
def test_a_keyspace_is_given_by_number_or_name(value: Any, found: tuple[int | None, str]) -> None:
    assert parse_keyspace(value) == found


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1 << 24, "keyspace id 16777216 is outside 0..16777215"),
        ("99999999", "keyspace id 99999999 is outside"),
        (-1, "keyspace id -1 is outside"),
        ("a/b", "keyspace 'a/b' is no name"),
        ("\u0663", "is no name"),
        ("x" * 65, "up to 64 letters"),
    ],
)
def test_what_is_no_keyspace(value: Any, message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message) as caught:
        parse_keyspace(value)
    assert caught.value.parameter == "keyspace"
