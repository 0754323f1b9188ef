"""Backups in S3, or in a service that speaks its protocol.

boto3 blocks, so its calls run in a few threads of this storage. What boto3 says in an error never leaves this module:
its texts may quote URLs and keys.
"""

from __future__ import annotations

import base64
import hashlib
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import smart_open.s3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ParamValidationError,
)

from airflow_provider_tikvbr.exceptions import TikvBrError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.storage.base import ObjectInfo, Storage, check_name
from airflow_provider_tikvbr.storage.s3_errors import is_busy, is_missing, map_error, status_of
from airflow_provider_tikvbr.storage.s3_identity import S3Identity
from airflow_provider_tikvbr.storage.s3_location import DEFAULT_REGION, S3Credentials, S3Location
from airflow_provider_tikvbr.storage.threads import THREADS, StorageThreads

T = TypeVar("T")

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
# botocore's own tries for one call, with its own back-off: a few seconds until a wrong endpoint is reported.
ATTEMPTS = 5
# How servers refuse a condition that they do not know.
_UNKNOWN_CONDITION = frozenset({400, 405, 501})


class S3Storage(Storage):
    """A bucket and a prefix.

    :param credentials: what a connection says; see :mod:`~airflow_provider_tikvbr.storage.s3_identity` for the order.
    :param send_credentials: whether the stores are sent the resolved keys, or use their own. A role and its external id
        they are told in any case: they can assume it with keys of their own.
    :param environment_first: whether the environment's credentials go before the URL's.
    :param no_credentials: sign nothing, and send nothing. A store that is sent nothing still uses what it has itself.
    :raises InvalidOptionError: the connection and the URL name different roles.
    """

    def __init__(
        self,
        *,
        location: S3Location,
        credentials: S3Credentials | None = None,
        send_credentials: bool = True,
        environment_first: bool = False,
        no_credentials: bool = False,
    ) -> None:
        self.location = location
        self._given = credentials or S3Credentials()
        self._identity = S3Identity(
            location=location,
            given=credentials,
            environment_first=environment_first,
            no_credentials=no_credentials,
        )
        self._object_lock = location.object_lock
        self._send_credentials = send_credentials
        self._threads = StorageThreads(name="tikvbr-s3")
        # For these threads alone: who holds it may be waiting for credentials, and the event loop must not.
        self._lock = threading.Lock()
        # Made on first use: a storage may be made in one process and used in a fork of it.
        self._client: Any = None

    @classmethod
    def of_message(cls, told: brpb_pb2.S3) -> S3Storage:
        """What a store makes of what it is told. No TiKV heeds a profile."""
        credentials = None
        if told.access_key and told.secret_access_key:
            credentials = S3Credentials(
                access_key=told.access_key,
                secret_access_key=told.secret_access_key,
                session_token=told.session_token,
            )
        return cls(
            location=S3Location(
                bucket=told.bucket,
                prefix=told.prefix.strip("/"),
                endpoint=told.endpoint,
                region=told.region or DEFAULT_REGION,
                storage_class=told.storage_class,
                sse=told.sse,
                sse_kms_key_id=told.sse_kms_key_id,
                acl=told.acl,
                provider=told.provider,
                force_path_style=told.force_path_style,
                credentials=credentials,
                role_arn=told.role_arn,
                external_id=told.external_id,
                object_lock=told.object_lock_enabled,
            ),
        )

    @property
    def display_url(self) -> str:
        """The storage URL without parameters."""
        return self.location.display_url

    @property
    def credentials_from(self) -> str:
        """Whose credentials are used, such as ``the environment``; for people."""
        return self._identity.source

    @property
    def caution(self) -> str:
        """That the URL has keys which are not used, because others go first."""
        if not self._identity.passes_over_url:
            return ""
        return (
            f"the storage URL {self.display_url} has keys, but those of {self.credentials_from} go first and are used"
        )

    def backend(self) -> brpb_pb2.StorageBackend:
        """What a store is told; with the credentials of now, which may be temporary ones."""
        at = self.location
        message = brpb_pb2.S3(
            endpoint=at.endpoint,
            region=at.region,
            bucket=at.bucket,
            prefix=at.prefix,
            storage_class=at.storage_class,
            sse=at.sse,
            sse_kms_key_id=at.sse_kms_key_id,
            acl=at.acl,
            force_path_style=at.force_path_style,
            provider=at.provider,
            role_arn=self._identity.role_arn,
            external_id=self._identity.external_id,
            object_lock_enabled=bool(self._object_lock),
        )
        found = self._keys_for_stores() if self._send_credentials else None
        if found is not None:
            message.access_key = found.access_key
            message.secret_access_key = found.secret_access_key
            message.session_token = found.session_token
        return brpb_pb2.StorageBackend(s3=message)

    async def prepare(self) -> None:
        """Check that objects may be put there.

        An upload is begun and given up again: unlike a small object that is deleted, it leaves no trace in a bucket
        that keeps versions.
        """
        name = f".{uuid.uuid4().hex}.tikvbr-tmp"

        def probe(client: Any) -> None:
            self._locks(client)
            place = self._place(name)
            upload = client.create_multipart_upload(**place, **self._attributes())
            client.abort_multipart_upload(**place, UploadId=upload["UploadId"])

        await self._call("write to", "", probe)

    async def exists(self, name: str) -> bool:
        """Whether the object is there."""
        return await self._call("look for", check_name(name), lambda client: self._exists(client, name))

    async def read(self, name: str) -> bytes:
        """All of it."""
        check_name(name)

        def get(client: Any) -> bytes:
            place = self._place(name)
            try:
                # An answer that breaks off goes on where it was: botocore retries requests, not bodies.
                with smart_open.s3.open(place["Bucket"], place["Key"], "rb", client=client, defer_seek=True) as stream:
                    data: bytes = stream.read()
            except OSError as error:
                raise getattr(error, "backend_error", error) from None
            return data

        return await self._call("read", name, get)

    async def write(self, name: str, data: bytes) -> None:
        """Put an object; S3 shows it whole or not at all."""
        check_name(name)
        await self._call("write", name, lambda client: self._put(client, name, data))

    async def create(self, name: str, data: bytes) -> bool:
        """Put an object on the condition that there is none.

        Where the server does not know that condition, two writers may both succeed if they come at the same moment.
        """
        check_name(name)

        def put(client: Any) -> bool:
            # Some servers ignore the condition without a word, so it is not the only thing to rely on.
            if self._exists(client, name):
                return False
            try:
                self._put(client, name, data, IfNoneMatch="*")
            except ParamValidationError:  # an older boto3
                self._put(client, name, data)
            except ClientError as error:
                if status_of(error) == 412:
                    return False
                if status_of(error) not in _UNKNOWN_CONDITION:
                    raise
                self._put(client, name, data)
            return True

        return await self._call("write", name, put)

    async def delete(self, name: str) -> None:
        """Remove an object; a missing one is fine."""
        check_name(name)
        await self._call("delete", name, lambda client: client.delete_object(**self._place(name)))

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """The objects whose name starts with ``prefix``, page by page."""
        base = self.location.object_key("")
        query = {"Bucket": self.location.bucket, "Prefix": base + prefix}
        while True:
            page = await self._call("list", prefix, lambda client: client.list_objects_v2(**query))
            for found in page.get("Contents", ()):
                name = found["Key"][len(base) :]
                # Some tools mark a directory by an empty object that ends with a slash.
                if name and not name.endswith("/"):
                    yield ObjectInfo(name, found["Size"])
            if not page.get("IsTruncated"):
                return
            query["ContinuationToken"] = page["NextContinuationToken"]

    async def close(self) -> None:
        """Close the connections."""
        self._threads.close()
        client, self._client = self._client, None
        if client is not None:
            client.close()

    # --- boto3 ---

    async def _call(self, doing: str, name: str, call: Callable[[Any], T]) -> T:
        return await self._threads.run(self._run, doing, name, call)

    def _run(self, doing: str, name: str, call: Callable[[Any], T]) -> T:
        try:
            return call(self._open())
        except TikvBrError:
            raise
        except (ClientError, BotoCoreError, ValueError, OSError) as error:
            # The cause is cut off on purpose: see the module's text.
            raise map_error(error, self.location, doing, name) from None

    def _open(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._identity.session().client(
                    "s3",
                    region_name=self.location.region,
                    endpoint_url=self.location.endpoint or None,
                    verify=self._given.verify,
                    config=self._config(),
                )
            return self._client

    def _config(self) -> Any:
        at, theirs = self.location, self._given.config
        usual = Config(
            signature_version="s3v4",
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            max_pool_connections=THREADS,
        )
        fixed: dict[str, Any] = {
            "s3": {
                **(theirs.s3 or {} if theirs is not None else {}),
                "addressing_style": "path" if at.force_path_style else "virtual",
                "use_accelerate_endpoint": at.use_accelerate_endpoint,
            },
            # The stores know nothing of this process's environment: both have to mean the same service.
            "ignore_configured_endpoint_urls": True,
        }
        if self._identity.anonymous:
            fixed["signature_version"] = UNSIGNED
        for name in ("request_checksum_calculation", "response_checksum_validation"):
            # Newer botocore sends checksums that other makers' services do not understand.
            if name in Config.OPTION_DEFAULTS:
                fixed[name] = "when_required"
        return (usual.merge(theirs) if theirs is not None else usual).merge(Config(**fixed))

    def _keys_for_stores(self) -> S3Credentials | None:
        return self._run("find credentials for", "", lambda _client: self._identity.keys_for_stores())

    def _locks(self, client: Any) -> bool:
        """Whether the bucket locks objects; looked up once."""
        if self._object_lock is None:
            try:
                answer = client.get_object_lock_configuration(Bucket=self.location.bucket)
            except ClientError as error:
                # Other services do not know the question, and not everybody may ask it: then the URL has to tell.
                if is_busy(error) and status_of(error) != 500:
                    raise
                answer = {}
            found = answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled")
            self._object_lock = found == "Enabled"
        return self._object_lock

    def _place(self, name: str) -> dict[str, str]:
        return {"Bucket": self.location.bucket, "Key": self.location.object_key(name)}

    def _attributes(self) -> dict[str, str]:
        at = self.location
        given = {
            "StorageClass": at.storage_class,
            "ServerSideEncryption": at.sse,
            "SSEKMSKeyId": at.sse_kms_key_id,
            "ACL": at.acl,
        }
        return {name: value for name, value in given.items() if value}

    def _put(self, client: Any, name: str, data: bytes, **conditions: str) -> None:
        if self._locks(client):
            digest = hashlib.md5(data, usedforsecurity=False).digest()
            conditions["ContentMD5"] = base64.b64encode(digest).decode()
        client.put_object(**self._place(name), Body=data, **self._attributes(), **conditions)

    def _exists(self, client: Any, name: str) -> bool:
        try:
            client.head_object(**self._place(name))
        except ClientError as error:
            if is_missing(error):
                return False
            raise
        return True
