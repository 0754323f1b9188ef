"""Twelve scenarios - each API version, everything or a range, a directory or S3 - by operators and by the command.

In each, the operator's backup is restored by the command, and the command's by the operator; half of them use TLS.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_tikvbr.cli.main import main
from airflow_provider_tikvbr.embedded.serving import ServerTls
from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from airflow_provider_tikvbr.operators.backup import BackupRawOperator
from airflow_provider_tikvbr.operators.restore import RestoreRawOperator
from airflow_provider_tikvbr.sensors.checksum import ChecksumSensor
from airflow_provider_tikvbr.tikv.keys import EVERYTHING, ApiVersion, KeyRange, UserKey
from tests.storage.conftest import ACCESS, SECRET, S3Server
from tests.support.certs import Authority
from tests.support.front import connect

PART = KeyRange(UserKey(b"k/120"), UserKey(b"k/333\xff"))
COUNT = 400
SUMMARY = re.compile(r"^\[[^\]]+\] \[INFO\] \[\S+:\d+\] \[\"(?P<title>[^\"]+)\"\]", re.MULTILINE)


@dataclass(frozen=True)
class Scenario:
    """One of the twelve."""

    api_version: ApiVersion
    keys: KeyRange[UserKey]
    s3: bool
    tls: bool

    def __str__(self) -> str:
        part = "full" if self.keys == EVERYTHING else "range"
        return f"{self.api_version.name}-{part}-{'s3' if self.s3 else 'local'}{'-tls' if self.tls else ''}"


def scenarios() -> Iterator[Scenario]:
    """Each second one with TLS, so that every version, range and storage has it once and lacks it once at least."""
    for (v, version), (k, keys), s3 in product(enumerate(ApiVersion), enumerate((EVERYTHING, PART)), (False, True)):
        yield Scenario(version, keys, s3, tls=(v + k + s3) % 2 == 1)


@dataclass(frozen=True)
class Pki:
    """Certificates as files."""

    server: ServerTls
    ca: Path
    cert: Path
    key: Path

    @property
    def flags(self) -> list[str]:
        return [f"--ca={self.ca}", f"--cert={self.cert}", f"--key={self.key}"]

    @property
    def extra(self) -> dict[str, str]:
        return {"ca": str(self.ca), "cert": str(self.cert), "private_key": str(self.key)}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    authority = Authority()
    server, client = authority.issue("127.0.0.1", "localhost"), authority.issue("client")
    folder = tmp_path_factory.mktemp("pki")
    files = {"ca": authority.ca, "cert": client.cert, "key": client.key}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    tls = ServerTls(cert=server.cert, key=server.key, ca=authority.ca)
    return Pki(tls, *(folder / name for name in files))


def pairs(api_version: ApiVersion) -> list[tuple[UserKey, bytes, int]]:
    """Keys of several lengths, borders of keys among them; where there is TTL, some pairs expire in a long time."""
    keys = [b"k/%03d" % at for at in range(COUNT)]
    keys += [b"k/120", b"k/333\xff", b"k/200\x00", b"k/200\xff" * 3, b"\x00", b"\xff" * 12, b"k/30012345"]
    ttl = 0 if api_version is ApiVersion.V1 else 1_000_000_000
    return [(UserKey(key), b"%d " % at * (at % 60 + 1), ttl * (at % 3 == 0)) for at, key in enumerate(sorted({*keys}))]


@contextmanager
def cluster(folder: Path, scenario: Scenario, pki: Pki, **settings: Any) -> Iterator[ThreadedCluster]:
    settings["tls"] = pki.server if scenario.tls else None
    with ThreadedCluster(data_dir=folder, api_version=scenario.api_version, **settings) as started:
        yield started


def told(capsys: pytest.CaptureFixture[str], title: str) -> None:
    """The command said on standard output that it has succeeded, and nothing else there."""
    said = capsys.readouterr().out
    assert SUMMARY.findall(said) == [title], said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("scenario", list(scenarios()), ids=str)
def test_operator_and_command_restore_each_others_backups(
    scenario: Scenario,
    pki: Pki,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    source_settings = {"stores": 3, "replicas": 3, "split_keys": [UserKey(b"k/%03d" % at) for at in (50, 150, 250)]}
    urls = {name: str(tmp_path / name) for name in ("operator", "command")}
    s3_conn = ""
    if scenario.s3:
        server: S3Server = request.getfixturevalue("s3_server")
        bucket = request.getfixturevalue("bucket")
        # The operator is given the keys by a connection, the command by the URL.
        urls = {name: server.url(bucket, f"of/{name}", keys=name == "command") for name in urls}
        keys = {"conn_type": "aws", "login": ACCESS, "password": SECRET, "extra": {"endpoint_url": server.endpoint}}
        monkeypatch.setenv("AIRFLOW_CONN_KEYS", json.dumps(keys))
        s3_conn = "keys"
    part = {"start": scenario.keys.start.hex(), "end": scenario.keys.end.hex()}
    range_flags = [f"--{name}={value}" for name, value in part.items() if value]
    extra = pki.extra if scenario.tls else {}

    def flags(at: ThreadedCluster, of: str) -> list[str]:
        url = urls[of]
        if scenario.s3 and of == "operator":
            url = request.getfixturevalue("s3_server").url(request.getfixturevalue("bucket"), "of/operator")
        log = tmp_path / "command.log"
        tls = pki.flags if scenario.tls else []
        return [f"--pd={at.pd_address}", f"--storage={url}", f"--log-file={log}", *range_flags, *tls]

    def common(of: str) -> dict[str, Any]:
        return {"storage": urls[of], "storage_conn_id": s3_conn, **part}

    with (
        cluster(tmp_path / "a", scenario, pki, **source_settings) as source,
        cluster(tmp_path / "b", scenario, pki, stores=2, split_keys=[UserKey(b"k/199")]) as first,
        cluster(tmp_path / "c", scenario, pki, stores=1) as second,
    ):
        source.put(pairs(scenario.api_version))
        for name, at in (("tikv_source", source), ("tikv_second", second)):
            connect(monkeypatch, name, at, **extra)
        wanted = source.pairs(scenario.keys)
        assert 0 < len(wanted) <= len(source.pairs())
        assert len(wanted) < len(source.pairs()) or scenario.keys == EVERYTHING

        # By the operator, restored by the command.
        backup = BackupRawOperator(task_id="b", tikv_conn_id="tikv_source", checksum=True, **common("operator"))
        summary = backup.execute({})
        assert (summary["total_kv"], summary["verified"]) == (len(wanted), True)
        capsys.readouterr()
        assert main(["restore", "raw", "--checksum", *flags(first, "operator")]) == 0
        told(capsys, "Raw restore success summary")
        assert main(["debug", "checksum", *flags(first, "operator")]) == 0
        assert first.pairs() == wanted

        # By the command, restored by the operator.
        capsys.readouterr()
        assert main(["backup", "raw", "--checksum", *flags(source, "command")]) == 0
        told(capsys, "Raw backup success summary")
        restore = RestoreRawOperator(task_id="r", tikv_conn_id="tikv_second", checksum=True, **common("command"))
        restored = restore.execute({})
        assert (restored["checksum"], restored["verified"]) == (summary["checksum"], True)
        verify = ChecksumSensor(task_id="v", tikv_conn_id="tikv_second", on_mismatch="fail", **common("command"))
        assert verify.execute({})["matches"] is True
        assert second.pairs() == wanted


def test_half_of_the_scenarios_use_tls() -> None:
    found = list(scenarios())
    assert len(found) == 12
    assert sum(each.tls for each in found) == 6
    for of in ("api_version", "keys", "s3"):
        assert {(getattr(each, of), each.tls) for each in found} == {
            (value, tls) for value in {getattr(each, of) for each in found} for tls in (False, True)
        }
