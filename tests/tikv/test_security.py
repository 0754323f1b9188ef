from __future__ import annotations

import ssl
import tempfile
from pathlib import Path

import pytest

from airflow_provider_tikvbr.embedded.serving import ServerTls
from airflow_provider_tikvbr.exceptions import AuthenticationError
from airflow_provider_tikvbr.tikv.options import TlsOptions
from airflow_provider_tikvbr.tikv.security import diagnose, ssl_context
from tests.support.certs import Authority, KeyPair
from tests.tikv.servers import closed_port, serving, silent_port


def server_tls(pair: KeyPair, ca: bytes | None = None) -> ServerTls:
    return ServerTls(cert=pair.cert, key=pair.key, ca=ca)


async def look(address: str, tls: TlsOptions | None, timeout_s: float = 5) -> AuthenticationError | None:
    return await diagnose(address, tls, timeout_s=timeout_s)


def test_context_trusts_the_ca_alone_and_leaves_no_key_behind(
    authority: Authority, client_pair: KeyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    context = ssl_context(TlsOptions(ca=authority.ca, cert=client_pair.cert, key=client_pair.key))
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert len(context.get_ca_certs()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_may_say_whose_its_certificates_are(authority: Authority) -> None:
    bundle = TlsOptions.load(ca="# Ausgestellt für Köln\n" + authority.ca.decode())
    assert bundle is not None
    assert len(ssl_context(bundle).get_ca_certs()) == 1


async def test_plain_client_at_a_tls_port(authority: Authority, server_pair: KeyPair) -> None:
    for ca in (None, authority.ca):
        async with serving({}, tls=server_tls(server_pair, ca)) as address:
            error = await look(address, None)
        assert error is not None
        assert "speaks TLS only: give the CA" in str(error)
        assert error.address == address


async def test_tls_client_at_a_plain_port(authority: Authority) -> None:
    async with serving({}) as address:
        error = await look(address, TlsOptions(ca=authority.ca))
    assert "does not speak TLS: drop the certificates" in str(error)


async def test_wrong_ca(server_pair: KeyPair) -> None:
    async with serving({}, tls=server_tls(server_pair)) as address:
        error = await look(address, TlsOptions(ca=Authority("other").ca))
    assert "shows a certificate that the given CA has not signed" in str(error)


async def test_certificate_for_another_host(authority: Authority) -> None:
    async with serving({}, tls=server_tls(authority.issue("tikv.example"))) as address:
        error = await look(address, TlsOptions(ca=authority.ca))
    assert "shows a certificate for other names" in str(error)
    assert "127.0.0.1" in str(error)


async def test_missing_client_certificate(authority: Authority, server_pair: KeyPair) -> None:
    async with serving({}, tls=server_tls(server_pair, authority.ca)) as address:
        error = await look(address, TlsOptions(ca=authority.ca))
    assert "wants a client certificate: give cert and key besides ca" in str(error)


async def test_refused_client_certificate(authority: Authority, server_pair: KeyPair) -> None:
    stranger = Authority("other").issue("client")
    async with serving({}, tls=server_tls(server_pair, authority.ca)) as address:
        error = await look(address, TlsOptions(ca=authority.ca, cert=stranger.cert, key=stranger.key))
    assert "refuses our client certificate" in str(error)


async def test_nothing_wrong_with_tls(authority: Authority, server_pair: KeyPair) -> None:
    tls = TlsOptions(ca=authority.ca)
    async with serving({}) as plain, serving({}, tls=server_tls(server_pair)) as secure, silent_port() as silent:
        assert await look(plain, None) is None
        assert await look(secure, tls) is None
        assert await look(silent, None, 0.1) is None
        assert await look(silent, tls, 0.1) is None
    assert await look(closed_port(), None) is None
    assert await look(closed_port(), tls) is None
