"""What the embedded cluster remembers between two runs: a small table of named JSON values in its data directory."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from airflow_provider_tikvbr.exceptions import InvalidOptionError

FILE_NAME = "pd.sqlite"


class ClusterState:
    """Named values of some kinds (``region``, ``safepoint``, ...), each written at once and kept over a crash.

    It is used by one thread at a time.

    :param directory: the data directory of the cluster; it is made if it is missing.
    :raises InvalidOptionError: another cluster runs there, or it cannot be written to.
    """

    def __init__(self, *, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(directory / FILE_NAME, timeout=0, isolation_level=None)
        except (OSError, sqlite3.OperationalError) as err:
            raise InvalidOptionError(
                f"the data directory {directory} cannot be used ({err}): give one that may be written to",
                parameter="data_dir",
            ) from err
        # Held from the first write on until the end, which keeps a second process out of the directory.
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as err:
            self._db.close()
            raise InvalidOptionError(
                f"the data directory {directory} is in use by another embedded cluster: stop that or give another one",
                parameter="data_dir",
            ) from err
        # A write survives the death of the process; the loss of the whole machine is of no interest here.
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS state (kind TEXT, name TEXT, value TEXT, PRIMARY KEY (kind, name))"
        )

    def read(self, kind: str) -> dict[str, Any]:
        """Every value of a kind by its name."""
        rows = self._db.execute("SELECT name, value FROM state WHERE kind = ?", (kind,))
        return {name: json.loads(value) for name, value in rows}

    def write(self, kind: str, values: Iterable[tuple[str, Any]]) -> None:
        """Set some values of a kind, all or none."""
        rows = [(kind, name, json.dumps(value)) for name, value in values]
        self._db.execute("BEGIN")
        self._db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?, ?)", rows)
        self._db.execute("COMMIT")

    def remove(self, kind: str, name: str) -> None:
        """Forget a value; one that does not exist is no error."""
        self._db.execute("DELETE FROM state WHERE kind = ? AND name = ?", (kind, name))

    def close(self) -> None:
        """Close the file."""
        self._db.close()
