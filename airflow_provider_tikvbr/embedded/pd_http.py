"""The placement driver's HTTP API, as far as backup, restore and people with curl use it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timezone
from typing import Any
from urllib.parse import unquote_to_bytes

from aiohttp import web

from airflow_provider_tikvbr.embedded.pd_service import PdMember, PlacementDriver
from airflow_provider_tikvbr.embedded.records import RegionState, StoreRecord
from airflow_provider_tikvbr.embedded.replicas import is_down
from airflow_provider_tikvbr.tikv.keys import KeyRange, RegionKey

API = "/pd/api/v1"
# PD counts a region without statistics as one MiB (PD, ``pkg/core/region.go``).
EMPTY_REGION_MIB = 1


class PdHttp:
    """The HTTP half of any member of PD: a follower passes requests on to the leader, so all answer alike.

    :param pd: what it tells.
    :param faults: the middleware that lets requests go wrong.
    """

    def __init__(self, pd: PlacementDriver, faults: Any) -> None:
        self._pd = pd
        self._faults = faults
        self._topology = pd.topology

    def app(self) -> web.Application:
        """The application to serve."""
        app = web.Application(middlewares=[self._faults, self._need_leader])
        app.router.add_get(f"{API}/ping", self._ping)
        app.router.add_get(f"{API}/version", self._version)
        app.router.add_get(f"{API}/members", self._members)
        app.router.add_get(f"{API}/stores", self._stores)
        app.router.add_get(f"{API}/store/{{id}}", self._store)
        app.router.add_get(f"{API}/stats/region", self._stats)
        app.router.add_get(f"{API}/schedulers", self._schedulers)
        app.router.add_post(f"{API}/schedulers/{{name}}", self._pause)
        app.router.add_get(f"{API}/gc/safepoint", self._safe_points)
        app.router.add_post(f"{API}/config", self._set_config)
        app.router.add_get(f"{API}/config/cluster-version", self._cluster_version)
        app.router.add_get(f"{API}/config/schedule", self._schedule)
        app.router.add_post(f"{API}/config/schedule", self._set_schedule)
        app.router.add_get(f"{API}/config/replicate", self._replicate)
        return app

    @web.middleware
    async def _need_leader(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if self._pd.leader is None:
            return web.Response(text="no leader", status=503)
        return await handler(request)

    # --- members and versions ---

    async def _ping(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, _request: web.Request) -> web.Response:
        return _answer({"version": f"v{self._topology.version}"})

    async def _cluster_version(self, _request: web.Request) -> web.Response:
        return _answer(self._topology.cluster_version)

    async def _members(self, _request: web.Request) -> web.Response:
        header = {"cluster_id": self._topology.cluster_id}
        members = [_member(m) for m in self._pd.members]
        leader = None if self._pd.leader is None else _member(self._pd.leader)
        return _answer({"header": header, "members": members, "leader": leader, "etcd_leader": leader})

    # --- stores and regions ---

    async def _stores(self, _request: web.Request) -> web.Response:
        stores = [self._store_json(s) for s in self._topology.stores.values()]
        return _answer({"count": len(stores), "stores": stores})

    async def _store(self, request: web.Request) -> web.Response:
        text = request.match_info["id"]
        store = self._topology.stores.get(int(text)) if text.isdecimal() else None
        if store is None:
            return _answer(f"store {text} not found", status=404)
        return _answer(self._store_json(store))

    def _store_json(self, store: StoreRecord) -> dict[str, Any]:
        message = store.message()
        regions = self._topology.regions
        beat = datetime.fromtimestamp(message.last_heartbeat / 1e9, tz=timezone.utc)
        return {
            "store": {
                "id": store.id,
                "address": message.address,
                "labels": [{"key": k, "value": v} for k, v in store.labels.items()],
                "version": message.version,
                "peer_address": message.peer_address,
                "status_address": message.status_address,
                "start_timestamp": message.start_timestamp,
                "deploy_path": message.deploy_path,
                "last_heartbeat": message.last_heartbeat,
                "node_state": store.node_state,
                "state_name": self._state_name(store),
            },
            "status": {
                "capacity": "10GiB",
                "available": "0B" if store.disk_full else "10GiB",
                "leader_count": sum(1 for r in regions if r.led_by(store.id)),
                "region_count": sum(1 for r in regions if r.peer_on(store.id)),
                "last_heartbeat_ts": beat.isoformat().replace("+00:00", "Z"),
            },
        }

    def _state_name(self, store: StoreRecord) -> str:
        if store.state != 0:
            return "Offline"
        if store.running:
            return "Up"
        return "Down" if is_down(store, self._pd) else "Disconnected"

    async def _stats(self, request: web.Request) -> web.Response:
        # Keys are escaped raw bytes, which need not be text, so the query is read undecoded.
        query = _raw_query(request)
        keys = KeyRange(RegionKey(query.get("start_key", b"")), RegionKey(query.get("end_key", b"")))
        return _answer(_region_stats(self._topology.scan(keys)))

    async def _replicate(self, _request: web.Request) -> web.Response:
        return _answer(
            {
                "max-replicas": self._topology.identity.replicas,
                "location-labels": "",
                "strictly-match-label": "false",
                "enable-placement-rules": "true",
                "enable-placement-rules-cache": "false",
                "isolation-level": "",
            }
        )

    # --- schedulers ---

    async def _schedulers(self, request: web.Request) -> web.Response:
        if request.query.get("status") == "paused":
            return _answer(sorted(self._pd.schedulers.paused()))
        return _answer(self._pd.schedulers.names())

    async def _pause(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        body = await _json_object(request)
        delay = body.get("delay") if body is not None else None
        if not isinstance(delay, int | float) or isinstance(delay, bool):
            return _answer("missing pause time", status=400)
        try:
            self._pd.schedulers.pause(name, int(delay))
        except KeyError:
            return _answer("[PD:scheduler:ErrSchedulerNotFound]scheduler not found", status=500)
        return _answer("Pause or resume the scheduler successfully.")

    # --- GC ---

    async def _safe_points(self, _request: web.Request) -> web.Response:
        found = [self._pd.safe_points.worker, *self._pd.safe_points.services().values()]
        services = [{"service_id": s.service_id, "expired_at": s.expires_at, "safe_point": s.safe_point} for s in found]
        return _answer({"service_gc_safe_points": services, "gc_safe_point": self._pd.safe_points.gc_safe_point})

    # --- settings ---

    async def _schedule(self, _request: web.Request) -> web.Response:
        return _answer(self._pd.config.values())

    async def _set_schedule(self, request: web.Request) -> web.Response:
        # A ttlSecond parameter means nothing here: PD changes the setting for good (PD, ``server/api/config.go``).
        body = await _json_object(request)
        if body is None:
            return _answer("the body is not a JSON object", status=400)
        try:
            self._pd.config.update(body)
        except ValueError as err:
            return _answer(str(err), status=400)
        return _answer("The config is updated.")

    async def _set_config(self, request: web.Request) -> web.Response:
        body = await _json_object(request)
        if body is None:
            return _answer("the body is not a JSON object", status=400)
        ttl = request.query.get("ttlSecond")
        try:
            if ttl is not None:
                self._pd.config.update_ttl(body, int(ttl))
                return _answer("The ttl config is updated.")
            self._pd.config.update({name.removeprefix("schedule."): value for name, value in body.items()})
        except ValueError as err:
            return _answer(str(err), status=400)
        return _answer("The config is updated.")


def _region_stats(regions: Iterable[RegionState]) -> dict[str, Any]:
    leaders: Counter[str] = Counter()
    peers: Counter[str] = Counter()
    count = 0
    for region in regions:
        count += 1
        leaders[str(region.leader_store_id)] += 1
        peers.update(str(s) for s in region.store_ids)
    size = {store: n * EMPTY_REGION_MIB for store, n in leaders.items()}
    return {
        "count": count,
        "empty_count": count,
        "storage_size": count * EMPTY_REGION_MIB,
        "user_storage_size": 0,
        "storage_keys": 0,
        "store_leader_count": leaders,
        "store_peer_count": peers,
        "store_leader_size": size,
        "store_leader_keys": dict.fromkeys(leaders, 0),
        "store_peer_size": {store: n * EMPTY_REGION_MIB for store, n in peers.items()},
        "store_peer_keys": dict.fromkeys(peers, 0),
    }


def _member(member: PdMember) -> dict[str, Any]:
    message = member.message()
    return {
        "name": message.name,
        "member_id": message.member_id,
        "peer_urls": list(message.peer_urls),
        "client_urls": list(message.client_urls),
        "deploy_path": message.deploy_path,
        "binary_version": f"v{member.version}",
    }


def _raw_query(request: web.Request) -> dict[str, bytes]:
    query = {}
    for part in request.rel_url.raw_query_string.split("&"):
        name, _, value = part.partition("=")
        query[name] = unquote_to_bytes(value.replace("+", " "))
    return query


async def _json_object(request: web.Request) -> dict[str, Any] | None:
    # Clients leave the content type out, so the body is read as JSON whatever it claims to be.
    try:
        body = json.loads(await request.read() or b"null")
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _answer(value: Any, *, status: int = 200) -> web.Response:
    return web.Response(text=json.dumps(value, indent=2) + "\n", status=status, content_type="application/json")
