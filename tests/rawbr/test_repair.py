from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import grpc
import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.fault_rules import Kind, Rule
from airflow_provider_tikvbr.embedded.serving import ServerTls
from airflow_provider_tikvbr.exceptions import PDUnavailableError, StorageLockedError, StorageNotFoundError
from airflow_provider_tikvbr.proto import methods
from airflow_provider_tikvbr.rawbr import repair_places, repair_steps
from airflow_provider_tikvbr.rawbr.backup import backup
from airflow_provider_tikvbr.rawbr.leases import SCHEDULERS
from airflow_provider_tikvbr.rawbr.lock_record import LockRecord
from airflow_provider_tikvbr.rawbr.options import BackupOptions
from airflow_provider_tikvbr.rawbr.repair import repair
from airflow_provider_tikvbr.rawbr.repair_places import Places
from airflow_provider_tikvbr.rawbr.repair_steps import Repair
from airflow_provider_tikvbr.storage.local import LocalStorage
from airflow_provider_tikvbr.storage.noop import NoopStorage
from airflow_provider_tikvbr.tikv import pd_http
from airflow_provider_tikvbr.tikv.keys import ApiVersion
from airflow_provider_tikvbr.tikv.options import ClusterOptions, TlsOptions
from tests.support.certs import Authority
from tests.support.target import is_as_before, target
from tests.support.waiting import until

NOWHERE = Places()
SCHEDULER = "balance-leader-scheduler"


def options(embedded: EmbeddedCluster, tls: TlsOptions | None = None) -> ClusterOptions:
    return ClusterOptions(pd=(embedded.pd_address,), tls=tls, connect_timeout_s=10)


def leave_changed(embedded: EmbeddedCluster) -> None:
    """What a restore that was killed leaves."""
    for engine in embedded.engines.values():
        engine.import_mode.switch(True)
        engine.download_limiter.set_rate(5)
    embedded.pd.schedulers.pause(SCHEDULER, 300)
    embedded.pd.config.update_ttl({"schedule.max-merge-region-size": 0, "schedule.leader-schedule-limit": 40}, 300)


async def put_right(
    embedded: EmbeddedCluster, *, tls: TlsOptions | None = None, places: Places = NOWHERE, **more: bool
) -> tuple[list[str], list[str]]:
    """Repair; what was said, and of what it was said that it failed."""
    told: list[Repair] = []
    left = await repair(options(embedded, tls), places, report=told.append, **more)
    assert [each for each in told if each.failed] == list(left)
    return [str(each) for each in told], [each.what for each in left]


@pytest.mark.parametrize("version", ["5.4.0", "8.5.0"])
async def test_what_a_killed_restore_has_left_is_put_right(tmp_path: Path, version: str) -> None:
    async with target(tmp_path, stores=2, version=version) as (embedded, _):
        lasting = embedded.pd.config.values()
        leave_changed(embedded)
        said, left = await put_right(embedded)
        assert is_as_before(embedded)
        await asyncio.sleep(1.1)
        assert embedded.pd.config.ttl_values() == {}
        assert embedded.pd.config.values() == lasting
    assert left == []
    stores = [line for line in said if line.startswith("store ")]
    assert [line.split("), ")[1] for line in stores] == 2 * [
        "import mode: not told -> off",
        "download limit: not told -> none",
    ]
    assert said[len(stores) :] == [
        f"PD's {SCHEDULER}: paused -> running",
        "PD's temporary schedule settings: not told -> none",
    ]


async def test_it_may_only_be_told(tmp_path: Path) -> None:
    async with target(tmp_path, stores=2) as (embedded, _):
        leave_changed(embedded)
        embedded.pd.safe_points.update_service("br-1", 100, 500)
        rules = [
            embedded.faults.add(Rule(kind=Kind.DELAY, method=method, delay_s=0))
            for method in ("/import_sstpb.ImportSST/*", methods.PD_UPDATE_SERVICE_GC_SAFE_POINT, "POST *")
        ]
        told, left = await put_right(embedded, dry_run=True, drop_safepoints=True)
        assert [rule.hits for rule in rules] == [0, 0, 0]
        done, _ = await put_right(embedded, drop_safepoints=True)
    assert left == []
    assert [line.partition(" for another ")[0] for line in told] == [
        line.partition(" for another ")[0] for line in done
    ]


