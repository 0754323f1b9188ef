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

    def region(self, context: kvrpcpb_pb2.Context, *, writes: bool = False) -> RegionState:
        """The region that a request addresses.

        :param writes: whether the request proposes a change, as opposed to reading.
        :raises RegionRefusedError: another store, no such region here, another leader, an older epoch, or the region
            takes no such request now.
        """
        region = self.led_region(context)
        if context.region_epoch.version != region.version:
            raise RegionRefusedError(self._epoch_not_match(region, context.region_epoch))
        self.check_open(region, writes=writes)
        return region

    def still_led(self, region_id: int, version: int) -> None:
        """Check that a region of which a job made a note is as it was, led here, and can be read.

        :raises RegionRefusedError: it is not.
        """
        region = self._topology.by_id(region_id)
        if region is None or region.peer_on(self._store_id) is None:
            raise RegionRefusedError(region_not_found(region_id))
        if not self._topology.leads(self._store_id, region):
            raise RegionRefusedError(self.not_leader(region))
        if region.version != version:
            sent = metapb_pb2.RegionEpoch(conf_ver=region.conf_ver, version=version)
            raise RegionRefusedError(self._epoch_not_match(region, sent))
        self.check_open(region)

    def check_open(self, region: RegionState, *, writes: bool = False) -> None:
        """Refuse what a region that is being merged, or whose leader's disk is full, does not do.

        Source: TiKV, ``components/raftstore/src/store/peer.rs`` (``pre_read_index``, ``check_proposal_with_disk_full``).

        :raises RegionRefusedError: it takes no such request now.
        """
        error = errorpb_pb2.Error()
        if region.merging and writes:
            error.message = f"peer in merging mode, can't do proposal, region_id: {region.id}"
            error.proposal_in_merging_mode.region_id = region.id
        elif region.merging:
            reason = "can not read index due to merge"
            error.message = f"read index not ready, reason {reason}, region {region.id}"
            error.read_index_not_ready.reason = reason
            error.read_index_not_ready.region_id = region.id
        elif writes and (full := self._full_stores(region)):
            reason = "propose failed: tikv disk full, cmd diskFullOpt=NotAllowedOnFull, leader diskUsage=AlreadyFull"
            error.message = f"store ids {full}, errmsg {reason}"
            error.disk_full.store_id.extend(full)
            error.disk_full.reason = reason
        else:
            return
        raise RegionRefusedError(error)

    def _full_stores(self, region: RegionState) -> list[int]:
        """The stores whose full disks stand in the way: the leader's, or those of so many peers that no majority is left."""
        full = [store_id for store_id in region.store_ids if self._topology.stores[store_id].disk_full]
        if region.leader_store_id in full:
            return [region.leader_store_id]
        able = [store_id for store_id in self._topology.live_stores(region) if store_id not in full]
        return full if 2 * len(able) <= len(region.peers) else []

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
        if not self._topology.leads(self._store_id, region):
            raise RegionRefusedError(self.not_leader(region))
        if context.peer.id != peer.id:
            error = errorpb_pb2.Error(message=f"mismatch peer id {context.peer.id} != {peer.id}")
            error.mismatch_peer_id.request_peer_id = context.peer.id
            error.mismatch_peer_id.store_peer_id = peer.id
            raise RegionRefusedError(error)
        return region

    def not_leader(self, region: RegionState) -> errorpb_pb2.Error:
        """Another peer leads the region, or none does, since too few of them run."""
        leader = region.leader
        knows = not region.led_by(self._store_id) and self._topology.has_majority(region)
        shown = f"Some(id: {leader.id} store_id: {leader.store_id})" if knows else "None"
        error = errorpb_pb2.Error(message=f"peer is not leader for region {region.id}, leader may {shown}")
        error.not_leader.region_id = region.id
        if knows:
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
