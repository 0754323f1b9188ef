"""How much of a range the stores have backed up: their answers, collected, checked and counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing

from airflow_provider_tikvbr.exceptions import AuthenticationError, StorageUnavailableError, TikvBrError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr.events import Listener, Progress
from airflow_provider_tikvbr.rawbr.options import DEFAULT_BUDGET_S
from airflow_provider_tikvbr.rawbr.ranges import FinishedRange, FinishedRanges
from airflow_provider_tikvbr.rawbr.responses import existing_file, finished_keys, from_backup_error
from airflow_provider_tikvbr.rawbr.summary import Checksum
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.tikv.errors import secrets_of, server_name
from airflow_provider_tikvbr.tikv.keys import ApiKey, ApiVersion, KeyCodec, KeyRange
from airflow_provider_tikvbr.tikv.model import Store
from airflow_provider_tikvbr.tikv.store import StoreClient

# A store is silent while it works on a region. It waits 15 minutes for an answer of S3 before it says so (TiKV,
# ``components/cloud/aws/src/s3.rs``); a store that is gone is found out by pings long before.
IDLE_TIMEOUT_S = 1800.0
# With a rate limit it is silent for longer: it works on eight regions at a time, which share the limit, and a region
# can be far above its usual size.
IDLE_BYTES = 8 << 30
# A shorter budget shortens that: a store that is silent for a few times as long as a user waits is given up too.
IDLE_BUDGETS = 3
# How often progress is told.
PROGRESS_INTERVAL_S = 0.2


def idle_timeout_s(rate_limit: int, budget_s: float = DEFAULT_BUDGET_S) -> float:
    """How long a store may be silent before it counts as lost.

    :param rate_limit: bytes per second that a store may write; 0 means no limit.
    :param budget_s: how long the job may go on without progress, in seconds.
    """
    return min(IDLE_TIMEOUT_S, IDLE_BUDGETS * budget_s) + (IDLE_BYTES / rate_limit if rate_limit else 0.0)


class Coverage:
    """Collects the answers to one backup request.

    :param request: the whole request; parts of it may be sent instead of it.
    :param codec: keys of the cluster.
    :param storage: where the stores write.
    :param step: name of the step, for progress.
    :param total: regions of the range, as far as known.
    :param listener: told how far it has come.
    :param budget_s: how long the job may go on without progress, in seconds.
    :param on_accepted: given each good answer as it comes in.
    """

    def __init__(
        self,
        request: brpb_pb2.BackupRequest,
        *,
        codec: KeyCodec,
        storage: Storage,
        step: str,
        total: int,
        listener: Listener,
        budget_s: float = DEFAULT_BUDGET_S,
        on_accepted: Callable[[brpb_pb2.BackupResponse], None] | None = None,
    ) -> None:
        self.request = request
        self.keys = KeyRange(ApiKey(request.start_key), ApiKey(request.end_key))
        self.ranges = FinishedRanges()
        self.checksum = Checksum()
        self.data_size = 0
        #: Names of files that newer answers have replaced.
        self.replaced: list[str] = []
        #: Stores that were asked more than once; what the first request began may still have been written meanwhile.
        self.asked_again: set[int] = set()
        #: How many good answers have come in: it grows as long as there is progress.
        self.accepted = 0
        #: Whether earlier tries have asked stores too.
        self.resumed = False
        self._before = (0, 0)
        self._on_accepted = on_accepted
        self._codec = codec
        # TiKV converts into the default keyspace.
        self._dst_codec = KeyCodec(ApiVersion(request.dst_api_version), codec.keyspace_id if codec.is_v2 else 0)
        self._storage = storage
        self._step = step
        self._total = total
        self._listener = listener
        self._idle_timeout_s = idle_timeout_s(request.rate_limit, budget_s)
        self._started = time.monotonic()
        self._told = float("-inf")
        self._asked: set[int] = set()

    def gaps(self) -> list[KeyRange[ApiKey]]:
        """What is not backed up yet."""
        return self.ranges.gaps(self.keys)

    def resume(self, piece: FinishedRange) -> None:
        """Take in what an earlier try has finished."""
        self.resumed = True
        self._insert(piece)
        self._before = (len(self.ranges), self.checksum.total_bytes)

    def give_up(self, file: brpb_pb2.File) -> None:
        """Let the piece that a file holds be a gap again: the file is not what the answer told."""
        held = next(piece for piece in self.ranges if any(each.name == file.name for each in piece.files))
        self._take_out(self.ranges.remove(held.keys))

    @property
    def disturbed(self) -> bool:
        """Whether stores may have written files of which nobody was told, or which are not needed."""
        return self.resumed or bool(self.asked_again or self.replaced)

    async def take(self, client: StoreClient, keys: KeyRange[ApiKey]) -> TikvBrError | None:
        """Let a store back up what it leads of a range, and take in its answers.

        :param keys: the range, a part of the whole.
        :return: what went wrong with some part, if anything did; the part is a gap then.
        :raises StoreUnavailableError: the stream broke; what came before it counts.
        :raises TerminalError: the backup can never succeed.
        """
        request = brpb_pb2.BackupRequest()
        request.CopyFrom(self.request)
        request.start_key, request.end_key = keys.start, keys.end
        # Afresh for each request: the credentials may be temporary ones.
        request.storage_backend.CopyFrom(await asyncio.to_thread(self._storage.backend))
        trouble: TikvBrError | None = None
        (self.asked_again if client.store.id in self._asked else self._asked).add(client.store.id)
        stream = client.backup(request, idle_timeout_s=self._idle_timeout_s)
        async with aclosing(stream):
            async for response in stream:
                if response.HasField("error"):
                    trouble = await self._trouble(response.error, request, client.store) or trouble
                    continue
                finished = finished_keys(
                    response, request=request, codec=self._codec, dst_codec=self._dst_codec, store=client.store
                )
                self._accept(FinishedRange(finished, tuple(response.files)), response)
        return trouble

    async def _trouble(
        self, error: brpb_pb2.Error, request: brpb_pb2.BackupRequest, store: Store
    ) -> TikvBrError | None:
        """What an error means, and what can be done about it.

        :return: None if nothing is wrong.
        :raises TerminalError: the backup can never succeed.
        """
        name = existing_file(error)
        if name is not None:
            return await self._make_way(name, store)
        backend = request.storage_backend
        found, fatal = from_backup_error(error, store=store, url=self._storage.display_url, secrets=secrets_of(backend))
        if not fatal:
            return found
        if isinstance(found, AuthenticationError) and await asyncio.to_thread(self._storage.backend) != backend:
            # What it was sent has run out; the next request carries other credentials.
            return StorageUnavailableError(str(found), store_id=store.id, url=self._storage.display_url)
        raise found

    async def _make_way(self, name: str, store: Store) -> TikvBrError | None:
        """Delete what keeps a store from writing a file: TiKV before 6.2 replaces none in a directory.

        The first region of a V1 cluster has the same file name in every try. Nobody else writes here, so it is left of
        an earlier one.
        """
        if any(file.name == name for file in self.ranges.files()):
            return None
        await self._storage.delete(name)
        return StorageUnavailableError(
            f"{server_name(store.data_address, store.id)} met {name} of an earlier try, which is deleted now",
            store_id=store.id,
            url=self._storage.display_url,
        )

    def tell(self) -> None:
        """Tell the listener how far it has come."""
        self._told = time.monotonic()
        self._listener(
            Progress(
                step=self._step,
                done=len(self.ranges),
                total=max(self._total, len(self.ranges)),
                kvs=self.checksum.total_kvs,
                bytes=self.checksum.total_bytes,
                elapsed_s=self._told - self._started,
                done_before=self._before[0],
                bytes_before=self._before[1],
            )
        )

    def _accept(self, piece: FinishedRange, response: brpb_pb2.BackupResponse) -> None:
        self._insert(piece)
        self.accepted += 1
        if self._on_accepted is not None:
            self._on_accepted(response)
        if time.monotonic() - self._told >= PROGRESS_INTERVAL_S:
            self.tell()

    def _insert(self, piece: FinishedRange) -> None:
        self._take_out(self.ranges.insert(piece))
        self._count(piece.files, 1)

    def _take_out(self, pieces: Iterable[FinishedRange]) -> None:
        for old in pieces:
            self._count(old.files, -1)
            self.replaced += [file.name for file in old.files]

    def _count(self, files: Iterable[brpb_pb2.File], sign: int) -> None:
        for file in files:
            self.checksum += Checksum(file.crc64xor, sign * file.total_kvs, sign * file.total_bytes)
            self.data_size += sign * file.size