async def test_a_cluster_that_is_right_stays_as_it_is(tmp_path: Path) -> None:
    async with target(tmp_path) as (embedded, _):
        lasting = embedded.pd.config.values()
        said, left = await put_right(embedded)
        assert is_as_before(embedded)
        # Even for the second that they take to end, temporary settings change nothing.
        for name, value in embedded.pd.config.ttl_values().items():
            assert str(value) == str(lasting[name.removeprefix("schedule.")])
    assert left == []
    assert not any("scheduler:" in line for line in said)


async def test_schedulers_that_no_job_pauses_stay_paused(tmp_path: Path) -> None:
    async with target(tmp_path) as (embedded, _):
        (other, *_) = sorted(set(embedded.pd.schedulers.names()) - SCHEDULERS)
        embedded.pd.schedulers.pause(other, 300)
        said, _ = await put_right(embedded)
        assert set(embedded.pd.schedulers.paused()) == {other}
    assert not any(other in line for line in said)


async def test_a_store_that_is_down_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair_steps, "PATIENCE_S", 0.3)
    async with target(tmp_path, stores=3) as (embedded, _):
        leave_changed(embedded)
        address = embedded.topology.stores[2].message().address
        await embedded.stop_store(2)
        said, left = await put_right(embedded)
        assert left == [f"store 2 ({address}), import mode", f"store 2 ({address}), download limit"]
        assert [store for store, on in embedded.import_modes().items() if on and store != 2] == []
        assert not embedded.pd.schedulers.paused()
    mode, limit = (line for line in said if "failed" in line)
    assert "store 2" in mode.partition("failed")[2]
    assert mode.endswith("; a store leaves it by itself ten minutes after it was last asked for, or when it restarts")
    assert limit.endswith("; a store forgets it when it restarts")


async def test_all_stores_may_be_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair_steps, "PATIENCE_S", 0.3)
    async with target(tmp_path, stores=1) as (embedded, _):
        leave_changed(embedded)
        await embedded.stop_store(1)
        _, left = await put_right(embedded)
        assert len(left) == 2
        assert not embedded.pd.schedulers.paused()


async def test_what_may_pass_is_tried_again(tmp_path: Path) -> None:
    async with target(tmp_path, stores=1) as (embedded, _):
        leave_changed(embedded)
        embedded.faults.add(Rule(kind=Kind.STATUS, method=methods.IMPORT_SWITCH_MODE, times=1))
        _, left = await put_right(embedded)
        assert left == []
        assert is_as_before(embedded)


async def test_what_pd_does_not_tell_keeps_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pd_http, "BUDGET_S", 0.3)
    async with target(tmp_path, stores=1) as (embedded, _):
        leave_changed(embedded)
        embedded.faults.add(Rule(kind=Kind.STATUS, method="GET /pd/api/v1/*"))
        said, left = await put_right(embedded)
        assert not embedded.import_modes()[1]
    assert left == ["PD's schedulers", "PD's temporary schedule settings", "GC safepoints"]
    assert "; those that a job has paused go on by themselves after five minutes" in "".join(said)


async def test_a_scheduler_that_pd_does_not_resume_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pd_http, "BUDGET_S", 0.3)
    monkeypatch.setattr(repair_steps, "PATIENCE_S", 0.3)
    async with target(tmp_path, stores=1) as (embedded, _):
        leave_changed(embedded)
        embedded.faults.add(Rule(kind=Kind.STATUS, method="POST /pd/api/v1/schedulers/*"))
        _, left = await put_right(embedded)
    assert left == [f"PD's {SCHEDULER}"]


@pytest.mark.parametrize("version", ["6.5.0", "9.0.0"])
async def test_safepoints_are_told_and_kept(tmp_path: Path, version: str) -> None:
    async with target(tmp_path, ApiVersion.V2, version=version) as (embedded, _):
        for name in ("br-1", "cdc"):
            embedded.pd.safe_points.update_service(name, 3600, 500)
        (said,) = [line for line in (await put_right(embedded))[0] if "safepoint" in line]
        assert set(embedded.pd.safe_points.services()) == {"br-1", "cdc"}
        assert said.startswith("GC safepoint br-1: holds GC at 500 for another ")
        assert said.endswith(", left as it is (it expires by itself)")
        assert any(f"for another {left}" in said for left in ("1h0m0s", "59m59s", "59m58s"))

        (said,) = [line for line in (await put_right(embedded, drop_safepoints=True))[0] if "safepoint" in line]
        assert said.endswith(" -> removed")
        assert set(embedded.pd.safe_points.services()) == {"cdc"}


