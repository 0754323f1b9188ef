"""Azurite, Microsoft's emulator of Azure Blob Storage, which npm installs into ``.azurite``."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ACCOUNT = "devstoreaccount1"
# Every Azurite has this account and this key.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

_PROGRAM = Path(__file__).resolve().parents[2] / ".azurite" / "node_modules" / ".bin" / "azurite-blob"
_START_S = 60


@dataclass(frozen=True)
class Azurite:
    """One that runs.

    :param endpoint: with the account in its path.
    """

    endpoint: str

    def url(self, container: str, prefix: str = "backups/monday", *, key: bool = True, more: str = "") -> str:
        given = f"&account-key={KEY}" if key else ""
        return f"azure://{container}/{prefix}?endpoint={self.endpoint}&account-name={ACCOUNT}{given}{more}"


@contextlib.contextmanager
def azurite() -> Iterator[Azurite]:
    """Run one that keeps everything in memory."""
    program = str(_PROGRAM) if _PROGRAM.exists() else shutil.which("azurite-blob")
    if program is None or shutil.which("node") is None:
        pytest.skip("Azurite is not installed: make servers")
    with tempfile.TemporaryDirectory(prefix="tikvbr-azurite-") as directory:
        said = Path(directory, "stdout")
        with said.open("wb") as out:
            process = subprocess.Popen(
                [
                    program,
                    *(
                        "--blobHost",
                        "127.0.0.1",
                        "--blobPort",
                        "0",
                    ),
                    *("--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=directory,
            )
        try:
            yield Azurite(f"{_address(process, said)}/{ACCOUNT}")
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[bytes], said: Path) -> str:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"successfully listens on (http://\S+)", said.read_text(errors="replace"))
        if found:
            return found[1]
        time.sleep(0.05)
    raise RuntimeError(f"Azurite did not start: {said.read_text(errors='replace')}")
