"""Files that a store has downloaded and not yet ingested."""

from __future__ import annotations

import uuid
from pathlib import Path

from airflow_provider_tikvbr.embedded.engine import CFS, DATA_PREFIX, DataKey, StoreEngine, engine_key
from airflow_provider_tikvbr.embedded.sst_writer import write_sst
from airflow_provider_tikvbr.embedded.topology import Topology
from airflow_provider_tikvbr.exceptions import BackupFileError, TikvBrError
from airflow_provider_tikvbr.proto import import_sstpb_pb2
from airflow_provider_tikvbr.storage.sst import FOOTER, MAGIC, SstReader
from airflow_provider_tikvbr.tikv.keys import EngineKey, KeyRange

_UUID_LENGTH = 16

KeySpan = tuple[EngineKey, EngineKey]


class DownloadRefusedError(TikvBrError):
    """The file cannot be taken; the message is what the client is told."""


def import_path(engine: StoreEngine, sst: import_sstpb_pb2.SSTMeta) -> Path:
    """Where a store keeps the file that a meta names: part of its name are the region and both epoch numbers.

    :raises ValueError: the UUID is none, or the column family is unknown.
    """
    epoch = sst.region_epoch
    if sst.cf_name not in CFS:
        raise ValueError(f"invalid cf name {sst.cf_name}")
    if len(sst.uuid) != _UUID_LENGTH:
        raise ValueError(f"invalid uuid {list(sst.uuid)}")
    name = f"{uuid.UUID(bytes=sst.uuid)}_{sst.region_id}_{epoch.conf_ver}_{epoch.version}_{sst.cf_name}_2.sst"
    return engine.import_dir / name


def drop_stale(engine: StoreEngine, topology: Topology) -> None:
    """Remove the files that can never be ingested, since their region is gone or has changed."""
    for path in engine.import_dir.iterdir():
        region_id, *epoch = (int(number) for number in path.name.split("_")[1:4])
        region = topology.by_id(region_id)
        if region is None or epoch != [region.conf_ver, region.version]:
            path.unlink(missing_ok=True)


def wanted_range(sst: import_sstpb_pb2.SSTMeta) -> KeyRange[EngineKey]:
    """The keys that a download keeps: its bounds compare with engine keys, and empty ones are open."""
    end = sst.range.end
    if end and not sst.end_key_exclusive:
        end += b"\x00"
    return KeyRange(EngineKey(sst.range.start), EngineKey(end))


def existing_span(path: Path) -> KeySpan | None:
    """First and last key of a file that is there already; None if there is none, or it is damaged."""
    try:
        reader = SstReader(path.read_bytes(), name=str(path))
        return _span(reader)
    except FileNotFoundError:
        return None
    except BackupFileError:
        path.unlink()
        return None


def take_sst(data: bytes, wanted: KeyRange[EngineKey], path: Path, scratch: Path) -> KeySpan | None:
    """Check a downloaded file and put it, or the wanted part of it, in its place.

    :param data: the file, decrypted.
    :param path: where it goes.
    :param scratch: where it is written first, so that a half-written file is never taken for a whole one.
    :return: the first and the last key that are in it; None if no key is wanted.
    :raises DownloadRefusedError: it is damaged, or no SST.
    """
    temp = scratch / path.name
    try:
        reader = SstReader(data, name=str(temp))
        reader.verify()
        span = _span(reader)
        if span is None:
            return None
        if wanted.contains(span[0]) and wanted.contains(span[1]):
            temp.write_bytes(data)
        else:
            pairs = ((DataKey(DATA_PREFIX + key), value) for key, value in reader.pairs(wanted))
            written = write_sst(temp, pairs)
            if written is None:
                return None
            span = engine_key(written[0]), engine_key(written[1])
    except BackupFileError as error:
        raise DownloadRefusedError(_corruption(data, temp, error)) from error
    temp.replace(path)
    return span


def _span(reader: SstReader) -> KeySpan | None:
    first, last = reader.first_key, reader.last_key
    return None if first is None or last is None else (first, last)


def _corruption(data: bytes, path: Path, error: BackupFileError) -> str:
    """What RocksDB says of a bad file, as TiKV passes it on."""
    if data[-len(MAGIC) :] != MAGIC and len(data) >= FOOTER:
        expected, found = (int.from_bytes(b, "little") for b in (MAGIC, data[-len(MAGIC) :]))
        reason = f"Bad table magic number: expected {expected}, found {found} in {path}"
    else:
        reason = f"block checksum mismatch: {error.message}"
    return (
        'Engine Engine(Status { code: IoError, sub_code: None, sev: NoError, state: "Corruption: '
        + reason.replace('"', "'")
        + '" })'
    )
