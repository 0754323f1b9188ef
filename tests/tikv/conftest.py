"""Fixtures of the tests of the line to PD and TiKV."""

from __future__ import annotations

import pytest

from tests.support.certs import Authority, KeyPair


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
