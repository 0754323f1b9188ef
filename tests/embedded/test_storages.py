from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_tikvbr.embedded.storages import NoDirectoryError, SharedStorages, io_error, open_for_store
from airflow_provider_tikvbr.exceptions import (
    AuthenticationError,
    InvalidOptionError,
    StorageError,
    StorageNotFoundError,
    StorageUnavailableError,
    TikvBrError,
)
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.storage.local import LocalStorage

# Texts by which tikv-br tells that another try may succeed (tikv-br, pkg/utils/retry.go).
TRANSIENT = "error during dispatch"


@pytest.mark.parametrize(
    ("error", "start", "part"),
    [
        (NoDirectoryError("x"), 'Io(Os { code: 2, kind: NotFound, message: "No such file or directory" })', ""),
        (StorageNotFoundError("no bucket"), "Io(Custom { kind: NotFound", 'code: Some(\\"NoSuchBucket\\")'),
        (AuthenticationError("denied"), "Io(Custom { kind: PermissionDenied", "denied"),
        (StorageUnavailableError("slow down"), "Io(Custom { kind: Other", TRANSIENT),
        (StorageError('disk "full"'), "Io(Custom { kind: Other", "disk 'full'"),
    ],
)
def test_failures_are_told_in_words_that_tools_know(error: TikvBrError, start: str, part: str) -> None:
    message = io_error(error)
    assert message.startswith(start)
    assert part in message
    assert (TRANSIENT in message) == isinstance(error, StorageUnavailableError)


def test_what_a_store_opens(tmp_path: Path) -> None:
    local = brpb_pb2.StorageBackend(local=brpb_pb2.Local(path=str(tmp_path)))
    assert open_for_store(local).backend() == local
    assert not open_for_store(brpb_pb2.StorageBackend(noop=brpb_pb2.Noop())).keeps
    with pytest.raises(NoDirectoryError):
        open_for_store(brpb_pb2.StorageBackend(local=brpb_pb2.Local(path=str(tmp_path / "none"))))
    assert not (tmp_path / "none").exists()
    with pytest.raises(InvalidOptionError) as caught:
        open_for_store(brpb_pb2.StorageBackend())
    assert io_error(caught.value).startswith('Io(Custom { kind: NotFound, error: "')


async def test_requests_that_come_together_share_a_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Storage] = []

    async def close(self: Storage) -> None:
        closed.append(self)

    monkeypatch.setattr(LocalStorage, "close", close)
    shared = SharedStorages()
    one, two = (tmp_path / "one", tmp_path / "two")
    backends = []
    for path in (one, two):
        path.mkdir()
        backends.append(brpb_pb2.StorageBackend(local=brpb_pb2.Local(path=str(path))))
    async with shared.use(backends[0]) as first, shared.use(backends[1]) as other:
        async with shared.use(backends[0]) as second:
            assert second is first
        assert closed == []
    assert closed == [other, first]
    async with shared.use(backends[0]) as third:
        assert third is not first
