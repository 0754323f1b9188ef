"""The command under signals: whatever it is doing, it puts the cluster back, and the same command goes on."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_tikvbr.embedded.fault_rules import Kind, Rule
from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from airflow_provider_tikvbr.proto import brpb_pb2, methods
from airflow_provider_tikvbr.storage.sst import SstReader
from airflow_provider_tikvbr.tikv.keys import ApiVersion, KeyCodec, UserKey
from airflow_provider_tikvbr.tikv.values import decode_value

# What a job that is stopped has time for, and what a loaded machine adds.
STOP_S = 5.0
GRACE_S = 5.0
LIMIT_S = 60.0
RND = random.Random(7)
PAIRS = {UserKey(b"key/%04d" % at): RND.randbytes(30) for at in range(400)}
SPLITS = [UserKey(b"key/%04d" % at) for at in range(50, 400, 50)]

# The command, in a process of its own: one that saves often, and whose storage may hold a file back.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
from airflow_provider_tikvbr.rawbr import checkpoint
from airflow_provider_tikvbr.storage.local import LocalStorage
save_s, held, seconds, marker = float(sys.argv[1]), sys.argv[2], float(sys.argv[3]), Path(sys.argv[4])
checkpoint.SAVE_INTERVAL_S = save_s

def slowly(call):
    def slow(self, name, *rest, **more):
        if name == held:
            marker.touch()
            time.sleep(seconds)
        return call(self, name, *rest, **more)

    return slow

LocalStorage._put, LocalStorage._read = slowly(LocalStorage._put), slowly(LocalStorage._read)
from airflow_provider_tikvbr.cli import main
sys.argv = ["tikvbr", *sys.argv[5:]]
sys.exit(main.main())
"""


