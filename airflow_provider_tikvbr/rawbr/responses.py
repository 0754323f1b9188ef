"""What a store's answers to a backup request mean.

A store ends the stream normally even if it failed: the errors stand in the answers (``backup.Error``). Most of what goes
wrong there is a text only, the debug form of a Rust error, so texts are what is looked at. Source: TiKV,
``components/backup/src/errors.rs``; the texts were seen at TiKV 9 and at the AWS SDK that it uses.
"""

from __future__ import annotations

import re
from typing import Any

from airflow_provider_tikvbr.exceptions import (
    ApiVersionError,
    AuthenticationError,
    ProtocolError,
    StorageError,
    StorageNotFoundError,
    StorageUnavailableError,
    StoreUnavailableError,
    TikvBrError,
    WrongClusterError,
)
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr.files import file_range
from airflow_provider_tikvbr.rawbr.plan import show_range
from airflow_provider_tikvbr.secret_text import hide
from airflow_provider_tikvbr.tikv.errors import REFUSED_TEXTS, from_region_error, one_line, server_name
from airflow_provider_tikvbr.tikv.keys import ApiKey, ApiVersion, KeyCodec, KeyRange
from airflow_provider_tikvbr.tikv.model import Store
from airflow_provider_tikvbr.tikv.redaction import show_answer

# The storage, or the way to it, fails for now. The first nine are those that tikv-br retries; it gives up a whole backup
# when S3 asks for a slower pace.
PASSING_TEXTS = (
    "server closed",
    "connection refused",
    "connection reset by peer",
    "channel closed",
    "error trying to connect",
    "connection closed before message completed",
    "body write aborted",
    "error during dispatch",
    "put object timeout",
    "dispatch failure",
    "broken pipe",
    "timed out",
    "timeout",
    "slowdown",
    "slow down",
    "throttl",
    "too many requests",
    "toomanyrequests",
    "reduce your request rate",
    "service unavailable",
    "serviceunavailable",
    "internal error",
    "internalerror",
    "temporarily unavailable",
    "bad gateway",
)
FLUSH_TEXT = "fail to flush causal ts"
EXISTING_FILE = re.compile(r"\[([^\[\]]+)\] is already exists in ")


def existing_file(error: brpb_pb2.Error) -> str | None:
    """The file that a store would not replace, if that is what an error is about.

    TiKV before 6.2 refuses to write over a file in a directory (``components/external_storage/src/local.rs``).
    """
    found = EXISTING_FILE.search(error.msg) if "alreadyexists" in error.msg.lower() else None
    return found[1] if found else None


def from_backup_error(
    error: brpb_pb2.Error, *, store: Store, url: str, secrets: tuple[str, ...] = ()
) -> tuple[TikvBrError, bool]:
    """Classify the error of a backup response.

    :param error: what the store answered.
    :param store: the store.
    :param url: the storage, without secrets.
    :param secrets: texts that must not appear in the error.
    :return: the error, and whether the backup can never succeed because of it. An error of a region is not: another
        store, or the same store a moment later, may do.
    """
    fields: dict[str, Any] = {"store_id": store.id, "address": store.data_address}
    who = server_name(store.data_address, store.id)
    detail = error.WhichOneof("detail")
    if detail == "region_error":
        region = from_region_error(error.region_error, region_id=None, store_id=store.id, address=store.data_address)
        return region, False
    if detail == "cluster_id_error":
        ids = error.cluster_id_error
        return WrongClusterError(f"{who} belongs to cluster {ids.current}, not to {ids.request}", **fields), True
    text = clean(error.msg, secrets)
    if detail == "kv_error":
        return ProtocolError(
            f"{who} reports a transactional error in a raw backup: {show_answer(text) or detail}", **fields
        ), False
    return _from_text(text, who=who, url=url, fields=fields)


def _from_text(text: str, *, who: str, url: str, fields: dict[str, Any]) -> tuple[TikvBrError, bool]:
    low = text.lower()
    if FLUSH_TEXT in low:
        # A V2 store asks PD for timestamps first, and PD may be electing.
        return StoreUnavailableError(f"{who} gets no timestamps from PD just now: {text}", **fields), False
    fields = {**fields, "url": url}
    if any(mark in low for mark in PASSING_TEXTS):
        return StorageUnavailableError(f"{who} cannot write to {url} just now: {text}", **fields), False
    if "nosuchbucket" in low:
        return StorageNotFoundError(f"{who} finds no bucket for {url}: {text}", **fields), True
    if "notfound" in low and "io" in low:
        return (
            StorageNotFoundError(
                f"{who} finds no {url}: a local directory must exist on the host of every store, best as one that all"
                f" hosts share: {text}",
                **fields,
            ),
            True,
        )
    if any(mark in low for mark in REFUSED_TEXTS):
        del fields["url"]
        return AuthenticationError(f"{who} is refused at {url}: check the credentials: {text}", **fields), True
    if "permissiondenied" in low:
        return StorageError(f"{who} may not write to {url}: let the user of TiKV write there: {text}", **fields), True
    if "storagefull" in low or "no space left" in low:
        return StorageError(f"{who} finds {url} full: {text}", **fields), True
    if "invalid backup version" in low:
        del fields["url"]
        return ApiVersionError(
            f"{who} cannot make a backup of that API version or range: {show_answer(text)}", **fields
        ), True
    return StorageError(
        f"{who} failed to back up to {url}: {show_answer(text) or 'it does not say why'}", **fields
    ), True


def clean(text: str, secrets: tuple[str, ...] = ()) -> str:
    """One line of a store's text, cut where it becomes long, without secrets."""
    text = hide(text, secrets)
    # Where in TiKV's source it happened tells a user nothing.
    return one_line(re.sub(r"\[[^\[\]]*\.rs:\d+\]:? ?", "", text))


def finished_keys(
    response: brpb_pb2.BackupResponse,
    *,
    request: brpb_pb2.BackupRequest,
    codec: KeyCodec,
    dst_codec: KeyCodec,
    store: Store,
) -> KeyRange[ApiKey]:
    """The range that a good response says is done, after checking that it makes sense.

    :param request: what was asked.
    :param codec: keys of the cluster.
    :param dst_codec: keys of the backup.
    :raises ProtocolError: the range is not part of what was asked, or a file is of other keys or another API version.
    """
    asked = KeyRange(ApiKey(request.start_key), ApiKey(request.end_key))
    keys = KeyRange(ApiKey(response.start_key), ApiKey(response.end_key))
    if (keys.end and keys.start >= keys.end) or not asked.covers(keys):
        raise _broken(store, f"answers for the range {show_range(keys)} when asked for {show_range(asked)}")
    # Stores before 6.1 do not fill the version in; they cannot convert either.
    if int(request.dst_api_version) == ApiVersion.V2 and int(response.api_version) != ApiVersion.V2:
        raise _broken(store, f"answers in API version {response.api_version} when asked for V2")
    wanted = dst_codec.api_range(codec.user_range(keys))
    for file in response.files:
        given = file_range(file)
        if not wanted.covers(given):
            raise _broken(
                store, f"says that file {file.name} holds {show_range(given)}, but answers for {show_range(wanted)}"
            )
    return keys


def _broken(store: Store, what: str) -> ProtocolError:
    who = server_name(store.data_address, store.id)
    return ProtocolError(f"{who} {what}", store_id=store.id, address=store.data_address)
