"""How to reach a cluster: endpoints, TLS, gRPC settings, and what the user expects to find there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.secret_text import show_path
from airflow_provider_tikvbr.tikv.addresses import NO_ADDRESS_MAP, AddressMap
from airflow_provider_tikvbr.tikv.keys import MAX_KEYSPACE_ID, ApiVersion

DEFAULT_PD_PORT = 2379
MAX_PORT = 65535
PEM_MARK = "-----BEGIN "
# PD's rule for names has become stricter over time; this is what every version of it allows at most (PD,
# ``pkg/keyspace/util.go``).
KEYSPACE_NAME = re.compile(r"[-A-Za-z0-9_]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PemFile:
    """A file that certificates were read from.

    :param parameter: what it was given as: ``ca``, ``cert`` or ``key``.
    :param path: where it is.
    :param stamp: what it looked like just before it was read; see :meth:`look`.
    """

    parameter: str
    path: str
    stamp: tuple[int, ...] = ()

    def look(self) -> tuple[int, ...]:
        """Time of the last change, size and inode of what the path leads to now; nothing if that is no file."""
        try:
            found = Path(self.path).stat()
        except (OSError, ValueError):
            return ()
        return found.st_mtime_ns, found.st_size, found.st_ino

    def read(self) -> bytes:
        """The PEM text that it holds.

        :raises InvalidOptionError: it cannot be read, or holds something else.
        """
        try:
            data = Path(self.path).read_bytes()
        except (OSError, ValueError) as err:
            reason = getattr(err, "strerror", None) or "not a path"
            raise InvalidOptionError(
                f"{self.parameter} file {show_path(self.path)} cannot be read: {reason}", parameter=self.parameter
            ) from None
        if PEM_MARK.encode() not in data:
            raise InvalidOptionError(
                f"{self.parameter} file {show_path(self.path)} is not in PEM form", parameter=self.parameter
            )
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsOptions:
    """Certificates in PEM form.

    :param ca: the authorities that may have signed the servers' certificates.
    :param cert: our own certificate, when the servers want one (mutual TLS); with ``key`` or not at all.
    :param key: the private key of ``cert``.
    :param files: the files that they were read from, if they were; :meth:`renewed` reads them again.
    """

    # A file of certificates may hold a key too.
    ca: bytes = field(repr=False)
    cert: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)
    files: tuple[PemFile, ...] = field(default=(), compare=False)

    @classmethod
    def load(cls, *, ca: str | None, cert: str | None = None, key: str | None = None) -> TlsOptions | None:
        """Read what a user gave: each value is PEM text or the path of a PEM file.

        :return: None if nothing is given, which means no TLS.
        :raises InvalidOptionError: a file cannot be read, a text is not PEM, or the three do not fit together.
        """
        given = {name: text for name, text in (("ca", ca), ("cert", cert), ("key", key)) if text}
        pem = {name: text.encode() for name, text in given.items() if PEM_MARK in text}
        paths = [(name, _expanded(text)) for name, text in given.items() if name not in pem]
        return cls._read(pem, [PemFile(parameter=name, path=path) for name, path in paths])

    def stamps(self) -> tuple[tuple[int, ...], ...]:
        """What the files look like now."""
        return tuple(file.look() for file in self.files)

    def renewed(self) -> TlsOptions:
        """The certificates as their files hold them now; what was given as text stays.

        :return: the same object if no file has changed.
        :raises InvalidOptionError: a file cannot be read, or the three do not fit together: perhaps not all have been
            replaced yet.
        """
        if self.stamps() == tuple(file.stamp for file in self.files):
            return self
        kept = {"ca": self.ca, "cert": self.cert, "key": self.key}
        pem = {name: value for name, value in kept.items() if value is not None}
        return TlsOptions._read(pem, self.files) or self

    @classmethod
    def _read(cls, pem: dict[str, bytes], paths: Sequence[PemFile]) -> TlsOptions | None:
        # Looked at before they are read: a change in between shows at the next look.
        files = tuple(replace(file, stamp=file.look()) for file in paths)
        pem.update({file.parameter: file.read() for file in files})
        if not pem:
            return None
        if "ca" not in pem:
            given = " and ".join(sorted(pem))
            raise InvalidOptionError(
                f"{given} given without ca: give the CA that signed the servers' certificates too", parameter="ca"
            )
        for one, other in (("cert", "key"), ("key", "cert")):
            if one in pem and other not in pem:
                raise InvalidOptionError(f"{one} is given without {other}: mutual TLS needs both", parameter=other)
        options = cls(ca=pem["ca"], cert=pem.get("cert"), key=pem.get("key"), files=files)
        options._check()
        return options

    def _check(self) -> None:
        _certificates("ca", self.ca)
        if self.cert is None or self.key is None:
            return
        leaf = _certificates("cert", self.cert)[0]
        try:
            key = load_pem_private_key(self.key, password=None)
        except TypeError:
            raise InvalidOptionError("key is protected by a password: give it without one", parameter="key") from None
        except ValueError:
            raise InvalidOptionError("key holds no private key in PEM form", parameter="key") from None
        if key.public_key() != leaf.public_key():
            raise InvalidOptionError(
                "key does not belong to cert: give the private key of that certificate", parameter="key"
            )


def _expanded(path: str) -> str:
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        # The home of a user that does not exist.
        return path


def _certificates(name: str, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise InvalidOptionError(f"{name} holds no certificate in PEM form", parameter=name) from None


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise InvalidOptionError(f"{name} is {value}: give a number of seconds above 0", parameter=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcOptions:
    """Settings of the gRPC connections.

    :param keepalive_time_s: seconds of silence after which a connection in use is pinged.
    :param keepalive_timeout_s: seconds to wait for the answer to a ping before the connection counts as dead.
    :param max_receive_bytes: largest message to accept, in bytes; -1 means any.
    :param max_send_bytes: largest message to send, in bytes; -1 means any.
    :param connect_timeout_s: seconds that one attempt to connect may take.
    :param max_reconnect_backoff_s: longest pause between two attempts to connect, in seconds.
    """

    keepalive_time_s: float = 10.0
    keepalive_timeout_s: float = 3.0
    max_receive_bytes: int = -1
    max_send_bytes: int = -1
    connect_timeout_s: float = 5.0
    max_reconnect_backoff_s: float = 2.0

    def __post_init__(self) -> None:
        for name in ("keepalive_time_s", "keepalive_timeout_s", "connect_timeout_s", "max_reconnect_backoff_s"):
            _positive(name, getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """Where a cluster is and what is expected of it.

    :param pd: the placement driver's endpoints, each ``host:port`` without a scheme (see :func:`parse_pd`).
    :param tls: certificates; None means plain connections.
    :param grpc: settings of the gRPC connections.
    :param api_version: the API version that the cluster must have; None accepts any.
    :param cluster_id: the id that the cluster must have; None accepts any.
    :param keyspace_id: V2's keyspace to work in, by number; see :func:`parse_keyspace`.
    :param keyspace: the same by name, which PD is asked for; empty means that the number counts. Where a number other
        than 0 is given too, PD must know the keyspace by both.
    :param address_map: where to reach the addresses that the cluster tells; ``pd`` is used as it is.
    :param check_requirements: whether to refuse stores older than 5.0.0 and clusters with TiFlash.
    :param connect_timeout_s: how long to try to reach the placement driver and its leader, in seconds.
    """

    pd: tuple[str, ...]
    tls: TlsOptions | None = None
    grpc: GrpcOptions = GrpcOptions()
    api_version: ApiVersion | None = None
    cluster_id: int | None = None
    keyspace_id: int = 0
    keyspace: str = ""
    address_map: AddressMap = NO_ADDRESS_MAP
    check_requirements: bool = True
    connect_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if not self.pd:
            raise InvalidOptionError(
                "no PD endpoint is given: give host:port, several separated by commas", parameter="pd"
            )
        if not 0 <= self.keyspace_id <= MAX_KEYSPACE_ID:
            raise InvalidOptionError(
                f"keyspace id {self.keyspace_id} is outside 0..{MAX_KEYSPACE_ID}", parameter="keyspace_id"
            )
        if self.keyspace:
            _check_keyspace_name(self.keyspace)
        _positive("connect_timeout_s", self.connect_timeout_s)


def parse_keyspace(value: str | int | None) -> tuple[int | None, str]:
    """Read a keyspace that may be given by number or by name.

    :param value: a number, digits (which are a number too), or a name; nothing for the default keyspace.
    :return: the number, or None where a name or nothing is given; and the name, or "".
    :raises InvalidOptionError: the number is out of range, or the name can be none.
    """
    text = str(value).strip() if value is not None else ""
    if not text:
        return None, ""
    if re.fullmatch(r"-?[0-9]+", text):
        number = int(text)
        if not 0 <= number <= MAX_KEYSPACE_ID:
            raise InvalidOptionError(f"keyspace id {number} is outside 0..{MAX_KEYSPACE_ID}", parameter="keyspace")
        return number, ""
    _check_keyspace_name(text)
    return None, text


def _check_keyspace_name(name: str) -> None:
    if not KEYSPACE_NAME.fullmatch(name):
        raise InvalidOptionError(
            f"keyspace {name!r} is no name: give up to 64 letters, digits, - and _, or the keyspace's number",
            parameter="keyspace",
        )


def parse_pd(text: str, *, default_port: int = DEFAULT_PD_PORT, tls: bool = False) -> tuple[str, ...]:
    """Read a comma-separated list of PD endpoints.

    :param text: endpoints such as ``pd0:2379,pd1:2379``, each with or without ``http://`` or ``https://``.
    :param default_port: used where an endpoint names no port.
    :param tls: whether certificates are given; a scheme must say the same.
    :return: the endpoints as ``host:port``, in the order given, each once.
    :raises InvalidOptionError: an endpoint cannot be read, or its scheme contradicts ``tls``.
    """
    endpoints = [_endpoint(part.strip(), default_port, tls) for part in text.split(",") if part.strip()]
    if not endpoints:
        raise InvalidOptionError("no PD endpoint is given: give host:port, several separated by commas", parameter="pd")
    return tuple(dict.fromkeys(endpoints))


def _endpoint(text: str, default_port: int, tls: bool) -> str:
    scheme, mark, _ = text.partition("://")
    scheme = scheme.lower() if mark else ""
    if scheme not in ("", "http", "https"):
        raise InvalidOptionError(
            f"PD endpoint has the unknown scheme {scheme!r}: use http, https or none", parameter="pd"
        )
    try:
        url = urlsplit(text if mark else f"//{text}")
        host, port = url.hostname or "", url.port if url.port is not None else default_port
        more = "@" in url.netloc or url.path.strip("/") or url.query or url.fragment or " " in text
    except ValueError:
        host, port, more = "", 0, ""
    if not host or not 0 < port <= MAX_PORT or more:
        # What stands before an @ may be a password.
        raise InvalidOptionError(
            f"PD endpoint {text.rpartition('@')[2]!r} is not of the form host:port", parameter="pd"
        )
    endpoint = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if scheme == "http" and tls:
        raise InvalidOptionError(
            f"PD endpoint http://{endpoint} is plain but certificates are given: write https:// or drop the certificates",
            parameter="pd",
        )
    if scheme == "https" and not tls:
        raise InvalidOptionError(
            f"PD endpoint https://{endpoint} needs TLS but no certificates are given: give at least the CA",
            parameter="pd",
        )
    return endpoint
