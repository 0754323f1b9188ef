"""The commands end to end: the real engine against embedded clusters."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from airflow_provider_tikvbr.cli import settings
from airflow_provider_tikvbr.cli.main import main
from airflow_provider_tikvbr.embedded.serving import ServerTls
from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.storage import factory
from airflow_provider_tikvbr.tikv.keys import ApiVersion, UserKey
from tests.support.certs import Authority

TIKVBR = [sys.executable, "-m", "airflow_provider_tikvbr.cli.main"]
GOLDEN = Path(__file__).parents[1] / "golden"
SUMMARY = re.compile(r'^\[[^\]]+\] \[INFO\] \[jobs\.py:\d+\] \["(?P<title>[^"]+)"\](?P<fields>.*)$')
FIELD = re.compile(r"\[([\w()-]+)=([^\]]*)\]")
PAIRS = [(UserKey(b"key/%03d" % at), b"value %d" % at) for at in range(300)]


def fields(line: str, title: str) -> dict[str, str]:
    """The fields of a summary line."""
    match = SUMMARY.match(line)
    assert match, line
    assert match["title"] == title
    return dict(FIELD.findall(match["fields"]))


def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TIKVBR, *map(str, args)], capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def v1(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadedCluster]:
    split_keys = [UserKey(b"key/100"), UserKey(b"key/200")]
    with ThreadedCluster(data_dir=tmp_path_factory.mktemp("v1"), split_keys=split_keys) as cluster:
        cluster.put(PAIRS)
        yield cluster


@pytest.fixture(scope="module")
def v2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadedCluster]:
    with ThreadedCluster(data_dir=tmp_path_factory.mktemp("v2"), api_version=ApiVersion.V2) as cluster:
        yield cluster


# --- what works ---


def test_a_backup_is_restored_and_compared(v1: ThreadedCluster, tmp_path: Path) -> None:
    backup = run("backup", "raw", "-u", v1.pd_address, "-s", f"local://{tmp_path}/b", "--checksum")
    assert (backup.returncode, backup.stdout.count("\n")) == (0, 1), backup.stderr
    told = fields(backup.stdout.rstrip("\n"), "Raw backup success summary")
    assert list(told) == [
        *("total-ranges", "ranges-succeed", "ranges-failed", "backup-total-regions", "total-take"),
        *("total-kv", "total-kv-size", "average-speed", "backup-data-size(after-compressed)"),
    ]
    assert (told["total-ranges"], told["ranges-succeed"], told["ranges-failed"]) == ("3", "3", "0")
    assert (told["total-kv"], told["backup-total-regions"]) == ("300", "3")
    assert '[step="Raw backup checksum"] [progress=100.00%]' in backup.stderr

    with ThreadedCluster(data_dir=tmp_path / "other") as other:
        log = tmp_path / "restore.log"
        restore = run("restore", "raw", "-u", other.pd_address, "-s", tmp_path / "b", "--log-file", log)
        assert (restore.returncode, restore.stderr) == (0, f"Detail BR log in {log}\n")
        told = fields(restore.stdout.rstrip("\n"), "Raw restore success summary")
        assert list(told) == [
            *("total-ranges", "ranges-succeed", "ranges-failed", "restore-files", "total-take"),
            *("restore-data-size(after-compressed)", "total-kv", "total-kv-size", "average-speed"),
        ]
        assert (told["restore-files"], told["total-kv"]) == ("3", "300")
        assert log.read_text().splitlines()[-1] == restore.stdout.rstrip("\n")
        assert [(pair.key, pair.value) for pair in other.pairs()] == PAIRS

        same = run("checksum", "-u", other.pd_address, "-s", tmp_path / "b")
        assert same.returncode == 0, same.stderr
        assert fields(same.stdout.rstrip("\n"), "Raw checksum success summary")["total-kvs"] == "300"

        other.put([(UserKey(b"key/one more"), b"value")])
        differs = run("debug", "checksum", "-u", other.pd_address, "-s", tmp_path / "b")
        assert differs.returncode == 1
        fields(differs.stdout.rstrip("\n"), "Raw checksum failed summary")
        assert re.search(
            r"^Error: the cluster does not hold what the backup holds: the backup has crc64xor=\d+ total-kvs=300"
            r" total-bytes=\d+, the cluster crc64xor=\d+ total-kvs=301 total-bytes=\d+$",
            differs.stderr,
            re.MULTILINE,
        )


def test_the_command_runs_without_airflow(v1: ThreadedCluster, tmp_path: Path) -> None:
    script = """
