"""A canary in every flag, URL parameter, variable and file that holds a secret sings nowhere."""

from __future__ import annotations

import base64
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote

import pytest

from airflow_provider_tikvbr.cli.main import main
from airflow_provider_tikvbr.embedded.serving import ServerTls
from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from airflow_provider_tikvbr.rawbr import backup as engine
from tests.storage.conftest import S3Server, azurite_server, s3_server
from tests.support.azurite import ACCOUNT, KEY, Azurite
from tests.support.canaries import Canaries, google_account
from tests.support.certs import Authority
from tests.support.front import fill

__all__ = ["azurite_server", "s3_server"]

TIKVBR = [sys.executable, "-m", "airflow_provider_tikvbr.cli.main"]
SECRETS = {
    "access key": "AKIACANARYACCESSKEY1",
    "secret key": "canary/Secret+Key=of%S3",
    "session token": "canarySessionToken//+==",
    "external id": "canary:external=id",
    "user": "canaryUserOfTheUrl",
    "password": "canaryPasswordOfTheUrl",
    "account key": base64.b64encode(b"canary: key of the account").decode(),
    "signature": "canarySignature/+=",
    "customer key": base64.b64encode(b"canary: key of the customer here").decode(),
    "crypter key": b"canary of key 16".hex(),
    "other crypter key": b"canary of key 2.".hex(),
    "account of google": "canaryOfThePrivateKeysId",
    "client secret": "canaryClientSecret~1",
}
S = {name: quote(secret, safe="") for name, secret in SECRETS.items()}
SAS = f"sv=2022-11-02&sig={S['signature']}"
S3_KEYS = f"access-key={S['access key']}&secret-access-key={S['secret key']}&session-token={S['session token']}"
AES = ["--crypter.method", "aes128-ctr"]
NOBODY = "http://127.0.0.1:1"
JOBS = [["backup", "raw"], ["restore", "raw"], ["checksum"], ["debug", "decode"], ["debug", "encode"]]


@pytest.fixture(scope="module")
def v1(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadedCluster]:
    with ThreadedCluster(data_dir=tmp_path_factory.mktemp("v1")) as cluster:
        fill(cluster)
        yield cluster


