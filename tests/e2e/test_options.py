"""Every option of backup, restore and checksum, by each face: its effect on the wire, on a file or on what is said.

Each row tells what is seen with the option, and what without it, so a face that drops an option is found out.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from airflow_provider_tikvbr.cli.main import tikvbr
from airflow_provider_tikvbr.embedded.serving import ServerTls
from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from airflow_provider_tikvbr.proto import metapb_pb2, methods, pdpb_pb2
from airflow_provider_tikvbr.rawbr.checkpoint import Checkpoint
from airflow_provider_tikvbr.rawbr.checkpoint_format import JobIdentity
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.tikv.keys import ApiVersion, UserKey
from tests.storage.conftest import ACCESS, SECRET, S3Server
from tests.support.certs import Authority
from tests.support.faces import COMMANDS, FACES, JOBS, OPERATORS, READERS, STORAGE_FLAGS, Seen, by_engine, flag, run
from tests.support.front import connect

ANY: Any = object()
KEY = "00112233445566778899aabbccddeeff" * 2
MIB = 1 << 20
FIRST, LAST = b"k/120", b"k/280"
END = b"\xff"  # no end, after all others


def first(method: methods.Method[Any, Any], attribute: str) -> Callable[[Seen], Any]:
    """A field of the first request of a method; None if there is none."""

    def see(seen: Seen) -> Any:
        found = seen.of(method)
        value: Any = found[0] if found else None
        for name in attribute.split("."):
            value = getattr(value, name, None)
        return value

    return see


def asked(attribute: str) -> Callable[[Seen], Any]:
    """A field of the first Backup request."""
    return first(methods.BACKUP, attribute)


def counted(method: methods.Method[Any, Any]) -> Callable[[Seen], bool]:
    return lambda seen: bool(seen.of(method))


def at_once(method: methods.Method[Any, Any]) -> Callable[[Seen], bool]:
    """Whether more than one request of a method was under way at a time."""
    return lambda seen: seen.at_once[method.path] > 1


def channel(name: str) -> Callable[[Seen], set[Any]]:
    return lambda seen: {each[name] for each in seen.channels}


def ok(seen: Seen) -> bool:
    return seen.ok


def tells_key(seen: Seen) -> bool:
    return FIRST.hex() in seen.log + seen.text


def logs(text: str) -> Callable[[Seen], bool]:
    return lambda seen: text in seen.log


def downloads(seen: Seen) -> tuple[bytes, bytes]:
    """The lowest start and the highest end of the ranges that were downloaded."""
    ranges = [request.sst.range for request in seen.of(methods.IMPORT_DOWNLOAD)]
    return min((each.start for each in ranges), default=b"none"), max(
        (each.end or END for each in ranges), default=b"none"
    )


def counted_keys(seen: Seen) -> tuple[bytes, bytes]:
    """The lowest start and the highest end of the ranges that were counted."""
    ranges = [request.ranges[0] for request in seen.of(methods.KV_RAW_CHECKSUM)]
    return min((r.start_key for r in ranges), default=b"none"), max((r.end_key or END for r in ranges), default=b"none")


def split_keys(seen: Seen) -> list[int]:
    """How many keys the split requests have, biggest first."""
    return sorted((len(request.split_keys) for request in seen.of(methods.KV_SPLIT_REGION)), reverse=True)


def last_ttl(seen: Seen) -> int:
    return int(seen.of(methods.PD_UPDATE_SERVICE_GC_SAFE_POINT)[-1].TTL)


def age_s(seen: Seen) -> int:
    """How long before the backup's first question for the time its safepoint lies, in tens of seconds."""
    ts = int(seen.of(methods.PD_UPDATE_SERVICE_GC_SAFE_POINT)[0].safe_point) >> 18
    return round((seen.started * 1000 - ts) / 10_000)


