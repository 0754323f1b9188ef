"""Where in HDFS a backup is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HdfsLocation:
    """A directory of HDFS.

    :param remote: its URL, as the stores hand it to their ``hdfs`` command.
    """

    remote: str

    @property
    def display_url(self) -> str:
        """The URL; it has no parameters."""
        return self.remote
