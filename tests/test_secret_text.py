from __future__ import annotations

import base64
import json
from urllib.parse import quote, quote_plus

import pytest

from airflow_provider_tikvbr.secret_text import hide, looks_secret, show_path, without_keys
from tests.support.certs import Authority

BASE64 = base64.b64encode(bytes(range(7, 60))).decode()


@pytest.mark.parametrize(
    "path",
    [
        "/etc/tikv/client.key",
        "C:\\keys\\client.pem",
        "/home/somebody/certificates/of/the/production/cluster/client/key",
        "/tmp/pytest-of-Somebody/pytest-10/test_1/key",
        "relative/0123456789abcdef",
        "/run/secrets/550e8400-e29b-41d4-a716-446655440000",
    ],
)
def test_paths_are_shown(path: str) -> None:
    assert show_path(path) == repr(path)


@pytest.mark.parametrize("secret", ["ca" * 16, "0F" * 32, BASE64, BASE64.rstrip("="), '{"type": "service_account"}'])
def test_keys_are_no_paths(secret: str) -> None:
    assert looks_secret(secret)
    assert secret not in show_path(secret)
    assert secret not in without_keys(f"no {secret} here") or secret.startswith("{")


def test_no_line_of_a_pem_text_is_a_path() -> None:
    pem = Authority().issue("a").key.decode()
    assert looks_secret(pem)
    assert looks_secret(pem.replace("-----", ""))
    assert without_keys(pem.splitlines()[1]) == "***"


def test_a_secret_is_hidden_in_every_form() -> None:
    secret = 'a/b+c d"e=='
    for form in (secret, quote(secret), quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1]):
        assert hide(f"refused: {form}, they say", [secret]) == "refused: ***, they say"
    pem = "-----BEGIN PRIVATE KEY-----\nMIIcanaryOfTheAccount\nabc\n-----END PRIVATE KEY-----\n"
    assert "canary" not in hide("bad line MIIcanaryOfTheAccount", [pem])
    assert "canary" not in hide(f"bad {json.dumps({'private_key': pem})}", [pem])
    assert hide("a text", ["", "a"]) == "a text"