@dataclass(frozen=True)
class Row:
    """One option of one job.

    :param wanted: what is seen with the option.
    :param usual: what is seen without it; ANY where nobody can wait for it.
    :param along: other options, in both runs.
    :param at: the cluster, or the other circumstances.
    :param slow: a method whose calls take a moment, so that those under way at a time can be counted.
    """

    job: str
    option: str
    value: Any
    see: Callable[[Seen], Any]
    wanted: Any
    usual: Any
    along: Mapping[str, Any] = field(default_factory=dict)
    at: str = "v1"
    slow: tuple[methods.Method[Any, Any], float] | None = None

    def __str__(self) -> str:
        return f"{self.job}-{self.option}-{str(self.value)[:12]}"


AES = {"crypter_method": "aes256-ctr"}
RAW = {"format": "raw"}

ROWS = [
    # --- backup ---
    Row("backup", "start", FIRST.hex(), asked("start_key"), FIRST, b""),
    Row("backup", "end", LAST.hex(), asked("end_key"), LAST, b""),
    Row("backup", "format", "raw", asked("start_key"), b"6b2f", b"k/", along={"start": "6b2f"}),
    Row("backup", "format", "Escaped", asked("start_key"), b"\n", None, along={"start": r"\n"}),
    Row("backup", "dst_api_version", "v2", asked("dst_api_version"), 2, 0),
    Row("backup", "compression", "lz4", asked("compression_type"), 1, 3),
    Row("backup", "compression", "snappy", asked("compression_type"), 2, 3),
    Row("backup", "compression_level", 5, asked("compression_level"), 5, 0),
    Row("backup", "ratelimit", 7, asked("rate_limit"), 7 * MIB, 0),
    Row("backup", "ratelimit_unit", 1000, asked("rate_limit"), 7000, 7 * MIB, along={"ratelimit": 7}),
    Row("backup", "concurrency", 3, asked("concurrency"), 3, 0),
    Row("backup", "crypter_method", "AES256-CTR", asked("cipher_info.cipher_type"), 4, None, along={"crypter_key": KEY}),
    Row("backup", "crypter_key", KEY, asked("cipher_info.cipher_key"), bytes.fromhex(KEY), None, along=AES),
    Row("backup", "crypter_key_file", "<key file>", asked("cipher_info.cipher_key"), bytes.fromhex(KEY), None, along=AES),
    Row("backup", "checksum", True, counted(methods.KV_RAW_CHECKSUM), True, False),
    Row("backup", "checksum_concurrency", 1, at_once(methods.KV_RAW_CHECKSUM), False, True,
        along={"checksum": True}, slow=(methods.KV_RAW_CHECKSUM, 0.05)),
    Row("backup", "gcttl", "10m", first(methods.PD_UPDATE_SERVICE_GC_SAFE_POINT, "TTL"), 600, 300, at="v2"),
    Row("backup", "gcttl_from", "end", lambda seen: last_ttl(seen) == 300, True, False,
        at="v2", slow=(methods.BACKUP, 1.2)),
    Row("backup", "safe_interval", "20m", age_s, 120, 6, at="v2"),
    Row("backup", "remove_schedulers", True,
        lambda seen: any(m == "POST" and "/schedulers/" in p for m, p in seen.http), True, False),
    Row("backup", "send_credentials_to_tikv", False, asked("storage_backend.s3.secret_access_key"), "", SECRET, at="s3"),
    Row("backup", "no_credentials", True, asked("storage_backend.s3.secret_access_key"), "", SECRET, at="s3"),
    Row("backup", "s3_region", "eu-west-1", asked("storage_backend.s3.region"), "eu-west-1", "us-east-1", at="s3"),
    Row("backup", "s3_storage_class", "STANDARD_IA", asked("storage_backend.s3.storage_class"), "STANDARD_IA", "", at="s3"),
    Row("backup", "s3_sse", "AES256", asked("storage_backend.s3.sse"), "AES256", "", at="s3"),
    Row("backup", "s3_sse_kms_key_id", "k1", asked("storage_backend.s3.sse_kms_key_id"), "k1", "",
        at="s3", along={"s3_sse": "aws:kms"}),
    Row("backup", "s3_acl", "bucket-owner-read", asked("storage_backend.s3.acl"), "bucket-owner-read", "", at="s3"),
    Row("backup", "s3_provider", "ceph", asked("storage_backend.s3.provider"), "ceph", "", at="s3"),
    Row("backup", "budget", "1s", ok, False, ANY, at="down"),
    Row("backup", "resume", False, ok, True, False, at="unfinished"),
    # --- restore ---
    Row("restore", "start", FIRST.hex(), lambda seen: downloads(seen)[0], FIRST, b""),
    Row("restore", "end", LAST.hex(), lambda seen: downloads(seen)[1], LAST, END),
    Row("restore", "format", "raw", lambda seen: downloads(seen)[0], FIRST, b"none", along={"start": FIRST.decode()}),
    Row("restore", "ratelimit", 7, first(methods.IMPORT_SET_DOWNLOAD_SPEED_LIMIT, "speed_limit"), 7 * MIB, 0),
    Row("restore", "ratelimit_unit", 1000, first(methods.IMPORT_SET_DOWNLOAD_SPEED_LIMIT, "speed_limit"), 7000, 7 * MIB,
        along={"ratelimit": 7}),
    Row("restore", "concurrency", 1, at_once(methods.IMPORT_DOWNLOAD), False, True, slow=(methods.IMPORT_DOWNLOAD, 0.05)),
    Row("restore", "crypter_method", "aes256-ctr", ok, True, False, along={"crypter_key": KEY}, at="encrypted"),
    Row("restore", "crypter_key", KEY, ok, True, False, along=AES, at="encrypted"),
    Row("restore", "crypter_key_file", "<key file>", ok, True, False, along=AES, at="encrypted"),
    Row("restore", "checksum", True, counted(methods.KV_RAW_CHECKSUM), True, False),
    Row("restore", "checksum_concurrency", 1, at_once(methods.KV_RAW_CHECKSUM), False, True,
        along={"checksum": True}, slow=(methods.KV_RAW_CHECKSUM, 0.05)),
    Row("restore", "online", True, counted(methods.IMPORT_SWITCH_MODE), False, True),
    Row("restore", "merge_region_size_bytes", 1, lambda seen: sum(split_keys(seen)), 3, 0, at="fresh"),
    Row("restore", "merge_region_key_count", 1, lambda seen: sum(split_keys(seen)), 3, 0, at="fresh"),
    Row("restore", "split_region_max_keys", 1, lambda seen: max(split_keys(seen)), 1, 3, at="fresh",
        along={"merge_region_key_count": 1}),
    Row("restore", "switch_mode_interval", "1s", lambda seen: len(seen.of(methods.IMPORT_SWITCH_MODE)) > 4, True, False,
        slow=(methods.IMPORT_DOWNLOAD, 1.5)),
    Row("restore", "send_credentials_to_tikv", False,
        first(methods.IMPORT_DOWNLOAD, "storage_backend.s3.secret_access_key"), "", SECRET, at="s3"),
    Row("restore", "no_credentials", True,
        first(methods.IMPORT_DOWNLOAD, "storage_backend.s3.secret_access_key"), "", SECRET, at="s3"),
    Row("restore", "budget", "1s", ok, False, ANY, at="down"),
    Row("restore", "resume", False, ok, True, False, at="unfinished"),
    Row("restore", "checkpoint_storage", "<place>", ok, True, False, at="unfinished"),
    Row("restore", "verify_files", "off", counted(methods.IMPORT_DOWNLOAD), True, False, along={"budget": "1s"}, at="missing"),
    Row("restore", "verify_files", "SHA256", counted(methods.IMPORT_DOWNLOAD), False, True, along={"budget": "1s"}, at="damaged"),
    # --- checksum ---
    Row("checksum", "start", FIRST.hex(), lambda seen: counted_keys(seen)[0], FIRST, b""),
    Row("checksum", "end", LAST.hex(), lambda seen: counted_keys(seen)[1], LAST, END),
    Row("checksum", "format", "raw", lambda seen: counted_keys(seen)[0], FIRST, b"none",
        along={"start": FIRST.decode()}),
    Row("checksum", "crypter_method", "aes256-ctr", ok, True, False, along={"crypter_key": KEY}, at="encrypted"),
    Row("checksum", "crypter_key", KEY, ok, True, False, along=AES, at="encrypted"),
    Row("checksum", "crypter_key_file", "<key file>", ok, True, False, along=AES, at="encrypted"),
    Row("checksum", "checksum_concurrency", 1, at_once(methods.KV_RAW_CHECKSUM), False, True, slow=(methods.KV_RAW_CHECKSUM, 0.05)),
    Row("checksum", "budget", "1s", ok, False, ANY, at="down"),
    # --- all three ---
    Row("backup", "redact_log", True, tells_key, False, True, along={"start": FIRST.hex(), "budget": "1s"}, at="down"),
    Row("restore", "redact_log", True, tells_key, False, True, along={"start": FIRST.hex()}, at="part"),
    Row("checksum", "redact_log", True, tells_key, False, True, along={"start": FIRST.hex()}, at="part"),
    *(
        row
        for job in JOBS
        for row in (
            Row(job, "ca", "<ca>", ok, True, False, at="tls"),
            Row(job, "cert", "<cert>", ok, True, False, at="mutual", along={"ca": "<ca>", "key": "<key>"}),
            Row(job, "key", "<key>", ok, True, False, at="mutual", along={"ca": "<ca>", "cert": "<cert>"}),
            Row(job, "check_requirements", False, ok, True, False, at="tiflash"),
            Row(job, "grpc_keepalive_time", "21s", channel("grpc.keepalive_time_ms"), {21_000}, {10_000}),
            Row(job, "grpc_keepalive_timeout", "7s", channel("grpc.keepalive_timeout_ms"), {7_000}, {3_000}),
            Row(job, "grpc_max_recv_msg_size", 5 * MIB, channel("grpc.max_receive_message_length"), {5 * MIB}, {-1}),
            Row(job, "keyspace", "tenant", counted(methods.KEYSPACE_LOAD), True, False, at="keyspace"),
            Row(job, "keyspace", 5, counted(methods.KEYSPACE_LOAD_BY_ID), True, False, at="keyspace"),
            Row(job, "address_map", "<address map>", ok, True, ANY, at="mapped"),
            Row(job, "log_file", "<log>", lambda seen: bool(seen.log), True, False),
            Row(job, "log_level", "error", logs(" [INFO] "), False, True, along={"log_file": "<log>"}),
            Row(job, "log_format", "json", logs('"level":"INFO"'), True, False, along={"log_file": "<log>"}),
        )
    ),
]  # fmt: skip


