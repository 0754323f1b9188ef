"""The embedded cluster in the foreground: what ``tikvbr embedded`` runs."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.fault_file import FaultScript, read_faults
from airflow_provider_tikvbr.embedded.serving import ServerTls
from airflow_provider_tikvbr.embedded.weather import Weather
from airflow_provider_tikvbr.embedded.weather_events import WeatherEvent
from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.tikv.keys import ApiVersion, UserKey


async def serve(cluster: EmbeddedCluster, *, out: TextIO, events: Sequence[WeatherEvent] = (), seed: int = 0) -> None:
    """Serve until SIGINT or SIGTERM.

    :param events: what happens to the cluster, counted from when it is ready.
    :param seed: for what is left to chance there.
    :param out: gets the line ``ready pd=HOST:PORT`` once clients may come; before it, where the cluster advertises names
        of its own domain, the line ``address-map=...`` that says where they are reached.
    :raises InvalidOptionError: the data directory holds another kind of cluster or is in use, or an event names a store
        that does not exist.
    :raises OSError: a port is taken.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        async with cluster:
            if cluster.address_map:
                out.write("address-map=" + ",".join(f"{told}={at}" for told, at in cluster.address_map.items()) + "\n")
            weather = Weather(cluster, events, seed=seed)
            out.write(f"ready pd={cluster.pd_address}\n")
            out.flush()
            async with weather:
                await stop.wait()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def run(
    *,
    data: Path,
    api_version: str = "v1",
    stores: int = 3,
    replicas: int = 1,
    pd_port: int = 2379,
    host: str = "127.0.0.1",
    domain: str = "",
    version: str = "8.5.0",
    split_keys: Sequence[UserKey] = (),
    keyspaces: Sequence[str] = (),
    faults: Path | None = None,
    max_store_down_s: float | None = None,
    tls: ServerTls | None = None,
) -> int:
    """Run an embedded cluster in the foreground until SIGINT or SIGTERM.

    :param data: the data directory; it is made if it is missing.
    :param api_version: ``v1``, ``v1ttl`` or ``v2``.
    :param stores: number of stores.
    :param replicas: number of peers of each region.
    :param pd_port: PD's port; 0 for any.
    :param host: where to listen, and what PD tells clients.
    :param domain: what PD tells clients instead: names in this domain, which they need an address map for.
    :param version: version that PD and the stores announce.
    :param split_keys: user keys at which a new cluster is split.
    :param keyspaces: what API V2 has beside the default keyspace: each a name, or ``name=number``.
    :param faults: a JSON file of what goes wrong at calls and what happens to the cluster; None for nothing.
    :param max_store_down_s: after how many seconds PD gives the peers of a store that is down to others.
    :param tls: TLS of every port, or None.
    :return: the exit code.
    :raises InvalidOptionError: an option cannot be right, or a port is taken.
    """
    try:
        parsed = ApiVersion.parse(api_version)
    except ValueError as err:
        raise InvalidOptionError(str(err), parameter="api_version") from err
    cluster = EmbeddedCluster(
        data_dir=data,
        api_version=parsed,
        stores=stores,
        replicas=replicas,
        pd_port=pd_port,
        host=host,
        domain=domain,
        version=version,
        split_keys=split_keys,
        keyspaces=_numbered(keyspaces),
        max_store_down_s=max_store_down_s,
        tls=tls,
    )
    script = FaultScript(0, [], ()) if faults is None else read_faults(faults)
    cluster.faults.seed(script.seed)
    cluster.faults.add_all(script.rules)
    try:
        asyncio.run(serve(cluster, out=sys.stdout, events=script.events, seed=script.seed))
    except OSError as err:
        why = os.strerror(err.errno) if err.errno and err.errno > 0 else err.strerror or str(err)
        raise InvalidOptionError(
            f"cannot serve at {host}:{pd_port}: {why}; give another port, 0 for any, or another host",
            parameter="pd_port",
        ) from err
    return 0


def _numbered(keyspaces: Sequence[str]) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for text in keyspaces:
        name, mark, number = text.partition("=")
        if not name or (mark and not number.isdecimal()):
            raise InvalidOptionError(f"keyspace {text!r} is neither a name nor name=number", parameter="keyspaces")
        found[name] = int(number) if mark else None
    return found