async def test_a_pd_that_cannot_tell_safepoints(tmp_path: Path) -> None:
    async with target(tmp_path) as (embedded, _):
        embedded.faults.add(Rule(kind=Kind.STATUS, method="GET /pd/api/v1/gc/safepoint", status=404))
        said, left = await put_right(embedded)
    assert left == []
    assert any(line.startswith("GC safepoints: not told, left as it is (PD at ") for line in said)


async def test_a_cluster_with_tls(tmp_path: Path) -> None:
    authority = Authority()
    server, client = authority.issue("127.0.0.1", "localhost"), authority.issue("client")
    serving = ServerTls(cert=server.cert, key=server.key, ca=authority.ca)
    tls = TlsOptions(ca=authority.ca, cert=client.cert, key=client.key)
    async with EmbeddedCluster(data_dir=tmp_path, stores=2, tls=serving) as embedded:
        leave_changed(embedded)
        _, left = await put_right(embedded, tls=tls)
        assert left == []
        assert is_as_before(embedded)


async def test_without_pd_nothing_can_be_done(tmp_path: Path) -> None:
    async with target(tmp_path) as (embedded, _):
        embedded.faults.add(Rule(kind=Kind.STATUS, method=methods.PD_GET_MEMBERS, code=grpc.StatusCode.UNAVAILABLE))
        told: list[Repair] = []
        quickly = ClusterOptions(pd=(embedded.pd_address,), connect_timeout_s=0.3)
        with pytest.raises(PDUnavailableError):
            await repair(quickly, NOWHERE, report=told.append)
    assert told == []


async def test_the_safepoint_of_an_unfinished_backup_is_told_as_such(tmp_path: Path) -> None:
    async with target(tmp_path, ApiVersion.V2) as (embedded, cluster):
        (tmp_path / "b").mkdir()
        storage = LocalStorage(path=tmp_path / "b")
        embedded.faults.add(Rule(kind=Kind.HANG, method=methods.BACKUP))
        job = asyncio.create_task(backup(cluster, storage, BackupOptions()))
        await until(embedded.pd.safe_points.services)
        # As with kill -9: nobody removes the safepoint, or the checkpoint.
        (service,) = embedded.pd.safe_points.services().values()
        kept = shutil.copytree(tmp_path / "b", tmp_path / "killed", ignore=shutil.ignore_patterns("*.lock"))
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
        embedded.pd.safe_points.update_service("br-another", 100, service.safe_point)
        embedded.pd.safe_points.update_service(service.service_id, 100, service.safe_point)

        places = Places(storage=LocalStorage(path=kept))
        said = {line.split()[2]: line for line in (await put_right(embedded, places=places))[0] if "safepoint" in line}
        assert len(embedded.pd.safe_points.services()) == 2
    assert said["br-another:"].endswith("(it expires by itself)")
    assert said[f"{service.service_id}:"].endswith(f"(the unfinished backup in local://{kept} goes on with it)")