@dataclass
class Place:
    """Where a test's files lie, and the cluster it works with."""

    cluster: ThreadedCluster
    root: Path

    @property
    def backup(self) -> Path:
        return self.root / "backup"

    @property
    def marker(self) -> Path:
        return self.root / "marker"

    def job(self, what: str) -> list[str]:
        words = [what, "raw", "-u", self.cluster.pd_address, "-s", str(self.backup), "--checksum", "--budget", "1m"]
        more = ["--remove-schedulers"] if what == "backup" else ["--merge-region-key-count", "50"]
        return [*words, "--ratelimit", "100", *more]

    def start(self, what: str, *, save_s: float = 30.0, held: str = "", held_s: float = 0.0) -> subprocess.Popen[str]:
        script = [SCRIPT, str(save_s), held, str(held_s), str(self.marker)]
        command = [sys.executable, "-c", *script, *self.job(what)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def names(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()}

    def is_locked(self) -> bool:
        return any(name.endswith(".lock") for name in self.names())

    def state(self) -> dict[str, Any]:
        """All that a job changes of a cluster for its time."""
        return self.cluster.apply(
            lambda c: {
                "safe points": c.pd.safe_points.services(),
                "paused": sorted(c.pd.schedulers.paused()),
                "settings": c.pd.config.ttl_values(after_s=1),
                "import mode": [each for each, on in c.import_modes().items() if on],
                "speed limits": {each: rate for each, rate in c.download_limits().items() if rate},
            }
        )


UNCHANGED: dict[str, Any] = {
    "safe points": {}, "paused": [], "settings": {}, "import mode": [], "speed limits": {}
}  # fmt: skip


@contextlib.contextmanager
def ending(process: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(happens: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not happens():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it has not come so far"
        time.sleep(0.01)


def goes_on(place: Place, what: str) -> str:
    """The same command again; what it logs."""
    with ending(process := place.start(what)):
        out, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, err
    assert f"Raw {what} success summary" in out
    return err


def backed_up(place: Path) -> dict[UserKey, bytes]:
    """The pairs of a backup, read from its files."""
    meta = brpb_pb2.BackupMeta.FromString((place / "backupmeta").read_bytes())
    codec = KeyCodec(ApiVersion.V2)
    found: dict[UserKey, bytes] = {}
    for file in meta.files:
        for engine_key, data in SstReader((place / file.name).read_bytes()):
            api_key, _ = codec.split_engine_key(engine_key)
            user_key = UserKey(api_key.removeprefix(codec.prefix))
            assert user_key not in found
            found[user_key] = bytes(decode_value(codec.api_version, data).value)
    return found


def assert_done(place: Place, what: str) -> None:
    if what == "backup":
        assert backed_up(place.backup) == PAIRS
        # The hold on GC is left for whoever follows the changes.
        left = place.state()
        assert len(left.pop("safe points")) == 1
        assert left == {name: value for name, value in UNCHANGED.items() if name != "safe points"}
    else:
        assert {pair.key: pair.value for pair in place.cluster.pairs()} == PAIRS
        assert place.state() == UNCHANGED
    others = {name for name in place.names() if "/backup/" in f"/{name}" and not name.endswith(".sst")}
    assert others == {"backup/backupmeta"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadedCluster]:
    data = tmp_path_factory.mktemp("source")
    with ThreadedCluster(data_dir=data, api_version=ApiVersion.V2, stores=2, split_keys=SPLITS) as cluster:
        cluster.put(PAIRS.items())
        yield cluster


@pytest.fixture(scope="module")
def finished(source: ThreadedCluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of the source."""
    place = Place(source, tmp_path_factory.mktemp("finished"))
    goes_on(place, "backup")
    _forget_safepoints(source)
    return place.backup


def _forget_safepoints(cluster: ThreadedCluster) -> None:
    cluster.apply(lambda c: [c.pd.safe_points.update_service(name, 0, 0) for name in c.pd.safe_points.services()])


@pytest.fixture
def place(request: pytest.FixtureRequest, source: ThreadedCluster, tmp_path: Path) -> Iterator[Place]:
    """The source with an empty place, or for a restore an empty cluster with a backup."""
    if request.param == "backup":
        yield Place(source, tmp_path)
        source.faults.clear()
        _forget_safepoints(source)
        return
    finished: Path = request.getfixturevalue("finished")
    with ThreadedCluster(data_dir=tmp_path / "data", api_version=ApiVersion.V2, stores=2) as cluster:
        root = tmp_path / "root"
        root.mkdir()
        subprocess.run(["cp", "-r", str(finished), str(root / "backup")], check=True)
        yield Place(cluster, root)


@dataclass(frozen=True)
class Phase:
    """Where a job is held.

    :param rule: how it is held; None if the storage holds it.
    :param sign: the signal.
    :param said: pattern for what the same command says when it goes on; empty if it starts over.
    :param held: the file that the storage holds back, for how many seconds.
    :param hits: how many have to be held by the rule.
    """

    rule: Rule | None
    sign: signal.Signals
    said: str = ""
    held: tuple[str, float] = ("", 0.0)
    hits: int = 1


def hung(method: Any, **more: Any) -> Rule:
    return Rule(kind=Kind.HANG, method=method, **more)


def answered_late(method: Any, **more: Any) -> Rule:
    return Rule(kind=Kind.SLOW, method=method, delay_s=LIMIT_S, times=1, **more)


# Whoever is slow to take backupmeta back has it taken for done.
WRITTEN = "8 of about 8 ranges|only its last steps are left"
HUP, INT, TERM = signal.SIGHUP, signal.SIGINT, signal.SIGTERM
BACKUP = {
    "connecting": lambda: Phase(hung(methods.PD_GET_MEMBERS), TERM),
    "looking at the stores": lambda: Phase(hung("GET /config"), INT),
    "the hold on GC": lambda: Phase(answered_late(methods.PD_UPDATE_SERVICE_GC_SAFE_POINT), HUP),
    "pausing schedulers": lambda: Phase(answered_late("POST /pd/api/v1/schedulers/*"), INT),
    "a lock that hangs": lambda: Phase(None, HUP, held=("backup.lock", LIMIT_S)),
    "a checkpoint that hangs": lambda: Phase(None, TERM, held=("backup.checkpoint/head.json", LIMIT_S)),
    "running": lambda: Phase(
        Rule(kind=Kind.SILENT, method=methods.BACKUP, messages=2), TERM, "4 of about 8 ranges", hits=2
    ),
    "a slow backupmeta": lambda: Phase(None, HUP, WRITTEN, ("backupmeta", 0.2)),
    "a backupmeta that hangs": lambda: Phase(None, INT, WRITTEN, ("backupmeta", LIMIT_S)),
    "checksum": lambda: Phase(hung(methods.KV_RAW_CHECKSUM), INT, "only its last steps are left"),
}
RESTORE = {
    "a backup that hangs": lambda: Phase(None, TERM, held=("backupmeta", LIMIT_S)),
    "looking at the target": lambda: Phase(hung(methods.PD_SCAN_REGIONS), HUP),
    "split": lambda: Phase(hung(methods.KV_SPLIT_REGION), INT, "going on"),
    "import mode": lambda: Phase(answered_late(methods.IMPORT_SWITCH_MODE, store_id=1), TERM, "going on"),
    "download": lambda: Phase(hung(methods.IMPORT_DOWNLOAD, after=5), INT, "going on"),
    "ingest": lambda: Phase(
        hung(methods.IMPORT_MULTI_INGEST, after=3), TERM, "3 of 8 files are restored already", hits=5
    ),
    "checksum": lambda: Phase(hung(methods.KV_RAW_CHECKSUM), HUP, "8 of 8 files are restored already"),
}
CASES = [
    pytest.param(what, phase, id=f"{what}: {name}")
    for what, phases in (("backup", BACKUP), ("restore", RESTORE))
    for name, phase in phases.items()
]


@pytest.mark.parametrize(("place", "phase"), CASES, indirect=["place"])
def test_a_signal_stops_a_job_and_the_same_command_goes_on(
    place: Place, phase: Any, request: pytest.FixtureRequest
) -> None:
    what = request.node.callspec.params["place"]
    at: Phase = phase()
    rule = None if at.rule is None else place.cluster.faults.add(at.rule)
    with ending(process := place.start(what, held=at.held[0], held_s=at.held[1])):
        wait_for(place.marker.exists if rule is None else lambda: rule.hits >= at.hits, process)
        process.send_signal(at.sign)
        out, err = process.communicate(timeout=STOP_S + GRACE_S)
    assert process.returncode == 1
    assert err.endswith(f"Error: {at.sign.name} stopped the job before it was complete\n")
    assert f"Raw {what} failed summary" in out
    assert place.state() == UNCHANGED
    assert not place.is_locked()

    place.cluster.faults.clear()
    assert re.search(at.said, goes_on(place, what))
    assert_done(place, what)


@pytest.mark.parametrize("place", ["backup", "restore"], indirect=True)
def test_a_job_ends_though_nobody_answers_any_more(place: Place, request: pytest.FixtureRequest) -> None:
    what = request.node.callspec.params["place"]
    at: Phase = {"backup": BACKUP["running"], "restore": RESTORE["ingest"]}[what]()
    assert at.rule is not None
    rule = place.cluster.faults.add(at.rule)
    with ending(process := place.start(what)):
        wait_for(lambda: rule.hits >= at.hits, process)
        place.cluster.faults.add(hung("*"))
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=STOP_S + GRACE_S)
    assert process.returncode == 1
    assert f"Raw {what} failed summary" in out
    assert err.endswith("Error: SIGTERM stopped the job before it was complete\n")
    assert "could not end the pause of PD's schedulers; it ends by itself after five minutes: " in err
    own = "the GC safepoint of the backup" if what == "backup" else "import mode"
    assert f"could not end {own}; " in err
    assert not place.is_locked()

    place.cluster.faults.clear()
    assert re.search(at.said, goes_on(place, what))
    assert_done(place, what)


def saved(place: Place) -> bool:
    """Whether a checkpoint holds something."""
    return any(".checkpoint/" in name and name[-6:].isdigit() for name in place.names())


@pytest.mark.parametrize("place", ["backup", "restore"], indirect=True)
def test_the_same_command_goes_on_after_kill_9(place: Place, request: pytest.FixtureRequest) -> None:
    what = request.node.callspec.params["place"]
    at: Phase = {"backup": BACKUP["running"], "restore": RESTORE["ingest"]}[what]()
    assert at.rule is not None
    rule = place.cluster.faults.add(at.rule)
    with ending(process := place.start(what, save_s=0.01)):
        wait_for(lambda: rule.hits >= at.hits and saved(place), process)
        # Saving follows at once.
        time.sleep(0.5)
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert place.state() != UNCHANGED
    assert place.is_locked()

    place.cluster.faults.clear()
    assert re.search(at.said, goes_on(place, what))
    assert_done(place, what)


@pytest.mark.parametrize("place", ["restore"], indirect=True)
def test_a_second_signal_quits_at_once_and_the_rest_is_repaired(place: Place) -> None:
    # Each store is told once to go into import mode, and never told to leave it.
    undo = place.cluster.faults.add(hung(methods.IMPORT_SWITCH_MODE, after=2))
    rule = place.cluster.faults.add(hung(methods.IMPORT_MULTI_INGEST, after=3))
    with ending(process := place.start("restore")):
        wait_for(lambda: rule.hits >= 5, process)
        process.send_signal(signal.SIGINT)
        wait_for(lambda: undo.hits >= 2, process)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=GRACE_S)
    assert process.returncode == 1
    assert out == ""
    assert "SIGINT: stopping and putting the cluster back; press ^C again to quit at once" in err
    assert "Error" not in err
    assert place.state()["import mode"] == [1, 2]

    place.cluster.faults.clear()
    repair = [sys.executable, "-m", "airflow_provider_tikvbr.cli.main", "repair", "-u", place.cluster.pd_address]
    done = subprocess.run([*repair, "-s", str(place.backup)], capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("everything is put right\n")
    assert place.state() == UNCHANGED
    assert not place.is_locked()
    goes_on(place, "restore")
    assert_done(place, "restore")
