"""Settings of Airflow, which reads them when it is first imported, and fixtures that many tests share."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.certs import Authority, KeyPair

_home = tempfile.mkdtemp(prefix="tikvbr-airflow-")
atexit.register(shutil.rmtree, _home, ignore_errors=True)
os.environ["AIRFLOW_HOME"] = _home
os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "True"
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__DAGS_FOLDER"] = str(Path(__file__).resolve().parents[1] / "dags")
for _name in [name for name in os.environ if name.startswith(("AIRFLOW_CONN_", "AIRFLOW_VAR_"))]:
    del os.environ[_name]


@pytest.fixture(scope="session")
def authority() -> Authority:
    """The authority that the test's servers and clients trust."""
    return Authority()


@pytest.fixture(scope="session")
def server_pair(authority: Authority) -> KeyPair:
    """A server's certificate for the addresses that tests listen on."""
    return authority.issue("127.0.0.1", "localhost")


@pytest.fixture(scope="session")
def client_pair(authority: Authority) -> KeyPair:
    """A client's certificate."""
    return authority.issue("client")


def pytest_configure(config: pytest.Config) -> None:
    """Let Python 3.10 say what is not ours to change: everything else that anybody warns of fails a test."""
    if sys.version_info < (3, 11):
        # Google's libraries, which smart_open imports too if they are there, support it no longer.
        config.addinivalue_line("filterwarnings", "ignore:You are using a non-supported Python version:FutureWarning")
        # Its asyncio does not close what it made for a TLS handshake that fails.
        config.addinivalue_line("filterwarnings", "ignore:unclosed transport <asyncio.sslproto:ResourceWarning")
