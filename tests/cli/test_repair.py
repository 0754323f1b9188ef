from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_tikvbr.cli.main import main
from airflow_provider_tikvbr.embedded.serving import ServerTls
from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from airflow_provider_tikvbr.rawbr import repair_steps
from airflow_provider_tikvbr.rawbr.lock_record import LockRecord
from tests.support.certs import Authority


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ThreadedCluster]:
    """One that a restore has left changed when it was killed."""
    with ThreadedCluster(data_dir=tmp_path / "data", stores=2) as cluster:
        leave_changed(cluster)
        yield cluster


def leave_changed(cluster: ThreadedCluster) -> None:
    for engine in cluster.cluster.engines.values():
        engine.import_mode.switch(True)
        engine.download_limiter.set_rate(5)
    cluster.cluster.pd.schedulers.pause("balance-leader-scheduler", 300)


def is_right(cluster: ThreadedCluster) -> bool:
    inside = cluster.cluster
    return not (
        any(inside.import_modes().values()) or any(inside.download_limits().values()) or inside.pd.schedulers.paused()
    )


def addresses(cluster: ThreadedCluster) -> list[str]:
    return [store.message().address for store in cluster.topology.stores.values()]


def lines(cluster: ThreadedCluster) -> list[str]:
    """What is told of a cluster that can be put right."""
    stores = [f"store {at} ({address})" for at, address in enumerate(addresses(cluster), 1)]
    return [
        *(f"{who}, {what}" for who in stores for what in ("import mode: not told -> off", "download limit: not told -> none")),
        "PD's balance-leader-scheduler: paused -> running",
        "PD's temporary schedule settings: not told -> none",
    ]  # fmt: skip


def test_it_tells_then_does(cluster: ThreadedCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repair", "-u", cluster.pd_address, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [*lines(cluster), "nothing was changed, as --dry-run was given"]
    assert not is_right(cluster)
    assert main(["repair", "-u", cluster.pd_address]) == 0
    assert capsys.readouterr().out.splitlines() == [*lines(cluster), "everything is put right"]
    assert is_right(cluster)
    assert main(["repair", "-u", cluster.pd_address]) == 0
    assert "scheduler:" not in capsys.readouterr().out


def test_what_could_not_be_put_right_is_named(
    cluster: ThreadedCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair_steps, "PATIENCE_S", 0.2)
    cluster.stop_store(2)
    log = tmp_path / "log"
    assert main(["repair", "-u", cluster.pd_address, "--log-file", str(log)]) == 1
    out, err = capsys.readouterr()
    who = f"store 2 ({addresses(cluster)[1]})"
    assert err.splitlines()[-1] == (
        f"Error: not everything could be put right: {who}, import mode; {who}, download limit"
    )
    assert "everything is put right" not in out
    failed = [line for line in out.splitlines() if " failed: " in line]
    assert [line.partition(":")[0] for line in failed] == [f"store 2 ({addresses(cluster)[1].partition(':')[0]}"] * 2
    assert "not everything could be put right" in log.read_text()


def test_safepoints_are_dropped_if_asked_for(cluster: ThreadedCluster, capsys: pytest.CaptureFixture[str]) -> None:
    def services() -> set[str]:
        return set(cluster.apply(lambda c: c.pd.safe_points.services()))

    cluster.apply(lambda c: c.pd.safe_points.update_service("br-1", 3600, 500))
    assert main(["repair", "-u", cluster.pd_address]) == 0
    assert services() == {"br-1"}
    assert "left as it is (it expires by itself)" in capsys.readouterr().out
    assert main(["repair", "-u", cluster.pd_address, "--drop-safepoints"]) == 0
    assert services() == set()


def test_nothing_is_done_while_a_job_lives(
    cluster: ThreadedCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = tmp_path / "checkpoints" / "restore.checkpoint"
    checkpoints.mkdir(parents=True)
    lock = checkpoints / "restore.lock"
    lock.write_bytes(LockRecord.of_this_process("nightly").dump())
    command = ["repair", "-u", cluster.pd_address, "--checkpoint-storage", str(checkpoints.parent)]
    for flags in ([], ["--dry-run"]):
        assert main([*command, *flags]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert f"checkpoint is locked by nightly (host {socket.gethostname()}, pid {os.getpid()}, started " in err
        assert err.endswith(", which runs on this machine: let it end, or stop it; nothing was changed\n")
    assert not is_right(cluster)
    lock.unlink()
    assert main(command) == 0
    assert is_right(cluster)


def test_a_cluster_with_tls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = Authority()
    server, client = authority.issue("127.0.0.1", "localhost"), authority.issue("client")
    for name, text in (("ca", authority.ca), ("cert", client.cert), ("key", client.key)):
        (tmp_path / name).write_bytes(text)
    certificates = [word for name in ("ca", "cert", "key") for word in (f"--{name}", str(tmp_path / name))]
    tls = ServerTls(cert=server.cert, key=server.key, ca=authority.ca)
    with ThreadedCluster(data_dir=tmp_path / "data", stores=2, tls=tls) as cluster:
        leave_changed(cluster)
        assert main(["repair", "-u", cluster.pd_address]) == 1
        assert not is_right(cluster)
        assert main(["repair", "-u", cluster.pd_address, *certificates]) == 0
        assert is_right(cluster)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["-s", "ftp://h/p"], "--storage scheme 'ftp' is not supported: "),
        (["--checkpoint-storage", "s3://b/p?wrong=1"], "has no parameter 'wrong': "),
        (["--no-such-flag"], "unknown flag: --no-such-flag"),
        (
            ["-u", "https://127.0.0.1:1"],
            "--pd: PD endpoint https://127.0.0.1:1 needs TLS but no certificates are given",
        ),
    ],
)
def test_a_wrong_flag_changes_nothing(
    cluster: ThreadedCluster, args: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["repair", "-u", cluster.pd_address, *args]) == 1
    out, err = capsys.readouterr()
    assert sentence in err
    assert out == ""
    assert not is_right(cluster)
