"""The hook: reads an Airflow connection of type ``tikv``, and tries it."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_tikvbr.connections import find_connection
from airflow_provider_tikvbr.engine_job import EngineJob
from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.masking import mask_pem
from airflow_provider_tikvbr.rawbr.options import parse_api_version
from airflow_provider_tikvbr.rawbr.parsing import Duration, Number, parse_duration, parse_flag, parse_whole
from airflow_provider_tikvbr.tikv.addresses import AddressMap
from airflow_provider_tikvbr.tikv.keys import MAX_KEYSPACE_ID
from airflow_provider_tikvbr.tikv.options import (
    DEFAULT_PD_PORT,
    ClusterOptions,
    GrpcOptions,
    TlsOptions,
    parse_keyspace,
    parse_pd,
)
from airflow_provider_tikvbr.timelimit import within

if TYPE_CHECKING:
    from airflow_provider_tikvbr.tikv.cluster import ClusterDescription

V = TypeVar("V")

# Where the API server does not have this package, its form offers no connection of type tikv.
CONN_TYPES = ("tikv", "generic", "")

# The fields of a connection's extra that are read; get_provider_info describes them for the form.
EXTRA_FIELDS = (
    "api_version",
    "cluster_id",
    "keyspace",
    "keyspace_id",
    "address_map",
    "ca",
    "cert",
    "private_key",
    "check_requirements",
    "connect_timeout",
    "grpc_keepalive_time",
    "grpc_keepalive_timeout",
    "grpc_max_recv_msg_size",
)

MAX_MESSAGE_SIZE = (1 << 31) - 1

_PEM_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.DOTALL)


class TiKVHook(BaseHook):
    """Knows how to reach a TiKV cluster.

    The connection's host is a comma list of PD endpoints; each may carry its own port, and the others use the
    connection's port or 2379. These fields of the connection's extra are read, and no others:

    * ``api_version``: ``v1``, ``v1ttl`` or ``v2``, if the cluster must have that one;
    * ``cluster_id``: if it must be that cluster;
    * ``keyspace``: the keyspace of API V2, by name or number; ``keyspace_id``: by number, 0 by default;
    * ``address_map``: where to reach the addresses that the cluster tells, such as ``tikv-0:20160=10.0.0.5:30160``;
    * ``ca``, ``cert``, ``private_key``: TLS, each as a path on the worker or as PEM text;
    * ``check_requirements``: whether stores that are too old, or TiFlash, are refused; yes by default;
    * ``connect_timeout``, ``grpc_keepalive_time``, ``grpc_keepalive_timeout``: durations such as ``10s``;
    * ``grpc_max_recv_msg_size``: the largest message to accept, in bytes; any by default.

    :param tikv_conn_id: name of the connection.
    """

    conn_name_attr = "tikv_conn_id"
    default_conn_name = "tikv_default"
    conn_type = "tikv"
    hook_name = "TiKV"

    def __init__(self, tikv_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tikv_conn_id = tikv_conn_id

    def get_conn(self) -> ClusterOptions:
        """The same as :meth:`cluster_options`; the clients themselves belong to an event loop."""
        return self.cluster_options()

    def cluster_options(
        self,
        *,
        ca: str | None = None,
        cert: str | None = None,
        key: str | None = None,
        check_requirements: bool | str | None = None,
        grpc_keepalive_time: Duration | None = None,
        grpc_keepalive_timeout: Duration | None = None,
        grpc_max_recv_msg_size: Number | None = None,
        keyspace: str | int | None = None,
        address_map: str | Mapping[str, str] | None = None,
    ) -> ClusterOptions:
        """Read the connection; each parameter that is given counts instead of the connection's field of that name.

        :param key: instead of the field ``private_key``.
        :param keyspace: instead of the fields ``keyspace`` and ``keyspace_id``.
        :raises InvalidOptionError: a field or a parameter cannot be right; the message names it, and the connection.
        :raises AirflowNotFoundException: there is no such connection.
        """
        conn = find_connection(self.tikv_conn_id, parameter="tikv_conn_id", hook=type(self))
        if (conn.conn_type or "").lower() not in CONN_TYPES:
            raise self._bad("type", f"it is {conn.conn_type}: name a connection of type {self.conn_type}")
        extra = self._field("extra", lambda: _extra(conn.extra))
        for name in extra:
            if name not in EXTRA_FIELDS:
                raise self._bad(name, f"there is no such field; there are {', '.join(EXTRA_FIELDS)}")
        if not conn.host:
            raise self._bad("host", "give the PD endpoints, such as pd0:2379,pd1:2379")
        given = _given(
            {
                "ca": ca,
                "cert": cert,
                "private_key": key,
                "check_requirements": check_requirements,
                "grpc_keepalive_time": grpc_keepalive_time,
                "grpc_keepalive_timeout": grpc_keepalive_timeout,
                "grpc_max_recv_msg_size": grpc_max_recv_msg_size,
                "keyspace": keyspace,
                "address_map": address_map,
            }
        )
        if "keyspace" in given:
            extra.pop("keyspace_id", None)
        extra |= given

        def read(names: str, how: Callable[[Mapping[str, Any]], V]) -> V:
            # Whose mistake it is: the connection's, or the task's.
            if given.keys() & set(names.split(", ")):
                return how(extra)
            return self._field(names, lambda: how(extra))

        tls = read("ca, cert, private_key", _tls)
        number = self._field("keyspace_id", lambda: _keyspace_id(extra))
        keyspace_id, keyspace_name = read("keyspace", lambda fields: _keyspace(fields, number))
        return ClusterOptions(
            pd=self._field(
                "host",
                lambda: parse_pd(_host(conn.host), default_port=conn.port or DEFAULT_PD_PORT, tls=tls is not None),
            ),
            tls=tls,
            grpc=GrpcOptions(
                keepalive_time_s=read("grpc_keepalive_time", _seconds("grpc_keepalive_time", 10, least_s=1)),
                keepalive_timeout_s=read("grpc_keepalive_timeout", _seconds("grpc_keepalive_timeout", 3, least_s=1)),
                max_receive_bytes=read("grpc_max_recv_msg_size", _message_size),
            ),
            api_version=self._field(
                "api_version", lambda: parse_api_version(extra.get("api_version"), parameter="api_version")
            ),
            cluster_id=self._field(
                "cluster_id", lambda: parse_whole(extra.get("cluster_id"), parameter="cluster_id", default=0) or None
            ),
            keyspace_id=keyspace_id,
            keyspace=keyspace_name,
            address_map=read("address_map", lambda fields: AddressMap.parse(fields.get("address_map"))),
            check_requirements=read(
                "check_requirements",
                lambda fields: parse_flag(
                    fields.get("check_requirements"), parameter="check_requirements", default=True
                ),
            ),
            connect_timeout_s=self._field(
                "connect_timeout", lambda: _seconds("connect_timeout", 10, least_s=0.001)(extra)
            ),
        )

    def describe(self) -> ClusterDescription:
        """Connect, and tell what is there.

        :raises TikvBrError: the cluster cannot be reached, or is not as the connection expects it.
        """
        from airflow_provider_tikvbr.tikv.cluster import Cluster

        options = self.cluster_options()

        async def look(_: object) -> ClusterDescription:
            async with await Cluster.connect(options) as cluster:
                return await within(options.connect_timeout_s, cluster.describe())

        return EngineJob(look, name="tikv-describe").run()

    def test_connection(self) -> tuple[bool, str]:
        """Try the connection: whether it works, and one sentence for the person who asked."""
        try:
            found = self.describe()
        except asyncio.TimeoutError:
            return False, f"the cluster of connection {self.tikv_conn_id} did not describe itself in time"
        except Exception as err:
            return False, " ".join(str(err).split()) or type(err).__name__
        return True, sentence(found)

    def _field(self, name: str, read: Callable[[], V]) -> V:
        try:
            return read()
        except InvalidOptionError as err:
            raise self._bad(name, str(err)) from err

    def _bad(self, name: str, why: str) -> InvalidOptionError:
        return InvalidOptionError(f"connection {self.tikv_conn_id}, field {name}: {why}", parameter="tikv_conn_id")


def sentence(found: ClusterDescription) -> str:
    """Describe a cluster in one sentence."""
    members = f"{found.pd_members} member{'s' if found.pd_members != 1 else ''}"
    return (
        f"Cluster {found.cluster_id}: PD leader {found.pd_leader} of {members},"
        f" stores {found.stores_up}/{found.stores_total} Up, TiKV {', '.join(found.tikv_versions) or 'unknown'},"
        f" API version {found.api_version.name}."
    )


def pem(text: str) -> str:
    """Mend PEM text that lost its line breaks on its way through a form or a JSON document; a path stays as it is."""
    if "-----BEGIN" not in text:
        return text
    text = text.replace("\\n", "\n")
    blocks = []
    for label, body in _PEM_BLOCK.findall(text):
        if ":" in body:
            # Headers of an encrypted key: its line breaks matter, and only a person can put them right.
            return text
        data = "".join(body.split())
        lines = [data[at : at + 64] for at in range(0, len(data), 64)]
        blocks.append("\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]))
    return "".join(blocks) or text


def _host(text: str | None) -> str:
    try:
        # A connection's URI loses the brackets.
        return f"[{ipaddress.IPv6Address(text)}]"
    except ValueError:
        return text or ""


def _extra(text: str | None) -> dict[str, Any]:
    # Not extra_dejson, which takes JSON that cannot be read for none at all.
    try:
        extra = json.loads(text) if text else {}
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise InvalidOptionError("it is not a JSON object", parameter="extra")
    return {name: value for name, value in extra.items() if value is not None and value != ""}


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """What somebody gave: a template that finds nothing makes an empty text, or ``None`` of it."""
    return {name: value for name, value in values.items() if value is not None and value not in ("", "None")}


def _tls(fields: Mapping[str, Any]) -> TlsOptions | None:
    ca, cert, key = (pem(str(fields.get(name, ""))) or None for name in ("ca", "cert", "private_key"))
    if key is not None:
        if "-----BEGIN" in key:
            mask_pem(key)
        elif not _is_file(key):
            # Not shown: it may be a key that lost its first line.
            raise InvalidOptionError("key is neither PEM text nor a file on this machine", parameter="key")
    return TlsOptions.load(ca=ca, cert=cert, key=key)


def _keyspace_id(fields: Mapping[str, Any]) -> int:
    return parse_whole(fields.get("keyspace_id"), parameter="keyspace_id", default=0, maximum=MAX_KEYSPACE_ID)


def _keyspace(fields: Mapping[str, Any], number: int) -> tuple[int, str]:
    named, name = parse_keyspace(fields.get("keyspace"))
    if named is not None and number not in (0, named):
        raise InvalidOptionError(f"keyspace is {named}, but keyspace_id is {number}: give one", parameter="keyspace")
    return (number if named is None else named), name


def _seconds(name: str, default_s: float, *, least_s: float) -> Callable[[Mapping[str, Any]], float]:
    return lambda fields: parse_duration(fields.get(name), parameter=name, default=default_s, minimum_s=least_s)


def _message_size(fields: Mapping[str, Any]) -> int:
    name = "grpc_max_recv_msg_size"
    return parse_whole(fields.get(name), parameter=name, default=-1, minimum=1, maximum=MAX_MESSAGE_SIZE)


def _is_file(text: str) -> bool:
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):
        return False