# --- where the rows are tried ---

# Values that look alike would cancel each other out in a checksum.
PAIRS = [(UserKey(b"k/%03d" % at), random.Random(at).randbytes(20)) for at in range(400)]
BORDERS = [UserKey(b"k/100"), UserKey(b"k/200"), UserKey(b"k/300")]
FAILS: Mapping[str, methods.Method[Any, Any]] = {
    "backup": methods.BACKUP,
    "restore": methods.IMPORT_DOWNLOAD,
    "checksum": methods.KV_RAW_CHECKSUM,
}


class World:
    """The clusters and backups of the rows; each is made when a row asks for it first."""

    def __init__(self, folder: Path, s3: S3Server) -> None:
        self.folder = folder
        self.s3 = s3
        self._stack = ExitStack()
        self._clusters: dict[str, ThreadedCluster] = {}
        self._runs = 0
        authority = Authority()
        server, client = authority.issue("127.0.0.1", "localhost"), authority.issue("client")
        self.tls = ServerTls(cert=server.cert, key=server.key)
        self.mutual = ServerTls(cert=server.cert, key=server.key, ca=authority.ca)
        files = {"ca": authority.ca, "cert": client.cert, "key": client.key, "key file": KEY.encode()}
        for name, data in files.items():
            (folder / name).write_bytes(data)
        self.values = {f"<{name}>": str(folder / name) for name in files}
        backups: dict[str, dict[str, Any]] = {
            "plain": {},
            "encrypted": {**AES, "crypter_key": KEY},
            "part": {"end": b"k/200".hex()},
        }
        for name, options in backups.items():
            self._back_up(self.cluster("v1"), f"local://{folder / name}", options)
        self._back_up(self.cluster("v2"), f"local://{folder / 'v2 backup'}", {})

    def _back_up(self, cluster: ThreadedCluster, storage: str, options: dict[str, Any]) -> None:
        by_engine("backup", cluster.pd_address, storage, options, Seen())

    def _begin(self, place: Path, job: str) -> None:
        """Leave what a job leaves that was begun with other options and broken off."""

        async def begin() -> None:
            cluster = self.cluster("v1").topology.cluster_id
            directory = "backup.checkpoint" if job == "backup" else f"restore.checkpoint/{cluster}-0"
            identity = JobIdentity(kind=job, owner="", options={"start": "another"})
            async with open_storage(f"local://{place}") as storage:
                await storage.prepare()
                await Checkpoint.open(storage, directory=directory, identity=identity)

        asyncio.run(begin())

    def close(self) -> None:
        self._stack.close()

    def cluster(self, at: str) -> ThreadedCluster:
        kind = at if at in ("v2", "tls", "mutual", "keyspace", "mapped", "fresh") else "v1"
        if kind in self._clusters:
            return self._clusters[kind]
        version = ApiVersion.V2 if kind in ("v2", "keyspace") else ApiVersion.V1
        special: dict[str, dict[str, Any]] = {
            "tls": {"tls": self.tls},
            "mutual": {"tls": self.mutual},
            "keyspace": {"keyspaces": {"tenant": 5}},
            "mapped": {"domain": "tikv.example"},
            "fresh": {"stores": 1},
        }
        settings = special.get(kind, {})
        self._runs += 1
        data_dir = self.folder / f"{kind}-{self._runs}"
        if kind != "fresh":
            settings = {"stores": 2, "split_keys": BORDERS, **settings}
        cluster = self._stack.enter_context(ThreadedCluster(data_dir=data_dir, api_version=version, **settings))
        if kind != "fresh":
            cluster.put(PAIRS)
            self._clusters[kind] = cluster
        return cluster

    def storage(self, row: Row) -> str:
        """Where the job of a row backs up to, or finds a backup."""
        self._runs += 1
        if row.at == "s3":
            # Open to all, for the one that brings no credentials.
            acl = "&acl=public-read" if row.job != "backup" else ""
            url = self.s3.url(f"options-{row.job}", f"of/{self._runs}", more=acl)
            self.s3.client.create_bucket(Bucket=f"options-{row.job}", ACL="public-read-write")
            if row.job != "backup":
                self._back_up(self.cluster("v1"), url, {})
            return url
        if row.job == "backup":
            place = self.folder / f"backup {self._runs}"
            if row.at == "unfinished":
                self._begin(place, "backup")
            return f"local://{place}"
        if row.at in ("unfinished", "missing", "damaged"):
            place = self.folder / f"{row.at} {self._runs}"
            # Other rows restore from there too, and some are refused half-way.
            shutil.copytree(self.folder / "plain", place, ignore=shutil.ignore_patterns("restore.checkpoint"))
            sst = max(place.rglob("*.sst"), key=lambda path: path.stat().st_size)
            if row.at == "missing":
                sst.unlink()
            elif row.at == "damaged":
                data = bytearray(sst.read_bytes())
                data[len(data) // 4] ^= 1
                sst.write_bytes(data)
            else:
                self._begin(place, "restore")
            return f"local://{place}"
        name = {"encrypted": "encrypted", "part": "part", "keyspace": "v2 backup"}.get(row.at, "plain")
        return f"local://{self.folder / name}"

    def options(self, cluster: ThreadedCluster, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options with what stands for files and addresses filled in."""
        address_map = ",".join(f"{told}={reached}" for told, reached in cluster.cluster.address_map.items())
        place = f"local://{self.folder / f'kept {self._runs}'}"
        values = {
            **self.values,
            "<place>": place,
            "<log>": str(self.folder / f"{self._runs}.log"),
            "<address map>": address_map,
        }
        return {name: values.get(value, value) if isinstance(value, str) else value for name, value in given.items()}

    @contextmanager
    def trouble(self, row: Row, cluster: ThreadedCluster) -> Iterator[None]:
        """What a row wants the cluster to do meanwhile."""
        points = cluster.faults
        if row.at == "down":
            points.fail(FAILS[row.job], code=grpc.StatusCode.UNAVAILABLE, times=None)
        if row.slow:
            points.fail(row.slow[0], delay_s=row.slow[1], times=None)
        if row.at == "tiflash":
            stores = [store.message() for store in cluster.topology.stores.values()]
            tiflash = metapb_pb2.Store(id=99, address="127.0.0.1:1", version=stores[0].version)
            tiflash.labels.add(key="engine", value="tiflash")
            header = pdpb_pb2.ResponseHeader(cluster_id=cluster.topology.cluster_id)
            answer = pdpb_pb2.GetAllStoresResponse(header=header, stores=[*stores, tiflash])
            points.fail(methods.PD_GET_ALL_STORES, response=answer, times=None)
        try:
            yield
        finally:
            points.clear()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator[World]:
    found = World(tmp_path_factory.mktemp("world"), s3_server)
    yield found
    found.close()


@pytest.fixture(scope="module")
def usual() -> dict[str, Any]:
    """What was seen without an option, for the rows that have the rest in common."""
    return {}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of the machine's own, for the stores that are sent none."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


def see(face: str, row: Row, extra: Mapping[str, Any], world: World, monkeypatch: pytest.MonkeyPatch) -> Seen:
    cluster = world.cluster(row.at)
    storage = world.storage(row)
    connect(monkeypatch, "tikv_default", cluster)
    with world.trouble(row, cluster):
        options = world.options(cluster, {**row.along, **extra})
        return run(face, row.job, cluster.pd_address, storage, options, monkeypatch)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_each_option_has_its_effect_by_each_face(
    face: str, row: Row, world: World, usual: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if row.usual is not ANY:
        name = f"{face} {row.job} {row.at} {row.along} {row.slow}"
        if name not in usual:
            usual[name] = see(face, row, {}, world, monkeypatch)
        assert row.see(usual[name]) == row.usual, usual[name].text
    found = see(face, row, {row.option: row.value}, world, monkeypatch)
    assert row.see(found) == row.wanted, found.text


# --- that no option is left out ---

# These have tests of their own: what a sensor does when it has compared, where an operator finds connections, and deferral.
BY_OPERATORS_ONLY = {
    *("tikv_conn_id", "storage_conn_id", "crypter_key_conn_id", "on_mismatch", "on_missing", "storage", "deferrable"),
}
# What the engine is told of who runs it.
OF_THE_HOST = {"owner", "retry_in_s"}
# A comparison sends nothing to the stores that would carry credentials: they are this process's own business.
NOT_SENT = {"checksum": {"send_credentials_to_tikv", "no_credentials"}}
# What tikv-br takes with this command as well, where it means nothing.
MEANINGLESS = {"checksum": {"checksum", "ratelimit"}}


def rows_of(job: str) -> set[str]:
    return {row.option for row in ROWS if row.job == job}


@pytest.mark.parametrize("job", JOBS)
def test_every_parameter_of_the_operators_has_a_row(job: str) -> None:
    parameters = set(inspect.signature(OPERATORS[job].__init__).parameters) - {"self", "kwargs"}
    rows = {name for name in rows_of(job) if not name.startswith(STORAGE_FLAGS)}
    assert parameters - BY_OPERATORS_ONLY == rows | NOT_SENT.get(job, set())


@pytest.mark.parametrize("job", JOBS)
def test_every_option_of_the_engine_has_a_row(job: str) -> None:
    read = set(inspect.signature(READERS[job]).parameters) - OF_THE_HOST
    assert read <= rows_of(job)


@pytest.mark.parametrize("job", JOBS)
def test_every_flag_that_people_see_has_a_row(job: str) -> None:
    command: Any = tikvbr
    for word in COMMANDS[job]:
        command = command.commands[word]
    every = {max(param.opts, key=len) for param in command.params}
    seen = {max(param.opts, key=len) for param in command.params if param.expose_value and not param.hidden}
    rows = {flag(name) for name in rows_of(job)}
    assert rows <= every
    rest = {name for name in seen if not name.startswith(("--s3.", "--gcs.", "--azblob."))} - rows
    without_effect = NOT_SENT.get(job, set()) | MEANINGLESS.get(job, set())
    assert rest <= {"--pd", "--storage", *map(flag, without_effect)}
