"""TLS: contexts for HTTP, and finding out why a connection fails.

gRPC reports every failed connection in the same way. When nobody answers, :func:`diagnose` looks closer with a plain
socket: does the server speak TLS where we do not, or the other way round; does it show a certificate of another CA or
for another name; does it want one of ours?
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from airflow_provider_tikvbr.exceptions import AuthenticationError
from airflow_provider_tikvbr.tikv.options import TlsOptions

# The start of every HTTP/2 connection: the preface and an empty SETTINGS frame. gRPC servers answer with SETTINGS.
HTTP2_HELLO: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
TLS_RECORD_TYPES: Final = (0x15, 0x16)  # alert, handshake
CERTIFICATE_WANTED: Final = ("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "HANDSHAKE_FAILURE", "UNKNOWN_CA")


def ssl_context(tls: TlsOptions) -> ssl.SSLContext:
    """A client context that trusts the given CA alone and shows our certificate if there is one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=tls.ca.decode())
    if tls.cert is not None and tls.key is not None:
        # The ssl module reads key pairs from files only.
        handle, name = tempfile.mkstemp(prefix="tikvbr-", suffix=".pem")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(tls.cert + b"\n" + tls.key)
            context.load_cert_chain(name)
        finally:
            Path(name).unlink()
    return context


async def diagnose(address: str, tls: TlsOptions | None, *, timeout_s: float) -> AuthenticationError | None:
    """Find out whether TLS is what keeps us from a server.

    :param address: ``host:port`` of the server.
    :param tls: the certificates we use; None means we speak plainly.
    :param timeout_s: how long each look may take, in seconds.
    :return: an error that says what is wrong; None if it is not TLS, or if that cannot be told.
    """
    message = await asyncio.to_thread(_diagnose, address, tls, timeout_s)
    return AuthenticationError(message, address=address) if message else None


def _diagnose(address: str, tls: TlsOptions | None, timeout_s: float) -> str | None:
    host, _, port = address.rpartition(":")
    target = (host.strip("[]"), int(port))
    try:
        if tls is None:
            if _speaks_tls(target, timeout_s):
                return f"{address} speaks TLS only: give the CA (and certificate and key, if it wants them)"
            return None
        return _tls_failure(address, target, tls, timeout_s)
    except OSError:
        return None


def _speaks_tls(target: tuple[str, int], timeout_s: float) -> bool:
    """Whether a server that is spoken to plainly answers with a TLS record, or completes a handshake."""
    with socket.create_connection(target, timeout_s) as plain:
        plain.sendall(HTTP2_HELLO)
        with suppress(OSError):
            answer = plain.recv(1)
            if answer:
                return answer[0] in TLS_RECORD_TYPES
    # Closed without a word, or silent: try a handshake that accepts any certificate.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection(target, timeout_s) as plain, context.wrap_socket(plain):
            return True
    except ssl.SSLError as err:
        return any(reason in str(err) for reason in CERTIFICATE_WANTED)


def _tls_failure(address: str, target: tuple[str, int], tls: TlsOptions, timeout_s: float) -> str | None:
    context = ssl_context(tls)
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection(target, timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=target[0]) as secure,
        ):
            # In TLS 1.3 a server refuses our certificate only after the handshake, with its first answer.
            secure.sendall(HTTP2_HELLO)
            secure.recv(1)
            return None
    except ssl.SSLCertVerificationError as err:
        reason = err.verify_message.rstrip(".")
        return f"{address} shows a certificate that the given CA and its name do not vouch for: {reason}"
    except ssl.SSLError as err:
        if any(reason in str(err) for reason in CERTIFICATE_WANTED):
            if tls.cert is None:
                return f"{address} wants a client certificate: give cert and key besides ca"
            return f"{address} refuses our client certificate: {err.reason or err}"
        if not _speaks_plainly(target, timeout_s):
            return None
    except (ConnectionError, TimeoutError):
        if not _speaks_plainly(target, timeout_s):
            return None
    return f"{address} does not speak TLS: drop the certificates, or switch TLS on in the cluster"


def _speaks_plainly(target: tuple[str, int], timeout_s: float) -> bool:
    """Whether a server answers a plain HTTP/2 greeting with anything but a TLS record."""
    try:
        with socket.create_connection(target, timeout_s) as plain:
            plain.sendall(HTTP2_HELLO)
            answer = plain.recv(1)
    except OSError:
        return False
    return bool(answer) and answer[0] not in TLS_RECORD_TYPES
