"""Faults of the backup storage as stores meet them: what they are told there, or the damage that nobody tells them of.

The texts are those of TiKV and of the AWS SDK in it, which tools look into for what to do next.
"""

from __future__ import annotations

import random

from airflow_provider_tikvbr.embedded.fault_rules import Kind, Place
from airflow_provider_tikvbr.embedded.faults import Event, Faults, pause
from airflow_provider_tikvbr.exceptions import TikvBrError
from airflow_provider_tikvbr.proto import methods
from airflow_provider_tikvbr.storage.base import Storage

# What S3 answers, by its code and its message.
_CODES = {
    Kind.STORAGE_SLOW_DOWN: ("SlowDown", "Please reduce your request rate."),
    Kind.STORAGE_503: ("ServiceUnavailable", "Service is unable to handle request."),
    Kind.STORAGE_ACCESS_DENIED: ("AccessDenied", "Access Denied."),
}
_KINDS = {Kind.STORAGE_ACCESS_DENIED: "PermissionDenied", Kind.STORAGE_NOT_FOUND: "NotFound"}
_UNREACHABLE = "error during dispatch: error trying to connect: tcp connect error: Connection refused (os error 111)"


class InjectedStorageError(TikvBrError):
    """The storage has failed a store; the message is how the store tells it."""


class StoreFiles:
    """The files of backups as one store writes and reads them.

    :param faults: the cluster's.
    :param store_id: the store.
    """

    def __init__(self, *, faults: Faults, store_id: int) -> None:
        self._faults = faults
        self._store_id = store_id

    async def write(self, storage: Storage, name: str, data: bytes, *, region_id: int) -> None:
        """Write a file.

        :raises InjectedStorageError: a rule says so.
        :raises TikvBrError: the storage fails by itself.
        """
        await storage.write(name, await self._meet(methods.BACKUP.path, name, data, region_id))

    async def read(self, storage: Storage, name: str, *, region_id: int) -> bytes:
        """Read a file.

        :raises InjectedStorageError: a rule says so.
        :raises TikvBrError: the storage fails by itself.
        """
        # A rule that damages needs something to damage; one that refuses may as well refuse afterwards.
        return await self._meet(methods.IMPORT_DOWNLOAD.path, name, await storage.read(name), region_id)

    async def _meet(self, method: str, name: str, data: bytes, region_id: int) -> bytes:
        event = Event(place=Place.STORAGE, name=method, store_id=self._store_id, about=region_id, file=name)
        for strike in self._faults.strikes(event):
            kind = strike.rule.kind
            if strike.rule.delay_s is not None:
                await pause(strike.rule.delay_s)
            if kind in (Kind.STORAGE_TRUNCATED, Kind.STORAGE_CORRUPT):
                return damaged(data, kind, strike.chance)
            if kind is not Kind.STORAGE_DELAY:
                raise InjectedStorageError(told(kind, method))
        return data


def damaged(data: bytes, kind: Kind, chance: random.Random) -> bytes:
    """A file cut short, or with one bit turned over; an empty one stays as it is."""
    if not data:
        return data
    at = chance.randrange(len(data))
    if kind is Kind.STORAGE_TRUNCATED:
        return data[:at]
    return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]


def told(kind: Kind, method: str) -> str:
    """How a store tells a failure of the storage.

    :param method: the call that it wanted the storage for.
    """
    if kind is Kind.STORAGE_DISK_FULL:
        return 'Io(Os { code: 28, kind: StorageFull, message: "No space left on device" })'
    writes = method == methods.BACKUP.path
    does = "put" if writes else "get"
    if kind is Kind.STORAGE_NOT_FOUND:
        # Who writes does not look for the file.
        code, says = ("NoSuchBucket", "The specified bucket does not exist") if writes else ("NoSuchKey", "Not there.")
    elif kind is Kind.STORAGE_UNREACHABLE:
        return f'Io(Custom {{ kind: Other, error: "failed to {does} object {_UNREACHABLE}" }})'
    else:
        code, says = _CODES[kind]
    meta = f'ErrorMetadata {{ code: Some(\\"{code}\\"), message: Some(\\"{says}\\") }}'
    return f'Io(Custom {{ kind: {_KINDS.get(kind, "Other")}, error: "failed to {does} object {meta}" }})'