class Refusing(BaseHTTPRequestHandler):
    """Lets nobody do anything; the libraries of the clouds would try a server that is not there for half a minute."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def refusing() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory, refusing: str) -> tuple[Path, str]:
    """A credentials file, and the private key in it."""
    document, key = google_account(f"{refusing}/token")
    path = tmp_path_factory.mktemp("google") / "account.json"
    path.write_text(document)
    return path, key


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's credentials; and no wait for those that a machine of a cloud would have."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))


def objects(server: S3Server, bucket: str) -> dict[str, list[bytes]]:
    """Everything that was ever in a bucket, by name."""
    found: dict[str, list[bytes]] = {}
    for version in server.client.list_object_versions(Bucket=bucket).get("Versions", []):
        body = server.client.get_object(Bucket=bucket, Key=version["Key"], VersionId=version["VersionId"])["Body"]
        found.setdefault(version["Key"], []).append(body.read())
    return found


# --- what works ---


@pytest.mark.parametrize("log", ["text", "json", "terminal"])
@pytest.mark.parametrize("given", ["url", "role", "environment"])
def test_s3(
    log: str,
    given: str,
    v1: ThreadedCluster,
    s3_server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bucket = f"canaries-{given}-{log}"
    s3_server.client.create_bucket(Bucket=bucket)
    s3_server.client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    url = f"s3://{bucket}/p?endpoint={s3_server.endpoint}"
    if given == "environment":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRETS["access key"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS["secret key"])
        monkeypatch.setenv("AWS_SESSION_TOKEN", SECRETS["session token"])
    else:
        url += f"&{S3_KEYS}"
    if given == "role":
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", s3_server.endpoint)
        url += f"&role-arn=arn:aws:iam::123456789012:role/backups&external-id={S['external id']}"
    if log == "terminal":
        monkeypatch.setenv("BR_LOG_TO_TERM", "1")
    file = tmp_path / "br.log"
    flags = ["-u", v1.pd_address, "-s", url, "--log-level", "debug", "--log-file", str(file)]
    flags += ["--log-format", "json" if log == "json" else "text", *AES, "--crypter.key", SECRETS["crypter key"]]
    for job in JOBS:
        assert main([*job, *flags]) == 0, capfd.readouterr()
    out, err = capfd.readouterr()
    written = objects(s3_server, bucket)
    assert {"p/backup.lock", "p/backupmeta", "p/backupmeta.json", "p/backupmeta_from_json"} < written.keys()
    assert "arguments" in (out if log == "terminal" else file.read_text())
    everything = [text for texts in written.values() for text in texts]
    assert Canaries(SECRETS).singing(out, err, tmp_path, "\n".join(written), *everything) == []


def test_azure(v1: ThreadedCluster, azurite_server: Azurite, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from datetime import datetime, timedelta, timezone

    from azure.storage.blob import BlobServiceClient, generate_account_sas

    soon = datetime.now(timezone.utc) + timedelta(hours=1)
    sas = generate_account_sas(ACCOUNT, KEY, resource_types="sco", permission="rwdlacx", expiry=soon)
    with BlobServiceClient(azurite_server.endpoint, credential=KEY) as service:
        service.create_container("canaries")
    file = tmp_path / "br.log"
    url = f"azure://canaries/p?endpoint={azurite_server.endpoint}&account-name={ACCOUNT}"
    flags = ["-u", v1.pd_address, "--log-level", "debug", "--log-file", str(file)]
    for job in JOBS[:3]:
        assert main([*job, *flags, "-s", f"{url}&sas-token={quote(sas, safe='')}"]) == 0, capfd.readouterr()
    assert main(["checksum", *flags, "-s", url, "--azblob.account-key", KEY]) == 0, capfd.readouterr()
    signature = dict(part.split("=", 1) for part in sas.split("&"))["sig"]
    canaries = Canaries({"key": KEY, "sas": sas, "signature": signature})
    assert "Raw backup" in file.read_text()
    assert canaries.singing(*capfd.readouterr(), file) == []


@pytest.mark.parametrize("given", ["key", "file"])
def test_a_directory(given: str, v1: ThreadedCluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    key_file = tmp_path / "secrets" / "key"
    key_file.parent.mkdir()
    key_file.write_text(SECRETS["crypter key"] + "\n")
    key = ["--crypter.key", SECRETS["crypter key"]] if given == "key" else ["--crypter.key-file", str(key_file)]
    place, log = tmp_path / "b", tmp_path / "br.log"
    flags = ["-u", v1.pd_address, "-s", f"local://{place}", "-L", "debug", "--log-file", str(log), *AES]
    for job in JOBS:
        assert main([*job, *flags, *key]) == 0, capfd.readouterr()
    for job in JOBS[1:4]:
        assert main([*job, *flags, "--crypter.key", SECRETS["other crypter key"]]) == 1
    told = capfd.readouterr()
    assert "cannot be read with this key" in told.err
    assert Canaries(SECRETS).singing(*told, place, log) == []


@pytest.mark.parametrize("given", ["text", "file", "together"])
def test_tls(given: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    authority = Authority()
    server, client = authority.issue("127.0.0.1", "localhost"), authority.issue("client")
    texts = {"ca": authority.ca.decode(), "cert": client.cert.decode(), "key": client.key.decode()}
    if given == "together":
        texts["cert"] += texts["key"]
    if given == "file":
        (tmp_path / "pem").mkdir()
        for name, text in texts.items():
            (tmp_path / "pem" / name).write_text(text)
            texts[name] = str(tmp_path / "pem" / name)
    place, log = tmp_path / "b", tmp_path / "br.log"
    tls = ServerTls(cert=server.cert, key=server.key, ca=authority.ca)
    with ThreadedCluster(data_dir=tmp_path / "c", tls=tls) as cluster:
        fill(cluster, 20)
        flags = ["-u", cluster.pd_address, "-s", str(place), "-L", "debug", "--log-file", str(log)]
        flags += [f"--{name}={text}" for name, text in texts.items()]
        for job in JOBS[:3]:
            assert main([*job, *flags]) == 0, capfd.readouterr()
    told = capfd.readouterr()
    assert Canaries({"key": client.key.decode()}).singing(*told, place, log) == []
    assert ("key=<hidden>" in log.read_text()) == (given != "file")


# --- what fails ---

GOOD = "-s /nowhere"
FAILING = {
    "s3: nobody there": f"-s 's3://b/p?endpoint={NOBODY}&{S3_KEYS}'",
    "s3: a role": f"-s 's3://b/p?endpoint={NOBODY}&{S3_KEYS}&role-arn=arn:aws:iam::1:role/r&external-id={S['external id']}'",
    "s3: unknown parameter": f"-s 's3://b/p?{S3_KEYS}&secret-acess-key={S['secret key']}'",
    "s3: no equals sign": f"-s 's3://b/p?secret-access-key:{S['secret key']}'",
    "s3: equals sign quoted": f"-s 's3://b/p?secret-access-key%3D{S['secret key']}'",
    "s3: an ampersand": f"-s 's3://b/p?access-key=x&secret-access-key=x&{S['secret key']}'",
    "s3: no question mark": f"-s 's3://b/p&{S3_KEYS}'",
    "s3: a user": f"-s 's3://{S['user']}:{S['password']}@b/p'",
    "s3: no role": f"-s 's3://b/p?{S3_KEYS}&external-id={S['external id']}'",
    "s3: half a pair": f"-s 's3://b/p?secret-access-key={S['secret key']}'",
    "s3: a user of the endpoint": f"-s s3://b/p --s3.endpoint 'http://{S['user']}:{S['password']}@h:1'",
    "s3: of the environment": f"-s 's3://b/p?endpoint={NOBODY}'",
    "misspelt scheme": f"-s 's3:/b/p?{S3_KEYS}'",
    "unknown scheme": f"-s 's4://{S['user']}:{S['password']}@b/p?{S3_KEYS}'",
    "no scheme": f"-s 's3//b/p?{S3_KEYS}'",
    "local with keys": f"-s 'local:///nowhere?{S3_KEYS}'",
    "hdfs with a user": f"-s 'hdfs://{S['user']}:{S['password']}@namenode/p'",
    "pd with a user": f"{GOOD} -u 'http://{S['user']}:{S['password']}@127.0.0.1:1'",
    "azure: refused": f"-s 'azure://c/p?endpoint=@REFUSING@&account-name=acc&account-key={S['account key']}'",
    "azure: by flag": f"-s 'azure://c/p?endpoint=@REFUSING@&account-name=acc' --azblob.account-key '{SECRETS['account key']}'",
    "azure: no name": f"-s 'azure://c/p?account-key={S['account key']}'",
    "azure: sas": f"-s 'azure://c/p?endpoint=@REFUSING@&account-name=acc&sas-token={quote(SAS, safe='')}'",
    "azure: sas unquoted": f"-s 'azure://c/p?account-name=acc&sas-token={SAS}'",
    "azure: customer's key without tls": f"-s 'azure://c/p?endpoint={NOBODY}&account-name=acc&encryption-key="
    f"{S['customer key']}'",
    "azure: of the environment": "-s 'azure://c/p?endpoint=@REFUSING@&account-name=acc'",
    "gcs: refused": "-s 'gcs://b/p?endpoint=@REFUSING@&credentials-file=@GOOGLE@'",
    "gcs: the document": f"-s 'gcs://b/p?endpoint={NOBODY}' --gcs.credentials-file '@DOCUMENT@'",
    "gcs: the document in the url": "-s 'gcs://b/p?credentials-file=@QUOTED@'",
    "gcs: the document in the environment": f"-s 'gcs://b/p?endpoint={NOBODY}'",
    "key: odd": f"{GOOD} {shlex.join(AES)} --crypter.key {SECRETS['crypter key']}0",
    "key: no hex": f"{GOOD} {shlex.join(AES)} --crypter.key x{SECRETS['crypter key']}",
    "key: long": f"{GOOD} --crypter.method aes256-ctr --crypter.key {SECRETS['crypter key']}",
    "key: no method": f"{GOOD} --crypter.key {SECRETS['crypter key']}",
    "key: two": f"{GOOD} {shlex.join(AES)} --crypter.key {SECRETS['crypter key']} --crypter.key-file @KEYFILE@",
    "key: as a file": f"{GOOD} {shlex.join(AES)} --crypter.key-file {SECRETS['crypter key']}",
    "key: misspelt flag": f"{GOOD} --crypter.kye={SECRETS['crypter key']}",
    "key: without its flag": f"{GOOD} {shlex.join(AES)} {SECRETS['crypter key']}",
    "key: bad file": f"{GOOD} --crypter.method aes256-ctr --crypter.key-file @KEYFILE@",
    "pem: no ca": f"{GOOD} --cert '@PEM@' --key '@PEM@'",
    "pem: all of it a key": f"{GOOD} --ca '@PEM@' --cert '@PEM@' --key '@PEM@'",
    "pem: no head": f"{GOOD} --key '@HEADLESS@'",
    "pem: one line": f"{GOOD} --key '@LINE@'",
    "pem: unquoted": f"{GOOD} --key @PEM@",
    "log file is none": f"-s 's3://b/p?{S3_KEYS}' --log-file /dev/null/x",
    "wrong level": f"-s 's3://b/p?{S3_KEYS}' --log-level loud",
}


@pytest.mark.parametrize("log", ["text", "terminal"])
@pytest.mark.parametrize("case", FAILING)
def test_failures(
    case: str,
    log: str,
    v1: ThreadedCluster,
    google: tuple[Path, str],
    refusing: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pem = Authority().issue("client").key.decode()
    (tmp_path / "key").write_text(SECRETS["crypter key"])
    document = google[0].read_text()
    if "environment" in case:
        for name, secret in {
            "AWS_ACCESS_KEY_ID": SECRETS["access key"],
            "AWS_SECRET_ACCESS_KEY": SECRETS["secret key"],
            "AWS_SESSION_TOKEN": SECRETS["session token"],
            "AZURE_STORAGE_KEY": SECRETS["account key"],
            "AZURE_STORAGE_SAS_TOKEN": SAS,
            "AZURE_CLIENT_SECRET": SECRETS["client secret"],
            "GOOGLE_APPLICATION_CREDENTIALS": document,
        }.items():
            monkeypatch.setenv(name, secret)
    if log == "terminal":
        monkeypatch.setenv("BR_LOG_TO_TERM", "1")
    words = {
        "@REFUSING@": refusing,
        "@GOOGLE@": str(google[0]),
        "@DOCUMENT@": document,
        "@QUOTED@": quote(document),
        "@KEYFILE@": str(tmp_path / "key"),
        "@PEM@": pem,
        "@HEADLESS@": "\n".join(pem.splitlines()[1:]),
        "@LINE@": "".join(pem.splitlines()[1:-1]),
    }
    args = FAILING[case]
    for word, text in words.items():
        args = args.replace(word, text)
    file = tmp_path / "br.log"
    more = [] if log == "none" else ["--log-file", str(file), "--log-format", "json" if log == "json" else "text"]
    line = ["-u", v1.pd_address, "--log-level", "debug", *more, *shlex.split(args), "--budget", "1ms"]
    for job in ["backup", "raw"], ["restore", "raw"], ["checksum"]:
        assert main([*job, *line]) == 1
    told = capfd.readouterr()
    assert "Error: " in told.err
    assert "Traceback" not in told.err
    canaries = Canaries({**SECRETS, "private key": pem, "line": words["@LINE@"], "google": google[1]})
    assert canaries.singing(*told, *([file] if file.exists() else [])) == []


def test_refused_credentials(
    v1: ThreadedCluster, azurite_server: Azurite, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "br.log"
    for secret in (f"account-key={S['account key']}", f"sas-token={quote(SAS, safe='')}"):
        url = f"azure://canaries/p?endpoint={azurite_server.endpoint}&account-name={ACCOUNT}&{secret}"
        for job in JOBS[:3]:
            assert main([*job, "-u", v1.pd_address, "-s", url, "-L", "debug", "--log-file", str(file)]) == 1
    told = capfd.readouterr()
    assert "refuses access" in told.err
    assert Canaries(SECRETS).singing(*told, file) == []


def test_a_crash(
    v1: ThreadedCluster, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("this is how a bug looks")

    monkeypatch.setattr(engine, "backup", crash)
    file = tmp_path / "br.log"
    url = f"s3://b/p?endpoint={NOBODY}&{S3_KEYS}"
    line = ["-u", v1.pd_address, "-s", url, "-L", "debug", "--log-file", str(file), *AES]
    assert main(["backup", "raw", *line, "--crypter.key", SECRETS["crypter key"]]) == 1
    told = capfd.readouterr()
    assert "Traceback" in told.err
    assert "this is how a bug looks" in file.read_text()
    assert Canaries(SECRETS).singing(*told, file) == []


def test_a_process_of_its_own(v1: ThreadedCluster) -> None:
    """Nothing of it comes from a library's warnings or from Python's end either."""
    url = f"s3://b/p?endpoint={NOBODY}&{S3_KEYS}"
    command = [sys.executable, "-X", "dev", *TIKVBR[1:], "backup", "raw", "-u", v1.pd_address, "-s", url, "-L", "debug"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert Canaries(SECRETS).singing(done.stdout, done.stderr) == []


def test_the_canaries_can_be_heard(tmp_path: Path) -> None:
    canaries = Canaries({"token": "canary/+1"})
    (tmp_path / "canary%2F%2B1").write_text(json.dumps({"a": base64.b64encode(b"canary/+1").decode()}))
    assert len(canaries.singing(tmp_path, b"CANARY/+1", b"canary/+1".hex())) == 4
    assert Canaries({"key": "ca" * 16}).singing(bytes.fromhex("ca" * 16)) != []
