"""Backups in Azure Blob Storage.

The library blocks, so its calls run in a few threads of this storage. What it says in an error never leaves this module:
its texts may quote URLs and signatures.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from airflow_provider_tikvbr.exceptions import InvalidOptionError, TikvBrError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.storage.azure_location import TIERS, AzureCredentials, AzureLocation
from airflow_provider_tikvbr.storage.base import ObjectInfo, Storage, check_name
from airflow_provider_tikvbr.storage.parameters import refused
from airflow_provider_tikvbr.storage.threads import StorageThreads

try:
    from azure.core import MatchConditions
    from azure.core.credentials import AzureSasCredential
    from azure.core.exceptions import AzureError, HttpResponseError
    from azure.storage.blob import ContainerClient, CustomerProvidedEncryptionKey, ExponentialRetry, StandardBlobTier

    from airflow_provider_tikvbr.storage.azure_credentials import resolve
    from airflow_provider_tikvbr.storage.azure_errors import (
        already_there,
        code_of,
        is_missing,
        is_refused,
        map_error,
        no_container,
        not_met,
    )
except ModuleNotFoundError as missing:
    if not (missing.name or "").startswith("azure"):
        raise
    raise refused(
        "storage azure:// needs the libraries azure-storage-blob and azure-identity:"
        " pip install 'airflow-provider-tikvbr[azure]'"
    ) from None

T = TypeVar("T")

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
# The library's own tries for one call, with its own back-off: a few seconds until a wrong endpoint is reported.
RETRIES = 4
FIRST_WAIT_S = 1
# What no blob ever has: a write on the condition that it is the blob's is refused after all other checks.
_NO_ETAG = '"tikvbr"'
_PAGE = 5000
# Any other word is none, as to a store.
_TIERS = {name: StandardBlobTier(name) for name in TIERS}

# The library tells every request at level INFO, which would fill the task's log.
_http_log = logging.getLogger(f"{__name__}.http")
_http_log.setLevel(logging.WARNING)


class AzureStorage(Storage):
    """A container and a prefix.

    :param credentials: those to use, whatever else there are.
    :param send_credentials: whether the stores are sent the key or the signature, or use their own credentials.
    :param environment_first: whether the environment's credentials go before the URL's.
    :param no_credentials: use none at all.
    :raises InvalidOptionError: the customer's encryption key would have to be sent, but nothing may be.
    """

    def __init__(
        self,
        *,
        location: AzureLocation,
        credentials: AzureCredentials | None = None,
        send_credentials: bool = True,
        environment_first: bool = False,
        no_credentials: bool = False,
    ) -> None:
        if location.encryption_key and not send_credentials:
            raise InvalidOptionError(
                "the storage parameter encryption-key has to be sent to the stores, which is switched off: use"
                " encryption-scope, or let credentials be sent",
                parameter="storage",
            )
        self.location = location
        self._given = credentials
        self._send_credentials = send_credentials
        self._environment_first = environment_first
        self._no_credentials = no_credentials
        self._threads = StorageThreads(name="tikvbr-azure")
        # For these threads alone: who holds it may be waiting for credentials, and the event loop must not.
        self._lock = threading.RLock()
        # Made on first use: a storage may be made in one process and used in a fork of it.
        self._resolved: AzureCredentials | None = None
        self._client: ContainerClient | None = None

    @classmethod
    def of_message(cls, told: brpb_pb2.AzureBlobStorage) -> AzureStorage:
        """What a store makes of what it is told."""
        # A key without the account's name counts for nothing (TiKV, components/cloud/azure/src/azblob.rs).
        key = told.shared_key if told.account_name else ""
        return cls(
            location=AzureLocation(
                container=told.bucket,
                prefix=told.prefix.strip("/"),
                endpoint=told.endpoint.rstrip("/"),
                access_tier=told.storage_class,
                encryption_scope=told.encryption_scope,
                encryption_key=told.encryption_key.encryption_key,
                account_name=told.account_name,
            ),
            credentials=AzureCredentials(account_name=told.account_name, shared_key=key, sas_token=told.access_sig),
        )

    @property
    def display_url(self) -> str:
        """The storage URL without parameters."""
        return self.location.display_url

    def backend(self) -> brpb_pb2.StorageBackend:
        """What a store is told. The account's name is a part of the place, so it goes there in any case."""
        at, found = self.location, self._resolve()
        message = brpb_pb2.AzureBlobStorage(
            endpoint=at.endpoint,
            bucket=at.container,
            prefix=at.prefix,
            storage_class=at.access_tier,
            account_name=found.account_name,
            encryption_scope=at.encryption_scope,
        )
        if at.encryption_key:
            message.encryption_key.encryption_key = at.encryption_key
            message.encryption_key.encryption_key_sha256 = at.encryption_key_sha256
        if self._send_credentials:
            message.access_sig = found.sas_token
            message.shared_key = found.shared_key
        return brpb_pb2.StorageBackend(azure_blob_storage=message)

    async def prepare(self) -> None:
        """Make the container if it is missing, and check that blobs may be put there.

        The probe is a write that cannot succeed, so it leaves no trace where versions or deleted blobs are kept.
        """
        name = f".{uuid.uuid4().hex}.tikvbr-tmp"

        def probe(client: ContainerClient) -> None:
            blob = client.get_blob_client(self.location.object_key(name))
            try:
                blob.upload_blob(
                    b"",
                    overwrite=True,
                    etag=_NO_ETAG,
                    match_condition=MatchConditions.IfNotModified,
                    **self._attributes(),
                )
            except HttpResponseError as error:
                if not not_met(error):
                    raise
            else:  # a server that knows no conditions
                blob.delete_blob()

        def make_and_probe(client: ContainerClient) -> None:
            try:
                probe(client)
            except HttpResponseError as error:
                if not no_container(error):
                    raise
                self._make_container(client, error)
                probe(client)

        await self._call("write to", "", make_and_probe)

    async def exists(self, name: str) -> bool:
        """Whether the blob is there."""
        key = self.location.object_key(check_name(name))
        return await self._call("look for", name, lambda client: client.get_blob_client(key).exists())

    async def read(self, name: str) -> bytes:
        """All of it."""
        key = self.location.object_key(check_name(name))

        def get(client: ContainerClient) -> bytes:
            data: bytes = client.download_blob(key, **self._customer_key()).readall()
            return data

        return await self._call("read", name, get)

    async def write(self, name: str, data: bytes) -> None:
        """Put a blob; Azure shows it whole or not at all."""
        check_name(name)
        await self._call("write", name, lambda client: self._put(client, name, data, overwrite=True))

    async def create(self, name: str, data: bytes) -> bool:
        """Put a blob on the condition that there is none."""
        check_name(name)

        def put(client: ContainerClient) -> bool:
            try:
                self._put(client, name, data, overwrite=False)
            except HttpResponseError as error:
                if not already_there(error):
                    raise
                return False
            return True

        return await self._call("write", name, put)

    async def delete(self, name: str) -> None:
        """Remove a blob; a missing one is fine."""
        key = self.location.object_key(check_name(name))

        def remove(client: ContainerClient) -> None:
            try:
                client.get_blob_client(key).delete_blob(delete_snapshots="include")
            except HttpResponseError as error:
                if not is_missing(error) or no_container(error):
                    raise

        await self._call("delete", name, remove)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """The blobs whose name starts with ``prefix``, page by page."""
        base = self.location.object_key("")

        def start(client: ContainerClient) -> Any:
            # The metadata tell directories, which accounts with a hierarchy list like blobs.
            found = client.list_blobs(name_starts_with=base + prefix, include=["metadata"], results_per_page=_PAGE)
            return found.by_page()

        pages = await self._call("list", prefix, start)
        while (page := await self._call("list", prefix, lambda _: _next_page(pages))) is not None:
            for blob in page:
                name = blob.name[len(base) :]
                folder = (blob.metadata or {}).get("hdi_isfolder", "") == "true"
                if name and not name.endswith("/") and not folder:
                    yield ObjectInfo(name, blob.size)

    async def close(self) -> None:
        """Close the connections."""
        self._threads.close()
        client, self._client = self._client, None
        resolved, self._resolved = self._resolved, None
        if client is not None:
            client.close()
        if resolved is not None and resolved.token is not None and not (self._given and self._given.token):
            resolved.token.close()

    # --- the library ---

    async def _call(self, doing: str, name: str, call: Callable[[ContainerClient], T]) -> T:
        return await self._threads.run(self._run, doing, name, call)

    def _run(self, doing: str, name: str, call: Callable[[ContainerClient], T]) -> T:
        try:
            return call(self._open())
        except TikvBrError:
            raise
        except (AzureError, ValueError, TypeError, OSError) as error:
            # The cause is cut off on purpose: see the module's text.
            raise map_error(error, self.location, self._service_url(), doing, name) from None

    def _open(self) -> ContainerClient:
        with self._lock:
            if self._client is None:
                found = self._resolve()
                credential: Any = found.token
                if found.sas_token:
                    credential = AzureSasCredential(found.sas_token)
                elif found.shared_key:
                    # Named, as an endpoint need not tell the account.
                    credential = {"account_name": found.account_name, "account_key": found.shared_key}
                self._client = ContainerClient(
                    self._service_url(),
                    self.location.container,
                    credential=credential,
                    retry_policy=ExponentialRetry(
                        initial_backoff=FIRST_WAIT_S, increment_base=2, retry_total=RETRIES, random_jitter_range=1
                    ),
                    connection_timeout=CONNECT_TIMEOUT_S,
                    read_timeout=READ_TIMEOUT_S,
                    logger=_http_log,
                )
            return self._client

    def _resolve(self) -> AzureCredentials:
        with self._lock:
            if self._resolved is None:
                self._resolved = resolve(
                    self.location,
                    self._given,
                    environment_first=self._environment_first,
                    no_credentials=self._no_credentials,
                )
            return self._resolved

    def _service_url(self) -> str:
        return self.location.endpoint or f"https://{self._resolve().account_name}.blob.core.windows.net"

    def _customer_key(self) -> dict[str, Any]:
        at = self.location
        if not at.encryption_key:
            return {}
        return {"cpk": CustomerProvidedEncryptionKey(key_value=at.encryption_key, key_hash=at.encryption_key_sha256)}

    def _attributes(self) -> dict[str, Any]:
        given = self._customer_key()
        if self.location.encryption_scope:
            given["encryption_scope"] = self.location.encryption_scope
        # What this process writes it also reads again: locks and the list of files cannot wait hours for that.
        tier = _TIERS.get(self.location.access_tier)
        if tier not in (None, StandardBlobTier.ARCHIVE):
            given["standard_blob_tier"] = tier
        return given

    def _make_container(self, client: ContainerClient, missing: HttpResponseError) -> None:
        try:
            client.create_container()
        except HttpResponseError as error:
            if is_refused(error):
                # Who may not make it wants to hear that it is missing, not that something is forbidden.
                raise missing from None
            if code_of(error) != "ContainerAlreadyExists":  # somebody else was faster
                raise

    def _put(self, client: ContainerClient, name: str, data: bytes, *, overwrite: bool) -> None:
        client.upload_blob(self.location.object_key(name), data, overwrite=overwrite, **self._attributes())


def _next_page(pages: Any) -> list[Any] | None:
    """The blobs of the next page; None after the last one, for a page in the middle may be empty."""
    page = next(pages, None)
    return None if page is None else [*page]
