"""Where in HDFS a backup is.

The stores and this process both hand the place to their ``hdfs`` command, but a store first brings it into the form of
a URL (TiKV, ``components/external_storage/src/hdfs.rs``), and the command takes some characters for patterns. A path
that the two could read in two ways is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from airflow_provider_tikvbr.storage.parameters import redact, refused

_PREFIX = "hdfs://"
_HOST = re.compile(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
_PLAIN = re.compile(r"[A-Za-z0-9._~!$&'()+,;=@/-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class HdfsLocation:
    """A directory of HDFS.

    :param remote: its URL, as the stores are told it: ``hdfs://namenode:8020/path``, or ``hdfs:///path`` in the file
        system that Hadoop's configuration names. Slashes at its end are dropped.
    :raises InvalidOptionError: it cannot be right.
    """

    remote: str

    def __post_init__(self) -> None:
        shown = redact(self.remote)
        if self.remote[: len(_PREFIX)].lower() != _PREFIX:
            raise refused(f"{shown!r} is not a URL of HDFS: write hdfs://namenode:8020/directory")
        rest = self.remote[len(_PREFIX) :]
        if "?" in rest or "#" in rest:
            raise refused(f"the storage URL {shown} has a query or a fragment: HDFS takes neither")
        host, _, path = rest.rstrip("/").partition("/")
        if "@" in host:
            raise refused(f"the storage URL {shown} has a user part: set HADOOP_LINUX_USER or HADOOP_USER_NAME instead")
        if host and not _HOST.fullmatch(host):
            raise refused(f"the storage URL {shown} names no host that can be: write hdfs://namenode:8020/directory")
        if not path:
            raise refused(f"the storage URL {shown} names no directory: write hdfs://namenode:8020/directory")
        if not is_plain(path):
            raise refused(
                f"the storage URL {shown} has a path that hdfs and TiKV read differently: use letters, digits and ._-,"
                f" with no .. and no empty part"
            )
        object.__setattr__(self, "remote", f"{_PREFIX}{host}/{path}")

    @property
    def display_url(self) -> str:
        """The URL; it has no parameters."""
        return self.remote

    @property
    def directory(self) -> str:
        """How the ``hdfs`` command is told: the path alone where no host is named, as the stores do it."""
        return self.remote.removeprefix(_PREFIX) if self.remote.startswith(f"{_PREFIX}/") else self.remote


def is_plain(path: str) -> bool:
    """Whether the command takes every part of a path, relative to something, as it is written."""
    parts = path.split("/")
    return _PLAIN.fullmatch(path) is not None and not any(part in ("", ".", "..") for part in parts)
