"""Backups in Google Cloud Storage, or in a service that speaks its JSON API.

The library blocks, so its calls run in a few threads of this storage. What it says in an error never leaves this module:
its texts may quote URLs and tokens.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
import warnings
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from airflow_provider_tikvbr.exceptions import TikvBrError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.storage.base import ObjectInfo, Storage, check_name
from airflow_provider_tikvbr.storage.gcs_location import GcsCredentials, GcsLocation, gcs_location
from airflow_provider_tikvbr.storage.parameters import refused
from airflow_provider_tikvbr.storage.threads import StorageThreads

try:
    with warnings.catch_warnings():
        # It would like a library for errors of gRPC, which no call here uses.
        warnings.simplefilter("ignore", ImportWarning)
        from google.api_core.exceptions import NotFound, PreconditionFailed
    from google.api_core.retry import Retry
    from google.auth.transport.requests import AuthorizedSession
    from google.cloud.storage import Client
    from requests import RequestException

    from airflow_provider_tikvbr.storage.gcs_access import GcsAccess, check_for_stores, find_access
    from airflow_provider_tikvbr.storage.gcs_errors import ERRORS, is_transient, map_error
except ModuleNotFoundError as missing:
    if not (missing.name or "").startswith("google"):
        raise
    raise refused(
        "storage gcs:// needs the library google-cloud-storage: pip install 'airflow-provider-tikvbr[gcs]'"
    ) from None

T = TypeVar("T")

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
# One call is tried for this long: a wrong endpoint is reported soon, and whoever calls has its own back-off.
RETRY_FOR_S = 15.0

GOOGLE = "https://storage.googleapis.com"
BACKUPMETA = "backupmeta"


@dataclass(frozen=True, slots=True)
class _Opened:
    access: GcsAccess
    session: Any
    client: Any


class GcsStorage(Storage):
    """A bucket and a prefix.

    :param credentials: those to use, whatever else there are.
    :param send_credentials: whether the stores are sent the document of the credentials, or use their own.
    :param environment_first: whether the environment's credentials go before the URL's.
    :param no_credentials: use none at all.
    """

    def __init__(
        self,
        *,
        location: GcsLocation,
        credentials: GcsCredentials | None = None,
        send_credentials: bool = True,
        environment_first: bool = False,
        no_credentials: bool = False,
    ) -> None:
        self.location = location
        self._credentials = credentials
        self._send_credentials = send_credentials
        self._environment_first = environment_first
        self._no_credentials = no_credentials
        self._threads = StorageThreads(name="tikvbr-gcs")
        # For these threads alone: who holds it may be waiting for credentials, and the event loop must not.
        self._lock = threading.Lock()
        # Made on first use: a storage may be made in one process and used in a fork of it.
        self._opened: _Opened | None = None

    @classmethod
    def of_message(cls, told: brpb_pb2.GCS) -> GcsStorage:
        """What a store makes of what it is told; without a document it uses no credentials.

        :raises InvalidOptionError: a store cannot read the document, or knows no such storage class or ACL.
        """
        if told.credentials_blob:
            check_for_stores(told.credentials_blob)
        given = {
            "endpoint": told.endpoint,
            "storage-class": told.storage_class,
            "predefined-acl": told.predefined_acl,
        }
        return cls(
            location=gcs_location(told.bucket, told.prefix.strip("/"), given),
            credentials=GcsCredentials(blob=told.credentials_blob) if told.credentials_blob else None,
            no_credentials=not told.credentials_blob,
        )

    @property
    def display_url(self) -> str:
        """The storage URL without parameters."""
        return self.location.display_url

    def backend(self) -> brpb_pb2.StorageBackend:
        """What a store is told.

        :raises InvalidOptionError: the credentials in use cannot be sent.
        """
        at = self.location
        message = brpb_pb2.GCS(
            endpoint=at.store_endpoint,
            bucket=at.bucket,
            prefix=at.prefix,
            storage_class=at.storage_class,
            predefined_acl=at.predefined_acl,
        )
        if self._send_credentials:
            message.credentials_blob = self._run("find credentials for", "", lambda at: at.access.for_stores())
        return brpb_pb2.StorageBackend(gcs=message)

    async def prepare(self) -> None:
        """Check that objects may be put there.

        An upload is begun and given up again: unlike a small object that is deleted, it leaves no trace in a bucket
        that keeps versions or deleted objects.
        """
        name = f".{uuid.uuid4().hex}.tikvbr-tmp"

        def probe(at: _Opened) -> None:
            upload = self._object(at, name).create_resumable_upload_session(**self._attributes(), **_limits())
            # Services that cannot drop an unfinished upload forget it by themselves.
            with contextlib.suppress(RequestException):
                at.session.delete(upload, headers={"Content-Length": "0"}, timeout=CONNECT_TIMEOUT_S)

        await self._call("write to", "", probe)

    async def exists(self, name: str) -> bool:
        """Whether the object is there."""
        check_name(name)
        return await self._call(
            "look for", name, lambda at: any(o.exists(**_limits()) for o in self._objects(at, name))
        )

    async def read(self, name: str) -> bytes:
        """All of it."""
        check_name(name)

        def get(at: _Opened) -> bytes:
            data: bytes
            usual, *others = self._objects(at, name)
            try:
                data = usual.download_as_bytes(**_limits())
            except NotFound:
                if not (there := [o for o in others if o.exists(**_limits())]):
                    raise
                data = there[0].download_as_bytes(**_limits())
            return data

        return await self._call("read", name, get)

    async def write(self, name: str, data: bytes) -> None:
        """Put an object; it is seen whole or not at all."""
        check_name(name)
        await self._call("write", name, lambda at: self._put(at, name, data))

    async def create(self, name: str, data: bytes) -> bool:
        """Put an object on the condition that there is none."""
        check_name(name)

        def put(at: _Opened) -> bool:
            # Services of other makers may pass over the condition without a word, so it is not all there is to rely on.
            if self._object(at, name).exists(**_limits()):
                return False
            try:
                self._put(at, name, data, if_generation_match=0)
            except PreconditionFailed:
                return False
            return True

        return await self._call("write", name, put)

    async def delete(self, name: str) -> None:
        """Remove an object; a missing one is fine."""
        check_name(name)

        def remove(at: _Opened) -> None:
            with contextlib.suppress(NotFound):
                self._object(at, name).delete(**_limits())

        await self._call("delete", name, remove)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """The objects whose name starts with ``prefix``, page by page."""
        base = self.location.object_key("")
        token: str | None = None
        while True:
            found, token = await self._call("list", prefix, lambda at: self._page(at, base + prefix, token))  # noqa: B023
            for key, size in found:
                name = key[len(base) :]
                # Some tools mark a directory by an empty object that ends with a slash.
                if name and not name.endswith("/"):
                    yield ObjectInfo(name, size)
            if not token:
                return

    async def close(self) -> None:
        """Close the connections."""
        self._threads.close()
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.session.close()

    # --- google-cloud-storage ---

    async def _call(self, doing: str, name: str, call: Callable[[_Opened], T]) -> T:
        return await self._threads.run(self._run, doing, name, call)

    def _run(self, doing: str, name: str, call: Callable[[_Opened], T]) -> T:
        try:
            return call(self._open())
        except TikvBrError:  # one of them is a ValueError too
            raise
        except ERRORS as error:
            # The cause is cut off on purpose: see the module's text.
            raise map_error(error, self.location, doing, name) from None

    def _open(self) -> _Opened:
        with self._lock:
            if self._opened is None:
                access = find_access(
                    self.location,
                    given=self._credentials,
                    environment_first=self._environment_first,
                    no_credentials=self._no_credentials,
                )
                session = AuthorizedSession(access.session)  # type: ignore[no-untyped-call]
                session.hooks["response"].append(_read_refusal)
                # Always an endpoint: the stores know nothing of this process's STORAGE_EMULATOR_HOST, and both have to
                # mean the same service.
                client = Client(
                    project="none",
                    credentials=access.session,
                    _http=session,
                    client_options={"api_endpoint": self.location.endpoint or GOOGLE},
                )
                # It would ask for the bucket's own data, for tracing, in threads that nobody waits for.
                client._bucket_metadata_cache = None  # noqa: SLF001
                self._opened = _Opened(access, session, client)
            return self._opened

    def _object(self, at: _Opened, name: str) -> Any:
        return self._blob(at, self.location.object_key(name))

    def _objects(self, at: _Opened, name: str) -> tuple[Any, ...]:
        """Where a file may be: early tools forgot the slash between prefix and ``backupmeta``, and tikv-br looks there too.

        Their other files are where they belong (tikv-br, ``pkg/task/common.go``).
        """
        usual = self._object(at, name)
        if name != BACKUPMETA or not self.location.prefix:
            return (usual,)
        return (usual, self._blob(at, f"{self.location.prefix}{name}"))

    def _blob(self, at: _Opened, key: str) -> Any:
        blob = at.client.bucket(self.location.bucket).blob(key)
        if self.location.storage_class:
            blob.storage_class = self.location.storage_class
        return blob

    def _attributes(self) -> dict[str, str]:
        acl = self.location.predefined_acl
        kind = {"content_type": "application/octet-stream"}
        return {**kind, "predefined_acl": acl} if acl else kind

    def _put(self, at: _Opened, name: str, data: bytes, **conditions: int) -> None:
        self._object(at, name).upload_from_string(data, **self._attributes(), **conditions, **_limits())

    def _page(self, at: _Opened, prefix: str, token: str | None) -> tuple[tuple[tuple[str, int], ...], str | None]:
        found = at.client.list_blobs(
            self.location.bucket, prefix=prefix, page_token=token, fields="items(name,size),nextPageToken", **_limits()
        )
        page = next(found.pages, ())
        return tuple(sorted((blob.name, blob.size or 0) for blob in page)), found.next_page_token


def _read_refusal(response: Any, *_: Any, **__: Any) -> None:
    """Take the whole of a refusal: the library leaves it in a connection that stays open then."""
    if not response.ok:
        _ = response.content


def _limits() -> dict[str, Any]:
    """How long one call may take, and how it is tried again."""
    retry = Retry(predicate=is_transient, initial=0.2, maximum=4.0, multiplier=2.0, timeout=RETRY_FOR_S)
    return {"timeout": (CONNECT_TIMEOUT_S, READ_TIMEOUT_S), "retry": retry}
