"""The golden backups and the truth about their data (tests/golden/README.md)."""

from __future__ import annotations

import atexit
import gzip
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from airflow_provider_tikvbr.rawbr.summary import Checksum
from airflow_provider_tikvbr.tikv.keys import EVERYTHING, ApiVersion, KeyRange, UserKey

ROOT = Path(__file__).resolve().parent.parent / "golden"
AES256_KEY = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"


@dataclass(frozen=True, slots=True)
class Pair:
    """One pair as a raw scan of the source returned it; ttl in seconds at writing, 0 = none."""

    key: UserKey
    value: bytes
    ttl: int


@dataclass(frozen=True, slots=True)
class Golden:
    """One golden backup."""

    folder: str
    name: str

    def __str__(self) -> str:
        return f"{self.folder}-{self.name}"

    @property
    def path(self) -> Path:
        """Its directory, which is only to be read."""
        return ROOT / self.folder / self.name

    @property
    def url(self) -> str:
        """Storage URL of a copy that this process may write into: restores keep their checkpoints there."""
        return f"local://{copy_of(self.folder, self.name)}"

    @property
    def info(self) -> dict[str, Any]:
        """What is known of it."""
        found: dict[str, Any] = info(self.folder)["backups"][self.name]
        return found

    @property
    def source(self) -> ApiVersion:
        """API version of the cluster that it was taken from."""
        return ApiVersion.parse(self.folder)

    @property
    def api_version(self) -> ApiVersion:
        """API version of its files."""
        return ApiVersion.V2 if self.name.endswith("to_v2") else self.source

    @property
    def keys(self) -> KeyRange[UserKey]:
        """The range that was backed up."""
        if "range" not in self.info:
            return EVERYTHING
        return KeyRange(
            UserKey(bytes.fromhex(self.info["range"]["start"])), UserKey(bytes.fromhex(self.info["range"]["end"]))
        )

    @property
    def crypter(self) -> dict[str, str]:
        """The options that decrypt it."""
        return {"crypter_method": "aes256-ctr", "crypter_key": AES256_KEY} if self.name == "aes256" else {}

    @property
    def pairs(self) -> list[Pair]:
        """The pairs that it holds, in key order."""
        return [p for p in truth(self.folder) if self.keys.contains(p.key)]


@cache
def copy_of(folder: str, name: str) -> Path:
    """A copy of a golden backup that this process may write into."""
    directory = Path(tempfile.mkdtemp(prefix="tikvbr-golden-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    directory.chmod(0o755)
    return Path(shutil.copytree(ROOT / folder / name, directory / folder / name))


@lru_cache(maxsize=3)
def info(folder: str) -> dict[str, Any]:
    """All that is known of a source cluster and its backups."""
    found: dict[str, Any] = json.loads((ROOT / folder / "info.json").read_text())
    return found


@lru_cache(maxsize=3)
def truth(folder: str) -> tuple[Pair, ...]:
    """All pairs of a source cluster, in key order."""
    with gzip.open(ROOT / folder / "truth.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    return tuple(Pair(UserKey(bytes.fromhex(r["key"])), bytes.fromhex(r["value"]), r.get("ttl", 0)) for r in rows)


def backups() -> list[Golden]:
    """Every golden backup."""
    return [Golden(folder, name) for folder in ("v1", "v1ttl", "v2") for name in info(folder)["backups"]]


def digest(pairs: Iterable[tuple[bytes, bytes]]) -> tuple[int, str]:
    """Number of pairs, and the sha256 that info.json calls digest."""
    sha = hashlib.sha256()
    count = 0
    for key, value in pairs:
        sha.update(len(key).to_bytes(4, "big") + len(value).to_bytes(4, "big") + key + value)
        count += 1
    return count, sha.hexdigest()


def source_checksum(golden: Golden) -> Checksum:
    """RawChecksum of the backed-up range on the source cluster."""
    found = (
        golden.info["range"]["checksum"] if "range" in golden.info else list(info(golden.folder)["checksum"].values())
    )
    return Checksum(*found)