async def test_places_without_anything_of_a_job(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    empty = LocalStorage(path=tmp_path / "b")
    async with target(tmp_path, ApiVersion.V2) as (embedded, _):
        for places in (
            Places(storage=empty, checkpoint_storage=empty),
            Places(storage=NoopStorage(), checkpoint_storage=NoopStorage()),
        ):
            said, left = await put_right(embedded, places=places)
            assert left == []
            assert not any("lock" in line for line in said)
        for places in (Places(storage=nowhere(tmp_path)), Places(checkpoint_storage=nowhere(tmp_path))):
            with pytest.raises(
                StorageNotFoundError, match=r"there is nothing at local://\S+/none: give the place where"
            ):
                await put_right(embedded, places=places)


def nowhere(tmp_path: Path) -> LocalStorage:
    return LocalStorage(path=tmp_path / "none")


# --- locks ---

DIES = """
import sys
from pathlib import Path
from airflow_provider_tikvbr.rawbr.lock_record import LockRecord
Path(sys.argv[1]).write_bytes(LockRecord.of_this_process("nightly").dump())
"""


def lock_of_a_dead_process(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-c", DIES, str(path)], check=True)


def lock_of_elsewhere(path: Path, *, age_s: int) -> None:
    beat = datetime.now(timezone.utc) - timedelta(seconds=age_s)
    record = replace(
        LockRecord.of_this_process("nightly"), host="there", pid=7, machine=None, heartbeat=beat.isoformat()
    )
    path.write_bytes(record.dump())


async def test_stale_locks_are_removed_and_nothing_else(tmp_path: Path) -> None:
    beside, given = tmp_path / "b", tmp_path / "given"
    async with target(tmp_path, stores=1) as (embedded, cluster):
        mine = f"restore.checkpoint/{cluster.cluster_id}-0"
        locks = [beside / mine / "restore.lock", given / "restore.checkpoint" / "restore.lock", beside / "backup.lock"]
        for path in locks:
            lock_of_a_dead_process(path)
        other = beside / "restore.checkpoint" / f"{cluster.cluster_id}1-0" / "restore.lock"
        lock_of_a_dead_process(other)
        kept = [other, beside / mine / "head.json", beside / mine / "abc-000001", beside / "backupmeta", given / "x"]
        for path in kept[1:]:
            path.write_bytes(b"data")
        places = Places(storage=LocalStorage(path=beside), checkpoint_storage=LocalStorage(path=given))

        told, _ = await put_right(embedded, places=places, dry_run=True)
        assert all(path.exists() for path in locks)
        said, left = await put_right(embedded, places=places)
        assert said == told
        assert left == []
        assert not any(path.exists() for path in locks)
        assert all(path.exists() for path in kept)
    places_said = [line.partition(": ")[0] for line in said[-3:]]
    assert places_said == [
        f"restore.lock in local://{beside}/{mine}",
        f"restore.lock in local://{given}/restore.checkpoint",
        f"backup.lock in local://{beside}",
    ]
    assert all(
        line.endswith(": its process is gone -> removed") and ": of nightly (host " in line for line in said[-3:]
    )


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (
            "here",
            r"local://\S+/b is locked by nightly \(host .*\), which runs on this machine: let it end, or stop it; ",
        ),
        (
            "elsewhere",
            r"local://\S+/b is locked by nightly \(host there, pid 7, .*\), which may live: let it end, or try ",
        ),
        ("foreign", r"backup\.lock in local://\S+/b does not say who holds it: delete it if no job is running; "),
    ],
)
async def test_nothing_is_changed_while_a_lock_may_be_held(tmp_path: Path, kind: str, sentence: str) -> None:
    path = tmp_path / "b" / "backup.lock"
    path.parent.mkdir()
    if kind == "here":
        path.write_bytes(LockRecord.of_this_process("nightly").dump())
    elif kind == "elsewhere":
        lock_of_elsewhere(path, age_s=60)
    else:
        path.write_text("DO NOT DELETE\nThis file exists to remind other backup jobs won't use this path")
    places = Places(storage=LocalStorage(path=path.parent))
    async with target(tmp_path) as (embedded, _):
        leave_changed(embedded)
        with pytest.raises(StorageLockedError, match=sentence + r".*nothing was changed$"):
            await put_right(embedded, places=places)
        assert embedded.import_modes()[1]
        assert embedded.pd.schedulers.paused()
    assert path.exists()


@pytest.mark.parametrize("changes", [False, True])
async def test_an_old_lock_of_elsewhere_is_watched(
    tmp_path: Path, changes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair_places, "WATCH_S", 0.3)
    path = tmp_path / "b" / "backup.lock"
    path.parent.mkdir()
    lock_of_elsewhere(path, age_s=600)
    places = Places(storage=LocalStorage(path=path.parent))
    async with target(tmp_path) as (embedded, _):
        work = asyncio.ensure_future(put_right(embedded, places=places))
        if changes:
            await asyncio.sleep(0.1)
            lock_of_elsewhere(path, age_s=500)
            with pytest.raises(StorageLockedError, match="which may live"):
                await work
        else:
            said, _ = await work
            assert ": it has shown no sign of life for 60" in said[-1]
    assert path.exists() is changes


async def test_a_lock_that_is_taken_over_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "b" / "backup.lock"
    lock_of_a_dead_process(path)
    places = Places(storage=LocalStorage(path=path.parent))
    told: list[Repair] = []

    def report(each: Repair) -> None:
        # The cluster comes first; then somebody is quicker.
        path.write_bytes(LockRecord.of_this_process("nightly").dump())
        told.append(each)

    async with target(tmp_path) as (embedded, _):
        (left,) = await repair(options(embedded), places, report=report)
    assert left.what.startswith("backup.lock in ")
    assert "another job has taken over the lock of " in left.failed
    assert path.exists()