import sys

class NoAirflow:
    def find_spec(self, name, path=None, target=None):
        if name == "airflow" or name.startswith("airflow."):
            raise ModuleNotFoundError(f"the command imports {name}", name=name)

sys.meta_path.insert(0, NoAirflow())
from airflow_provider_tikvbr.cli.main import main
code = main(sys.argv[1:])
loaded = {n for n in sys.modules if n.split(".")[0].startswith("airflow") and not n.startswith("airflow_provider_tikvbr")}
sys.exit(f"loaded: {loaded}" if loaded else code)
"""
    for job in (["backup", "raw", "--checksum"], ["checksum"], ["debug", "decode"]):
        command = [sys.executable, "-c", script, *job, "-u", v1.pd_address, "-s", str(tmp_path / "b")]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert result.returncode == 0, result.stderr


def test_a_range_of_a_cluster_is_converted_and_restored(
    v1: ThreadedCluster, v2: ThreadedCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = str(tmp_path / "b")
    keys = ["--format", "raw", "--start", "key/050", "--end", "key/250"]
    assert main(["backup", "raw", "-u", v1.pd_address, "-s", storage, "--dst-api-version", "V2", *keys]) == 0
    assert main(["restore", "raw", "-u", v2.pd_address, "-s", storage, "--checksum=true", *keys]) == 0
    assert main(["validate", "checksum", "-u", v2.pd_address, "-s", storage]) == 0
    titles = [m and m["title"] for m in map(SUMMARY.match, capsys.readouterr().out.splitlines())]
    assert titles == ["Raw backup success summary", "Raw restore success summary", "Raw checksum success summary"]
    assert [(pair.key, pair.value) for pair in v2.pairs()] == PAIRS[50:250]


def test_a_failed_job_says_so_to_scripts_and_no_key_if_none_is_to_be_shown(v1: ThreadedCluster, tmp_path: Path) -> None:
    job: list[str | Path] = [
        "-u",
        v1.pd_address,
        "-s",
        tmp_path / "b",
        "--format",
        "raw",
        "--start",
        "key/050",
        "--end",
        "key/060",
    ]
    assert run("backup", "raw", *job).returncode == 0
    key = b"key/055".hex()
    for flags in ([], ["--redact-log"], ["--redact-info-log=true", "--log-format=json"]):
        log = tmp_path / f"log{len(flags)}"
        again = run("restore", "raw", *job[:-1], "key/099", "--log-file", log, "-L", "debug", *flags)
        assert again.returncode == 1
        assert fields(again.stdout.rstrip("\n"), "Raw restore failed summary")["ranges-failed"] == "0"
        shown = again.stderr + log.read_text()
        assert ("key/099" in shown or b"key/099".hex() in shown) is not bool(flags), shown
        assert key not in shown
        assert ("?" in again.stderr) is bool(flags)
    assert {json.loads(line)["level"] for line in (tmp_path / "log2").read_text().splitlines()} >= {"INFO", "ERROR"}


def test_an_encrypted_backup_needs_its_key(
    v1: ThreadedCluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key"
    key.write_text("000102030405060708090a0b0c0d0e0f\n")
    job = ["-u", v1.pd_address, "-s", str(tmp_path / "b"), "--crypter.method=aes128-ctr"]
    log = tmp_path / "log"
    assert main(["backup", "raw", *job, "--crypter.key", key.read_text().strip(), "--log-file", str(log)]) == 0
    assert main(["checksum", *job, "--crypter.key-file", str(key)]) == 0
    assert main(["checksum", *job, "--crypter.key", "ff" * 16]) == 1
    assert "cannot be read with this key" in capfd.readouterr().err
    assert "[crypter.key=<hidden>]" in log.read_text()
    assert "00010203" not in log.read_text()


def test_a_cluster_with_tls(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    authority = Authority()
    server, client = authority.issue("127.0.0.1", "localhost"), authority.issue("client")
    for name, text in (("ca", authority.ca), ("cert", client.cert), ("key", client.key)):
        (tmp_path / name).write_bytes(text)
    certificates = [word for name in ("ca", "cert", "key") for word in (f"--{name}", str(tmp_path / name))]
    tls = ServerTls(cert=server.cert, key=server.key, ca=authority.ca)
    with ThreadedCluster(data_dir=tmp_path / "c", tls=tls) as cluster:
        cluster.put(PAIRS[:10])
        job = ["-u", f"https://{cluster.pd_address}", "-s", str(tmp_path / "b")]
        assert main(["backup", "raw", "--checksum", *job, *certificates]) == 0
        assert main(["backup", "raw", "-u", cluster.pd_address, "-s", str(tmp_path / "n")]) == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("Error: ")
    assert "TLS" in error
    assert not (tmp_path / "n").exists()


@contextmanager
def embedded(*args: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The embedded command as a process, once it is ready, and PD's address."""
    command = [*TIKVBR, "embedded", "--pd-port", "0", *map(str, args)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready.startswith("ready pd=127.0.0.1:"), process.communicate(timeout=30)
        yield process, ready.removeprefix("ready pd=").rstrip("\n")
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_an_embedded_cluster_fails_by_the_rules_of_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "faults.json"
    file.write_text(json.dumps([{"kind": "status", "method": "GET /pd/api/v1/stores", "status": 418, "times": 1}]))
    with embedded("--data", tmp_path / "c", "--faults", file) as (_, pd):
        stores = f"http://{pd}/pd/api/v1/stores"
        assert [httpx.get(stores).status_code for _ in range(2)] == [418, 200]
    file.write_text('[{"kind": "nonsuch"}]')
    assert main(["embedded", "--data", str(tmp_path / "n"), "--faults", str(file)]) == 1
    assert f"{file}: rule 0: kind='nonsuch' is none of status" in capfd.readouterr().err
    assert not (tmp_path / "n").exists()


def test_an_embedded_cluster_stops_and_is_taken_up_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    golden = str(GOLDEN / "v2" / "range")
    options = ("--data", tmp_path / "c", "--api-version", "v2", "--split-keys", "75,7573", "--stores", "2")
    with embedded(*options) as (process, pd):
        # a new V2 cluster has two regions by itself
        assert httpx.get(f"http://{pd}/pd/api/v1/stats/region").json()["count"] == 2 + 2
        assert main(["restore", "raw", "-u", pd, "-s", golden]) == 0
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0
    with embedded(*options) as (process, pd):
        assert main(["checksum", "-u", pd, "-s", golden]) == 0
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0
    restored, same = capfd.readouterr().out.splitlines()
    assert fields(restored, "Raw restore success summary")["total-kv"] == "945"
    assert fields(same, "Raw checksum success summary")["total-kvs"] == "945"


def test_a_backup_goes_to_s3(
    v1: ThreadedCluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLEEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "53c12e7")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        client = boto3.session.Session().client("s3", endpoint_url=f"http://{host}:{port}", region_name="eu-central-1")
        client.create_bucket(Bucket="backups", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        job = ["-u", v1.pd_address, "-s", "s3://backups/monday", "--s3.endpoint", f"http://{host}:{port}"]
        job += ["--s3.region", "eu-central-1"]
        assert main(["backup", "raw", *job]) == 0, capfd.readouterr()
        assert main(["checksum", *job]) == 0, capfd.readouterr()
        names = [entry["Key"] for entry in client.list_objects_v2(Bucket="backups")["Contents"]]
        client.close()
    finally:
        server.stop()
    assert "monday/backupmeta" in names
    assert len([name for name in names if name.endswith(".sst")]) == 3
    out, err = capfd.readouterr()
    assert "53c12e7" not in out + err


def test_a_storage_is_told_whether_to_send_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, bool, bool]] = []

    def refuse(url: str, *, send_credentials: bool, no_credentials: bool) -> None:
        told.append((url, send_credentials, no_credentials))
        raise InvalidOptionError("refused", parameter="storage")

    monkeypatch.setattr(factory, "open_storage", refuse)
    for typed in ([], ["-c=false"], ["--send-credentials-to-tikv", "--no-credentials"]):
        assert main(["backup", "raw", "-u", "127.0.0.1:1", "-s", "s3://b/p", "--s3.acl", "private", *typed]) == 1
    url = "s3://b/p?acl=private"
    assert told == [(url, True, False), (url, False, False), (url, True, True)]


