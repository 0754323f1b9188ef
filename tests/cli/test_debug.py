"""decode and encode, held against what tikv-br made of the golden backups (data/*.json)."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import httpx
import pytest

from airflow_provider_tikvbr.cli.main import main
from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from airflow_provider_tikvbr.proto import brpb_pb2
from tests.support.golden import AES256_KEY, ROOT

DATA = Path(__file__).parent / "data"
KEY = ["--crypter.method", "aes256-ctr", "--crypter.key", AES256_KEY]


@pytest.mark.parametrize(
    ("golden", "theirs", "key"),
    [
        ("v1/range", "v1-range", []),
        ("v2/range", "v2-range", []),
        ("v1ttl/to_v2", "v1ttl-to_v2", []),
        ("v1/aes256", "v1-aes256", KEY),
    ],
)
def test_a_backup_decodes_as_tikv_br_decodes_it(
    golden: str, theirs: str, key: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = tmp_path / "backupmeta"
    shutil.copy(ROOT / golden / "backupmeta", meta)
    assert main(["debug", "decode", "-s", str(tmp_path), *key]) == 0
    assert capsys.readouterr().out == f"backupmeta decoded at local://{tmp_path}/backupmeta.json\n"
    assert (tmp_path / "backupmeta.json").read_bytes() == (DATA / f"{theirs}.json").read_bytes()

    # the backupmeta that is there stays
    before = meta.read_bytes()
    assert main(["debug", "encode", "-s", f"local://{tmp_path}", *key]) == 0
    assert capsys.readouterr().out == f"backupmeta encoded at local://{tmp_path}/backupmeta_from_json\n"
    made = tmp_path / "backupmeta_from_json"
    assert meta.read_bytes() == before
    assert (made.read_bytes() == before) == (not key)  # an encrypted one has a vector of its own

    # without one it is made, and says the same
    meta.unlink()
    assert main(["validate", "encode", "-s", str(tmp_path), *key]) == 0
    assert key or meta.read_bytes() == before
    (tmp_path / "backupmeta.json").unlink()
    assert main(["debug", "decode", "-s", str(tmp_path), *key]) == 0
    assert (tmp_path / "backupmeta.json").read_bytes() == (DATA / f"{theirs}.json").read_bytes()


def test_an_encrypted_backup_needs_its_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(ROOT / "v1" / "aes256" / "backupmeta", tmp_path)
    assert main(["debug", "decode", "-s", str(tmp_path), *KEY[:-1], "ff" * 32]) == 1
    assert "cannot be read with this key" in capsys.readouterr().err
    assert not (tmp_path / "backupmeta.json").exists()


def test_an_index_of_files_is_resolved(tmp_path: Path) -> None:
    meta = brpb_pb2.BackupMeta.FromString((ROOT / "v1" / "range" / "backupmeta").read_bytes())
    below = brpb_pb2.MetaFile(data_files=meta.files).SerializeToString()
    (tmp_path / "backupmeta.datafile.000000001").write_bytes(below)
    index = brpb_pb2.File(name="backupmeta.datafile.000000001", sha256=hashlib.sha256(below).digest(), size=len(below))
    meta.ClearField("files")
    meta.file_index.meta_files.append(index)
    meta.version = 1
    (tmp_path / "backupmeta").write_bytes(meta.SerializeToString())
    assert main(["debug", "decode", "-s", str(tmp_path)]) == 0
    assert (tmp_path / "backupmeta.json").read_bytes() == (DATA / "v1-range.json").read_bytes()


@pytest.mark.parametrize(
    ("field", "shown"),
    [
        # each as tikv-br prints it
        ("start-version", "0"),
        ("EndVersion", "0"),
        ("ClusterId", "7711113122452913147"),
        ("ClusterVersion", "9.0.0-beta.2"),
        ("RawRanges", r'[start_key:"r\000\000\000a" end_key:"r\000\000\000user:00002800" cf:"default" ]'),
        ("Ddls", "[91 93]"),
        ("ApiVersion", "V2"),
        ("IsRawKv", "true"),
        ("FileIndex", "<nil>"),
        ("Schemas", "[]"),
        ("NewCollationsEnabled", ""),
        ("Version", "0"),
    ],
)
def test_a_field_is_printed_as_tikv_br_prints_it(field: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["debug", "decode", "-s", str(ROOT / "v2" / "range"), "--field", field]) == 0
    assert capsys.readouterr() == (f"{shown}\n", "")
    assert not (ROOT / "v2" / "range" / "backupmeta.json").exists()


def test_an_unknown_field_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["debug", "decode", "-s", str(ROOT / "v1" / "range"), "--field", "Nope"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: --field 'Nope' is not known: give start-version, end-version, ApiVersion,")


def test_there_may_be_nothing_to_encode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["debug", "encode", "-s", str(tmp_path)]) == 1
    assert (
        capsys.readouterr().err == f"Error: there is no backupmeta.json in local://{tmp_path}: debug decode makes one\n"
    )


def test_validate_says_what_to_use_instead(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["debug", "backupmeta", "validate", "--offset", "3"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "tikvbr checksum" in err


def test_the_settings_of_pd_are_reset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def settings() -> dict[str, object]:
        found = httpx.get(f"http://{cluster.pd_address}/pd/api/v1/config/schedule").json()
        return {name: found[name] for name in wanted}

    wanted = {
        "max-merge-region-keys": 200_000,
        "max-merge-region-size": 20,
        "leader-schedule-limit": 4,
        "region-schedule-limit": 2048,
        "enable-location-replacement": "true",
    }
    with ThreadedCluster(data_dir=tmp_path) as cluster:
        changed = {**dict.fromkeys(wanted, 1), "enable-location-replacement": "false"}
        httpx.post(f"http://{cluster.pd_address}/pd/api/v1/config/schedule", json=changed).raise_for_status()
        assert settings() == changed
        assert main(["debug", "reset-pd-config-as-default", "-u", cluster.pd_address]) == 0
        assert settings() == wanted
        # also while temporary ones hold, which a job that was killed left
        httpx.post(f"http://{cluster.pd_address}/pd/api/v1/config/schedule", json=changed).raise_for_status()
        left = {f"schedule.{name}": value for name, value in changed.items()}
        httpx.post(f"http://{cluster.pd_address}/pd/api/v1/config?ttlSecond=300", json=left).raise_for_status()
        assert main(["debug", "reset-pd-config-as-default", "-u", cluster.pd_address]) == 0
        assert settings() == wanted
    assert "max-merge-region-size=20" in capsys.readouterr().out
