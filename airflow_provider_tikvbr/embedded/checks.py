"""What a store checks before it serves a request for a region, and the answers of TiKV when a check fails.

Order and texts: TiKV, ``components/raftstore/src/store`` (regions) and ``src/storage`` (API versions and keys).
"""

from __future__ import annotations

from collections.abc import Iterable

from airflow_provider_tikvbr.embedded.engine import CF_DEFAULT, CFS
from airflow_provider_tikvbr.embedded.records import RegionState
from airflow_provider_tikvbr.embedded.topology import Topology
from airflow_provider_tikvbr.proto import errorpb_pb2, kvrpcpb_pb2, metapb_pb2
from airflow_provider_tikvbr.tikv.keys import RAW_MODE, ApiKey, ApiVersion, KeyRange, RegionKey

MAX_KEY_LENGTH = 8 * 1024

_API_NAMES = {0: "V1", 1: "V1ttl", 2: "V2"}


class RegionRefusedError(Exception):
    """The region does not take the request.

    :param error: what the client is told.
    """

    def __init__(self, error: errorpb_pb2.Error) -> None:
        super().__init__(error.message)
        self.error = error


class RequestRefusedError(Exception):
    """The request cannot be right, whatever the region.

    :param text: what calls with an ``error`` field answer.
    :param debug: what calls that answer with pairs put into one of them.
    """

    def __init__(self, text: str, debug: str) -> None:
        super().__init__(text)
        self.text = text
        self.abort = f"Error({debug})"


def api_name(version: int) -> str:
    """An API version as TiKV writes it in its messages."""
    return _API_NAMES.get(version, str(version))


# --- requests ---


def check_api_version(storage: ApiVersion, context: kvrpcpb_pb2.Context, command: str) -> None:
    """Refuse a request stamped for another API version; a V1TTL store takes requests stamped V1 only."""
    if int(context.api_version) != int(storage.in_context):
        ours, theirs = api_name(storage), api_name(context.api_version)
        raise RequestRefusedError(
            f"Api version in request does not match with TiKV storage, cmd: {command}, storage: {ours}, "
            f"request: {theirs}",
            f"ApiVersionNotMatched {{ cmd: {command}, storage_api_version: {ours}, req_api_version: {theirs} }}",
        )


def check_key_mode(storage: ApiVersion, keys: Iterable[ApiKey], command: str) -> None:
    """In V2, refuse keys that are not raw keys."""
    if storage is not ApiVersion.V2:
        return
    for key in keys:
        if not key.startswith(RAW_MODE):
            shown = key.hex().upper()
            raise RequestRefusedError(
                f"Key mode mismatched with the request mode, cmd: {command}, storage: V2, key: {shown}",
                f'InvalidKeyMode {{ cmd: {command}, storage_api_version: V2, key: "{shown}" }}',
            )


def is_raw_range(start: ApiKey, end: ApiKey) -> bool:
    """Whether a V2 range holds raw keys only: both ends given, of one mode, or up to the end of the mode."""
    return start[:1] == RAW_MODE and (end[:1] == RAW_MODE or end == bytes([RAW_MODE[0] + 1]))


def check_range_mode(storage: ApiVersion, ranges: Iterable[tuple[ApiKey, ApiKey]], command: str) -> None:
    """In V2, refuse ranges that are open or leave the raw keys."""
    if storage is not ApiVersion.V2:
        return
    for start, end in ranges:
        if not is_raw_range(start, end):
            upper = f'Some("{end.hex().upper()}")' if end else "None"
            shown = f'(Some("{start.hex().upper()}"), {upper})'
            raise RequestRefusedError(
                f"Key mode mismatched with the request mode, cmd: {command}, storage: V2, range: {shown}",
                f"InvalidKeyRangeMode {{ cmd: {command}, storage_api_version: V2, range: {shown} }}",
            )


def check_key_size(keys: Iterable[ApiKey]) -> None:
    """Refuse keys that are too long."""
    for key in keys:
        if len(key) > MAX_KEY_LENGTH:
            raise RequestRefusedError(
                f"max key size exceeded, size: {len(key)}, limit: {MAX_KEY_LENGTH}",
                f"KeyTooLarge {{ size: {len(key)}, limit: {MAX_KEY_LENGTH} }}",
            )


def check_cf(storage: ApiVersion, cf: str) -> str:
    """The column family of a raw request; V2 has done away with choosing one."""
    if not cf:
        return CF_DEFAULT
    if storage is ApiVersion.V2:
        raise RequestRefusedError(f"cf is deprecated in API V2, cf name: {cf}", f'CfDeprecated("{cf}")')
    if cf not in CFS:
        raise RequestRefusedError(f"invalid cf name: {cf}", f'InvalidCf("{cf}")')
    return cf


def check_ttl(storage: ApiVersion, ttls: Iterable[int], pairs: int) -> None:
    """Refuse lifetimes where there are none, or another number of them than of pairs."""
    given = list(ttls)
    if storage is ApiVersion.V1:
        if any(given):
            raise RequestRefusedError("ttl is not enabled, but get put request with ttl", "TtlNotEnabled")
    elif len(given) != pairs:
        raise RequestRefusedError("The length of ttls does not equal to the length of pairs", "TtlLenNotEqualsToPairs")


# --- regions ---


