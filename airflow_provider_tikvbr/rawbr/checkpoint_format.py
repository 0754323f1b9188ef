"""What the files of a checkpoint look like: the head, which says whose it is, and the files of finished pieces."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any, Final

from google.protobuf.message import DecodeError

from airflow_provider_tikvbr.exceptions import BackupInvalidError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr.ranges import FinishedRange
from airflow_provider_tikvbr.storage.cipher import IV_LENGTH, Cipher, new_iv
from airflow_provider_tikvbr.tikv.keys import ApiKey, KeyRange

FORMAT: Final = 1
MAGIC: Final = b"TBC1"
DIGEST_BYTES: Final = 32
LENGTH_BYTES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class JobIdentity:
    """Which job a checkpoint is of.

    :param kind: ``backup`` or ``restore``.
    :param owner: the run that works: an unfinished job of another run is not gone on with, for it may be of any age.
        Empty for jobs without a run, such as commands.
    :param options: what must not differ between tries, by the options' names. Only digests of the values are kept.
    """

    kind: str
    owner: str
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The contents of ``head.json``.

    :param since_ms: when the first try began that may have left something; tries that were not gone on with count too.
    :param writers: who wrote pieces, oldest first.
    :param state: what else the next try has to know.
    :param done: whether the job is over, so that nobody goes on with it: the checkpoint could not be deleted.
    """

    kind: str
    owner: str
    started: str
    since_ms: int
    salt: str
    digests: dict[str, str]
    writers: tuple[str, ...]
    state: dict[str, int | str] = field(default_factory=dict)
    done: bool = False
    format: int = FORMAT

    @classmethod
    def parse(cls, data: bytes) -> Head | None:
        """Read one; None if it is of another format or damaged."""
        try:
            found: Any = json.loads(data)
            if found["format"] != FORMAT:
                return None
            return cls(
                kind=str(found["kind"]),
                owner=str(found["owner"]),
                started=str(found["started"]),
                since_ms=int(found["since_ms"]),
                salt=bytes.fromhex(found["salt"]).hex(),
                digests={str(k): str(v) for k, v in found["digests"].items()},
                writers=tuple(str(w) for w in found["writers"]),
                state=dict(found["state"]),
                done=bool(found.get("done", False)),
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    def dump(self) -> bytes:
        """Its text."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


def new_head(identity: JobIdentity, writer: str) -> Head:
    """The head of a job that begins now."""
    salt = secrets.token_hex(16)
    now = datetime.now(timezone.utc)
    return Head(
        kind=identity.kind,
        owner=identity.owner,
        started=now.isoformat(timespec="seconds"),
        since_ms=int(now.timestamp() * 1000),
        salt=salt,
        digests={name: _digest(salt, name, value) for name, value in identity.options.items()},
        writers=(writer,),
    )


def other_option(found: Head, identity: JobIdentity) -> str | None:
    """An option of which the job that is there has another value."""
    for name in sorted({*found.digests, *identity.options}):
        value = identity.options.get(name)
        if value is None or not hmac.compare_digest(found.digests.get(name, ""), _digest(found.salt, name, value)):
            return name
    return None


def _digest(salt: str, name: str, value: str) -> str:
    return hmac.new(
        bytes.fromhex(salt), f"{name}={value}".encode("utf-8", "surrogateescape"), hashlib.sha256
    ).hexdigest()


def append(pieces: bytearray, data: bytes) -> None:
    """Put a piece behind others.

    :param pieces: the others, each as its length and itself.
    :param data: the piece as a ``BackupResponse``, serialised.
    """
    pieces += len(data).to_bytes(LENGTH_BYTES, "big")
    pieces += data


def pack(pieces: bytes | bytearray, cipher: Cipher) -> bytes:
    """A file of pieces: magic, then, encrypted as a whole, a digest of the rest and each piece with its length.

    :param pieces: as :func:`append` puts them together.
    """
    body = b"".join((hashlib.sha256(pieces).digest(), pieces))
    if cipher.is_plain:
        return MAGIC + body
    iv = new_iv()
    return MAGIC + iv + cipher.encrypt(body, iv)


def unpack(data: bytes, cipher: Cipher) -> list[FinishedRange]:
    """Read a file of pieces.

    :raises BackupInvalidError: it is damaged, or encrypted otherwise.
    """
    start = len(MAGIC) + (0 if cipher.is_plain else IV_LENGTH)
    if data[: len(MAGIC)] != MAGIC or len(data) < start + DIGEST_BYTES:
        raise BackupInvalidError("it is not what was written")
    body = cipher.decrypt(data[start:], data[len(MAGIC) : start])
    if hashlib.sha256(memoryview(body)[DIGEST_BYTES:]).digest() != body[:DIGEST_BYTES]:
        raise BackupInvalidError("it is not what was written")
    pieces: list[FinishedRange] = []
    at = DIGEST_BYTES
    try:
        while at < len(body):
            end = at + LENGTH_BYTES + int.from_bytes(body[at : at + LENGTH_BYTES], "big")
            record = brpb_pb2.BackupResponse.FromString(body[at + LENGTH_BYTES : end])
            pieces.append(
                FinishedRange(KeyRange(ApiKey(record.start_key), ApiKey(record.end_key)), tuple(record.files))
            )
            at = end
    except DecodeError as err:
        raise BackupInvalidError("it is not what was written") from err
    return pieces