def test_a_backup_that_is_stopped_puts_the_cluster_back(v2: ThreadedCluster, tmp_path: Path) -> None:
    v2.put((UserKey(b"big/%04d" % at), os.urandom(1000)) for at in range(2000))
    before = state(v2)
    command = ["backup", "raw", "-u", v2.pd_address, "-s", str(tmp_path / "b"), "--ratelimit", "1"]
    process = subprocess.Popen(
        [*TIKVBR, *command, "--ratelimit-unit", "1000", "--remove-schedulers"], stderr=subprocess.PIPE, text=True
    )
    try:
        while not v2.apply(lambda c: bool(c.pd.safe_points.services() and c.pd.schedulers.paused())):
            assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 1
    assert err.endswith("Error: SIGINT stopped the job before it was complete\n")
    assert state(v2) == before
    assert not (tmp_path / "b" / "backupmeta").exists()
    assert not (tmp_path / "b" / "backup.lock").exists()


def test_a_storage_that_does_not_answer_does_not_keep_a_stopped_job(v1: ThreadedCluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        url = f"s3://backups/monday?endpoint={endpoint}&access-key=a&secret-access-key=53c12e7"
        process = subprocess.Popen(
            [*TIKVBR, "backup", "raw", "-u", v1.pd_address, "-s", url], stderr=subprocess.PIPE, text=True
        )
        try:
            silent.accept()[0].close()
            hanging, _ = silent.accept()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        hanging.close()
    assert process.returncode == 1
    assert err.endswith("Error: SIGINT stopped the job before it was complete\n")
    assert "53c12e7" not in err


# --- bad input ---


def state(cluster: ThreadedCluster) -> dict[str, Any]:
    """All that a job might leave changed on a cluster."""
    return cluster.apply(
        lambda c: {
            "regions": [(r.id, r.keys) for r in c.topology.regions],
            "safe points": c.pd.safe_points.services(),
            "paused": sorted(c.pd.schedulers.paused()),
            "settings": c.pd.config.ttl_values(after_s=1),
            "import mode": [engine.import_mode.is_on for engine in c.engines.values()],
            "speed limits": [engine.download_limiter.rate for engine in c.engines.values()],
        }
    )


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with backups, good and bad."""
    root = tmp_path_factory.mktemp("places")
    shutil.copytree(GOLDEN / "v1" / "range", root / "v1")
    shutil.copytree(GOLDEN / "v1" / "aes256", root / "encrypted")
    shutil.copytree(GOLDEN / "v1" / "range", root / "incomplete")
    next((root / "incomplete").rglob("*.sst")).unlink()
    (root / "damaged").mkdir()
    (root / "damaged" / "backupmeta").write_bytes((root / "v1" / "backupmeta").read_bytes()[:100])
    (root / "file").write_text("")
    return root


BACKUP, RESTORE, CHECKSUM = ("backup", "raw"), ("restore", "raw"), ("checksum",)


@pytest.mark.parametrize(
    ("job", "cluster", "storage", "args", "sentence"),
    [
        (BACKUP, "nobody", "new", "", r"no PD leader found within \S+ s, tried 127\.0\.0\.1:1: check the PD endpoints .*"),
        (BACKUP, "https", "new", "", r"--pd: PD endpoint https://\S+ needs TLS but no certificates are given: .*"),
        (BACKUP, "v1", "new", "--format octal", r"--format: 'octal' is not a key format: give hex, raw or escaped"),
        (BACKUP, "v1", "new", "--start 62 --end 61", r"--start '62' is not less than end '61' \(format hex\): .*"),
        (BACKUP, "v1", "new", "--start 6", r"--start '6' is not a key in format hex: .*"),
        (BACKUP, "v1", "new", "--gcttl soon", r"--gcttl 'soon' is not a duration: .*"),
        (BACKUP, "v1", "new", "--ratelimit x", r"--ratelimit is 'x': give a whole number .*"),
        (BACKUP, "v1", "new", "--compression gzip", r"--compression 'gzip' is not known: give lz4, snappy or zstd"),
        (BACKUP, "v1", "new", "--crypter.method aes128-ctr", r"--crypter\.key: aes128-ctr takes a key .*"),
        (BACKUP, "v1", "new", "--log-level loud", r"--log-level 'loud' is not known: .*"),
        (BACKUP, "v1", "new", "--checksum=maybe", r"Invalid value for '--checksum': 'maybe' is neither true nor false"),
        (BACKUP, "v1", "new", "--dst-api-version v1ttl", r"a backup of this V1 cluster cannot be of API version V1TTL: .*"),
        (BACKUP, "v2", "new", "--dst-api-version v1", r".*TiKV converts to V2 only; leave --dst-api-version out, .*"),
        (BACKUP, "v1", "v1", "", r"\S+/v1 holds a backup already: give an empty place, or delete that backup first"),
        (BACKUP, "v1", "file", "", r"cannot write to the directory \S+/file: .*"),
        (BACKUP, "v1", "ftp://h/p", "", r"--storage scheme 'ftp' is not supported: give a directory, local://, .*"),
        (BACKUP, "v1", "s3://b/p?secret-access-key=53c12e7&wrong=1", "", r"--storage: .* has no parameter 'wrong': .*"),
        (RESTORE, "v1", "new", "", r"there is no backup in \S+/new: it has no backupmeta; check the storage URL"),
        (RESTORE, "v1", "damaged", "", r"the backupmeta in \S+/damaged cannot be read: it is damaged, or encrypted; .*"),
        (RESTORE, "v1", "encrypted", "", r"the backupmeta in \S+/encrypted cannot be read: .*"),
        (RESTORE, "v1", "incomplete", "", r"the backup in \S+/incomplete is damaged: \S+\.sst is missing; put back .*"),
        (RESTORE, "v1", "v1", "--start 00", r"the range \[00, .*\) is not inside the backup's range .*"),
        (RESTORE, "v2", "v1", "", r"the backup has API version V1 and the cluster has V2: .* --dst-api-version=v2"),
        (CHECKSUM, "v1", "new", "", r"there is no backup in \S+/new: .*"),
        (CHECKSUM, "v2", "v1", "", r"the backup in \S+/v1 has API version V1 and cannot be compared with a V2 cluster: .*"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_one_sentence_and_changes_nothing(
    job: tuple[str, ...],
    cluster: str,
    storage: str,
    args: str,
    sentence: str,
    v1: ThreadedCluster,
    v2: ThreadedCluster,
    places: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def quickly(**typed: Any) -> Any:
        return dataclasses.replace(read(**typed), connect_timeout_s=0.5)

    read = settings.cluster_options
    monkeypatch.setattr(settings, "cluster_options", quickly)
    pd = {"v1": v1.pd_address, "v2": v2.pd_address, "https": f"https://{v1.pd_address}", "nobody": "127.0.0.1:1"}
    place = storage if "://" in storage else str(places / storage)
    before = (state(v1), state(v2), v1.checksum(), v2.checksum(), files(places))

    assert main([*job, "--pd", pd[cluster], "--storage", place, *args.split()]) == 1

    out, err = capfd.readouterr()
    # a job that has begun says so, a command line that cannot be right does not
    title = f"Raw {job[0]} failed summary"
    assert not out or set(fields(out.rstrip("\n"), title).values()) == {"0"}
    assert re.fullmatch(f"Error: {sentence}\n", err), err
    assert "53c12e7" not in err
    assert (state(v1), state(v2), v1.checksum(), v2.checksum(), files(places)) == before
    assert not (places / "new").exists()