class RegionChecks:
    """Checks of one store against the topology.

    :param topology: where regions and leaders stand.
    :param store_id: the store that serves.
    """

    def __init__(self, *, topology: Topology, store_id: int) -> None:
        self._topology = topology
        self._store_id = store_id

    def region(self, context: kvrpcpb_pb2.Context) -> RegionState:
        """The region that a request addresses.

        :raises RegionRefusedError: another store, no such region here, another leader, or an older epoch.
        """
        region = self.led_region(context)
        if context.region_epoch.version != region.version:
            raise RegionRefusedError(self._epoch_not_match(region, context.region_epoch))
        return region

    def led_region(self, context: kvrpcpb_pb2.Context) -> RegionState:
        """Like :meth:`region`, but whatever the epoch."""
        asked = context.peer.store_id
        if asked != self._store_id:
            error = errorpb_pb2.Error(message=f"to store id {asked}, mine {self._store_id}")
            error.store_not_match.request_store_id = asked
            error.store_not_match.actual_store_id = self._store_id
            raise RegionRefusedError(error)
        region = self._topology.by_id(context.region_id)
        peer = region.peer_on(self._store_id) if region else None
        if region is None or peer is None:
            raise RegionRefusedError(region_not_found(context.region_id))
        if not region.led_by(self._store_id):
            raise RegionRefusedError(self._not_leader(region))
        if context.peer.id != peer.id:
            error = errorpb_pb2.Error(message=f"mismatch peer id {context.peer.id} != {peer.id}")
            error.mismatch_peer_id.request_peer_id = context.peer.id
            error.mismatch_peer_id.store_peer_id = peer.id
            raise RegionRefusedError(error)
        return region

    def check_majority(self, region: RegionState) -> None:
        """Refuse a write that could not be replicated; a real store would keep it waiting.

        :raises RegionRefusedError: as a busy store.
        """
        stores = self._topology.stores
        alive = sum(stores[store_id].running for store_id in region.store_ids)
        if 2 * alive <= len(region.peers):
            error = errorpb_pb2.Error(message=f"region {region.id} has lost the majority of its peers")
            error.server_is_busy.reason = error.message
            raise RegionRefusedError(error)

    def _not_leader(self, region: RegionState) -> errorpb_pb2.Error:
        leader = region.leader
        error = errorpb_pb2.Error(
            message=f"peer is not leader for region {region.id}, "
            f"leader may Some(id: {leader.id} store_id: {leader.store_id})"
        )
        error.not_leader.region_id = region.id
        error.not_leader.leader.CopyFrom(leader.message())
        return error

    def _epoch_not_match(self, region: RegionState, sent: metapb_pb2.RegionEpoch) -> errorpb_pb2.Error:
        error = epoch_not_match(region, sent)
        # Splits give the left pieces new ids: the client that missed them is told of the neighbours on the left.
        missed = region.version - sent.version
        left = self._topology.before(region)
        while missed > 0 and left is not None:
            if left.peer_on(self._store_id) is not None:
                error.epoch_not_match.current_regions.append(left.message())
                missed -= 1
            left = self._topology.before(left)
        return error


def epoch_text(epoch: metapb_pb2.RegionEpoch) -> str:
    """An epoch as TiKV writes it."""
    fields = (("conf_ver", epoch.conf_ver), ("version", epoch.version))
    return " ".join(f"{name}: {number}" for name, number in fields if number)


def epoch_not_match(region: RegionState, sent: metapb_pb2.RegionEpoch) -> errorpb_pb2.Error:
    """The region has changed since the client looked."""
    error = errorpb_pb2.Error(
        message=f"EpochNotMatch current epoch of region {region.id} is {epoch_text(region.epoch())}, "
        f"but you sent {epoch_text(sent)}"
    )
    error.epoch_not_match.current_regions.append(region.message())
    return error


def region_not_found(region_id: int) -> errorpb_pb2.Error:
    """The store has no peer of that region."""
    error = errorpb_pb2.Error(message=f"region {region_id} is missing")
    error.region_not_found.region_id = region_id
    return error


def stale_command(message: str) -> errorpb_pb2.Error:
    """The command came too late."""
    return errorpb_pb2.Error(message=message, stale_command=errorpb_pb2.StaleCommand())


def key_not_in_region(key: RegionKey, region: RegionState) -> errorpb_pb2.Error:
    """The key belongs to another region."""
    start, end = region.start.hex().upper(), region.end.hex().upper()
    error = errorpb_pb2.Error(
        message=f"key {key.hex().upper()} is not in region key range [{start}, {end}) for region {region.id}"
    )
    error.key_not_in_region.key = key
    error.key_not_in_region.region_id = region.id
    error.key_not_in_region.start_key = region.start
    error.key_not_in_region.end_key = region.end
    return error


def check_in_region(key: RegionKey, region: RegionState, *, inclusive: bool = False) -> None:
    """Refuse a key of another region.

    :param inclusive: take the region's end too, as a scan's seek does.
    """
    if not region.keys.contains(key) and not (inclusive and key == region.end):
        raise RegionRefusedError(key_not_in_region(key, region))


def clip(keys: KeyRange[RegionKey], region: RegionState) -> KeyRange[RegionKey] | None:
    """The part of a range that the region holds."""
    return keys.intersect(region.keys)
