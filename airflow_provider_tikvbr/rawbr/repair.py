"""Put right what a job that was killed has left behind: on a cluster, and in the places where it wrote.

What is found is told first and done then, so that it can also be told alone. TiKV tells neither whether a store is in
import mode nor its download limit, and PD does not show temporary settings, so these three are ended in any case: that
does no harm to a cluster that nobody restores into. Everything else is left as it is if no job can have left it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from airflow_provider_tikvbr.exceptions import TikvBrError, UnsupportedError
from airflow_provider_tikvbr.rawbr.humanize import human_duration
from airflow_provider_tikvbr.rawbr.leases import FIXED_SETTINGS, SCHEDULERS, SETTINGS_PER_STORE, STORE_TIMEOUT_S
from airflow_provider_tikvbr.rawbr.repair_places import Places
from airflow_provider_tikvbr.rawbr.repair_steps import UNKNOWN, Repair, Reporter, Step, carry_out, unseen
from airflow_provider_tikvbr.rawbr.safepoint import SERVICE_PREFIX
from airflow_provider_tikvbr.tikv.model import Store
from airflow_provider_tikvbr.tikv.options import ClusterOptions
from airflow_provider_tikvbr.tikv.pd import LOGICAL_BITS, PDClient
from airflow_provider_tikvbr.tikv.pd_http import PDHttp, ServiceSafePoint
from airflow_provider_tikvbr.tikv.store import StoreClient


async def repair(
    options: ClusterOptions,
    places: Places,
    *,
    dry_run: bool = False,
    drop_safepoints: bool = False,
    report: Reporter,
) -> tuple[Repair, ...]:
    """Look at everything that a killed job may have left, and undo it.

    Nothing is changed while a job lives, or may live, that has locked one of the places. Data, checkpoints and backups
    are never touched.

    :param options: how to reach the cluster. Stores may be down.
    :param places: where jobs have written.
    :param dry_run: tell only.
    :param drop_safepoints: end the backups' holds on garbage collection too.
    :param report: told each thing once, when its fate is known.
    :return: what could not be put right.
    :raises StorageLockedError: such a job lives, or may live.
    :raises TikvBrError: PD does not answer, or a place cannot be read.
    """
    async with await PDClient.connect(options) as pd:
        http = PDHttp(pd)
        clients: list[StoreClient] = []
        try:
            locks = await places.locks(pd.cluster_id)
            steps = [
                *_store_steps(await pd.stores(), pd, clients),
                *await _schedulers(http),
                *await _settings(http),
                *await _safepoints(pd, http, await places.wanted_safepoints(), drop=drop_safepoints),
            ]
            failed = await carry_out(steps, dry_run=dry_run, report=report)
            # Last: whoever comes after this finds the cluster put right.
            return (*failed, *await carry_out(locks, dry_run=dry_run, report=report))
        finally:
            await asyncio.gather(*(client.close() for client in clients))
            await http.close()


def _store_steps(stores: Sequence[Store], pd: PDClient, clients: list[StoreClient]) -> list[Step]:
    """Normal mode and full speed for every store that may hold data."""
    options = pd.options
    steps: list[Step] = []
    for store in stores:
        if store.is_tiflash:
            continue
        client = StoreClient(store, tls=pd.certificates, options=options.grpc, address_map=options.address_map)
        clients.append(client)
        who = f"store {store.id} ({store.address})"
        steps += (
            Step(
                found=Repair(what=f"{who}, import mode", before=UNKNOWN, after="off"),
                act=_normal_mode(client),
                otherwise="a store leaves it by itself ten minutes after it was last asked for, or when it restarts",
            ),
            Step(
                found=Repair(what=f"{who}, download limit", before=UNKNOWN, after="none"),
                act=_full_speed(client),
                otherwise="a store forgets it when it restarts",
            ),
        )
    return steps


def _normal_mode(client: StoreClient) -> Callable[[], Awaitable[None]]:
    return lambda: client.switch_mode(import_mode=False, timeout_s=STORE_TIMEOUT_S)


def _full_speed(client: StoreClient) -> Callable[[], Awaitable[None]]:
    return lambda: client.set_download_speed_limit(0, timeout_s=STORE_TIMEOUT_S)


async def _schedulers(http: PDHttp) -> list[Step]:
    """Let those go on that jobs pause."""
    try:
        paused = await http.paused_schedulers()
    except TikvBrError as err:
        return [unseen("PD's schedulers", err, "those that a job has paused go on by themselves after five minutes")]

    def resume(name: str) -> Callable[[], Awaitable[None]]:
        return lambda: http.pause_scheduler(name, 0)

    return [
        Step(
            found=Repair(what=f"PD's {name}", before="paused", after="running"),
            act=resume(name),
            otherwise="if a job has paused it, it goes on by itself after five minutes",
        )
        for name in sorted(SCHEDULERS.intersection(paused))
    ]


async def _settings(http: PDHttp) -> list[Step]:
    """Let the lasting settings hold again."""
    what, otherwise = "PD's temporary schedule settings", "they end by themselves after five minutes"
    try:
        config = await http.schedule_config()
    except TikvBrError as err:
        return [unseen(what, err, otherwise)]
    lasting = {name: config[name] for name in (*FIXED_SETTINGS, *SETTINGS_PER_STORE) if name in config}
    if not lasting:
        return []

    async def end() -> None:
        # For the second until they end, the values are those that hold afterwards.
        await http.end_schedule_ttl(lasting)

    return [Step(found=Repair(what=what, before=UNKNOWN, after="none"), act=end, otherwise=otherwise)]


async def _safepoints(pd: PDClient, http: PDHttp, wanted: Mapping[str, str], *, drop: bool) -> list[Step]:
    """Tell of what backups hold garbage collection back with.

    :param wanted: services that an unfinished backup will go on with, and where that one is.
    """
    what = "GC safepoints"
    try:
        found = await http.service_safe_points()
        now = (await pd.tso() >> LOGICAL_BITS) / 1000
    except UnsupportedError as err:
        return [Step(found=Repair(what=what, before=UNKNOWN, why=str(err)))]
    except TikvBrError as err:
        return [unseen(what, err, "those of backups expire by themselves")]

    def remove(point: ServiceSafePoint) -> Callable[[], Awaitable[None]]:
        async def act() -> None:
            await pd.update_service_safe_point(service_id=point.service_id, ttl_s=0, safe_point=point.safe_point)

        return act

    steps: list[Step] = []
    for point in sorted(found, key=lambda each: each.service_id):
        # Those of tikv-br and of TiDB's BR have such names too.
        if not point.service_id.startswith(SERVICE_PREFIX):
            continue
        name = f"GC safepoint {point.service_id}"
        left = human_duration(max(0, round(point.expires_at - now)))
        before = f"holds GC at {point.safe_point} for another {left}"
        if drop:
            steps.append(
                Step(
                    found=Repair(what=name, before=before, after="removed"),
                    act=remove(point),
                    otherwise=f"it expires by itself in {left}",
                )
            )
            continue
        place = wanted.get(point.service_id)
        why = f"the unfinished backup in {place} goes on with it" if place else "it expires by itself"
        steps.append(Step(found=Repair(what=name, before=before, why=why)))
    return steps
