"""TLS: contexts for HTTP, and finding out why a connection fails.

gRPC reports every failed connection in the same way. When nobody answers, :func:`diagnose` looks closer with a plain
socket: does the server speak TLS where we do not, or the other way round; does it show a certificate of another CA or
for another name; does it want one of ours?
"""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import os
import socket
import ssl
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509

from airflow_provider_tikvbr.exceptions import AuthenticationError
from airflow_provider_tikvbr.tikv.addresses import Target, split_address
from airflow_provider_tikvbr.tikv.options import TlsOptions

TLS_RECORD_TYPES: Final = (0x15, 0x16)  # alert, handshake
# What a server's alert says when it does not like our certificate, or misses it.
OUR_CERTIFICATE: Final = (
    "CERTIFICATE_REQUIRED",
    "BAD_CERTIFICATE",
    "CERTIFICATE_EXPIRED",
    "CERTIFICATE_UNKNOWN",
    "HANDSHAKE_FAILURE",
    "UNKNOWN_CA",
)
# OpenSSL's reasons to refuse the server's certificate (``X509_V_ERR_...``).
EXPIRED: Final = 10
NOT_YET_VALID: Final = 9
OTHER_NAMES: Final = (62, 64)


class Greeting(enum.Enum):
    """What to say to a server so that it answers: the protocol's name in TLS, and its first bytes."""

    # The preface of HTTP/2 and an empty SETTINGS frame (RFC 9113, section 3.4).
    GRPC = ("h2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"))
    HTTP = ("http/1.1", b"GET /config HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")


def ssl_context(tls: TlsOptions) -> ssl.SSLContext:
    """A client context that trusts the given CA alone and shows our certificate if there is one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # The ssl module takes ASCII only, and what people write between the certificates need not be.
    context.load_verify_locations(cadata=tls.ca.decode("ascii", "ignore"))
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


async def diagnose(
    target: Target | str,
    tls: TlsOptions | None,
    *,
    timeout_s: float,
    greeting: Greeting = Greeting.GRPC,
    who: str = "",
) -> AuthenticationError | None:
    """Find out whether TLS is what keeps us from a server.

    :param target: the server; ``host:port`` where it is reached where it says.
    :param tls: the certificates we use; None means we speak plainly.
    :param timeout_s: how long each look may take, in seconds.
    :param greeting: what the server speaks inside TLS.
    :param who: how the message calls the server; by its address if empty.
    :return: an error that says what is wrong; None if it is not TLS, or if that cannot be told.
    """
    server = target if isinstance(target, Target) else Target.at(target)
    host, port = split_address(server.reach)
    probe = _Probe((host.strip("[]"), int(port)), server.host, timeout_s, greeting)
    message = await asyncio.to_thread(probe.failure, tls)
    return AuthenticationError(f"{who or server} {message}", address=server.address) if message else None


@dataclass(frozen=True, slots=True)
class _Probe:
    """Looks at one server with blocking sockets; to be used in a thread."""

    reach: tuple[str, int]
    host: str
    timeout_s: float
    greeting: Greeting

    def failure(self, tls: TlsOptions | None) -> str | None:
        return self._plain_failure() if tls is None else self._tls_failure(tls)

    def _plain_failure(self) -> str | None:
        try:
            speaks_tls = self._speaks_tls()
        except OSError:
            return None
        return "speaks TLS only: give the CA (and certificate and key, if it wants them)" if speaks_tls else None

    def _tls_failure(self, tls: TlsOptions) -> str | None:
        context = ssl_context(tls)
        context.set_alpn_protocols([self.greeting.value[0]])
        try:
            with self._connect() as plain, context.wrap_socket(plain, server_hostname=self.host) as secure:
                return self._certificate_failure(secure, tls)
        except ssl.SSLCertVerificationError as err:
            return self._refusal(err)
        except ssl.SSLError as err:
            if _is_about_our_certificate(err):
                return _certificate_wanted(tls)
        except OSError:
            pass
        if self._speaks_plainly():
            return "does not speak TLS: drop the certificates, or switch TLS on in the cluster"
        return None

    def _refusal(self, err: ssl.SSLCertVerificationError) -> str:
        reason = err.verify_message.rstrip(".")
        if err.verify_code == EXPIRED:
            return "shows a certificate that has expired: renew it there"
        if err.verify_code == NOT_YET_VALID:
            return "shows a certificate that is not valid yet: compare the clocks of both machines"
        if err.verify_code in OTHER_NAMES:
            return f"shows a certificate for other names ({reason}): let the cluster be reached by a name in it"
        return f"shows a certificate that the given CA has not signed ({reason}): give the CA that the cluster uses"

    def _certificate_failure(self, secure: ssl.SSLSocket, tls: TlsOptions) -> str | None:
        """In TLS 1.3 a server refuses our certificate only after the handshake: by an alert, or without a word."""
        try:
            secure.sendall(self.greeting.value[1])
            answered = bool(secure.recv(1))
        except ssl.SSLError as err:
            return _certificate_wanted(tls) if _is_about_our_certificate(err) else None
        except TimeoutError:
            return None
        except OSError:
            answered = False
        return None if answered else _certificate_wanted(tls)

    def _speaks_tls(self) -> bool:
        with self._connect() as plain, suppress(OSError):
            plain.sendall(self.greeting.value[1])
            answer = plain.recv(1)
            if answer:
                return answer[0] in TLS_RECORD_TYPES
        # Closed without a word, or silent: try a handshake that accepts any certificate.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            with self._connect() as plain, context.wrap_socket(plain):
                return True
        except ssl.SSLError as err:
            return _is_about_our_certificate(err)

    def _speaks_plainly(self) -> bool:
        try:
            with self._connect() as plain:
                plain.sendall(self.greeting.value[1])
                answer = plain.recv(1)
        except OSError:
            return False
        return bool(answer) and answer[0] not in TLS_RECORD_TYPES

    def _connect(self) -> socket.socket:
        return socket.create_connection(self.reach, self.timeout_s)


def _is_about_our_certificate(err: ssl.SSLError) -> bool:
    return any(reason in str(err) for reason in OUR_CERTIFICATE)


def _certificate_wanted(tls: TlsOptions) -> str:
    if tls.cert is None:
        return "wants a client certificate: give cert and key besides ca"
    ends = x509.load_pem_x509_certificate(tls.cert).not_valid_after_utc
    if ends < dt.datetime.now(dt.timezone.utc):
        return f"refuses our client certificate, which has expired at {ends:%Y-%m-%d %H:%M} UTC: renew it"
    return "refuses our client certificate: give one that its CA has signed"
