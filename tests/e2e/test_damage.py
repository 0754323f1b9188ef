"""Damaged backups: each kind of damage at each depth of ``verify_files``, plain and encrypted, by each face.

What a depth promises is found before the cluster is changed in any way; what it does not, the stores or the comparison find:
no damage ever looks like a success.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_tikvbr.cli.main import main
from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from airflow_provider_tikvbr.proto import brpb_pb2, methods
from airflow_provider_tikvbr.rawbr.meta import META_NAME
from airflow_provider_tikvbr.rawbr.options import restore_options
from airflow_provider_tikvbr.tikv.keys import UserKey
from tests.support.faces import FACES, Seen, by_engine, run
from tests.support.front import connect
from tests.support.golden import Golden
from tests.support.target import is_as_before

KEY = "00112233445566778899aabbccddeeff" * 2
OTHER_KEY = "ff" * 32
CIPHERS: Mapping[str, dict[str, Any]] = {"plain": {}, "aes": {"crypter_method": "aes256-ctr", "crypter_key": KEY}}
BORDERS = [UserKey(b"k/%d" % at) for at in (100, 200, 300)]
DEPTHS = ("off", "size", "sha256")
REMEDY = "put back what is wrong from a copy of the backup, or use another backup"

# What a job may ask for before it has seen that the backup is whole.
READS = {
    method.path
    for method in (
        methods.PD_GET_MEMBERS,
        methods.PD_GET_ALL_STORES,
        methods.PD_GET_CLUSTER_INFO,
        methods.PD_SCAN_REGIONS,
        methods.PD_GET_REGION,
        methods.KV_RAW_SCAN,
        methods.KV_RAW_CHECKSUM,
    )
}


def pairs(seed: int) -> list[tuple[UserKey, bytes]]:
    """Values that no compression makes smaller, so that equal regions make files of equal size."""
    rnd = random.Random(seed)
    return [(UserKey(b"k/%03d" % at), rnd.randbytes(120 if at < 300 else 60)) for at in range(400)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two backups of the same ranges with other values, each plain and encrypted."""
    folder = tmp_path_factory.mktemp("made")
    for at, name in enumerate(("own", "foreign")):
        with ThreadedCluster(data_dir=folder / f"data {name}", stores=1, split_keys=BORDERS) as cluster:
            cluster.put(pairs(at))
            for cipher, options in CIPHERS.items():
                place = f"local://{folder / name / cipher}"
                by_engine("backup", cluster.pd_address, place, {"compression": "lz4", **options}, Seen())
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A backup that may be damaged; of the cipher that the test is about."""
    callspec = getattr(request.node, "callspec", None)
    cipher = callspec.params.get("cipher", "plain") if callspec is not None else "plain"
    place = tmp_path / "backup"
    shutil.copytree(made / "own" / cipher, place)
    return place


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadedCluster]:
    """An empty cluster."""
    with ThreadedCluster(data_dir=tmp_path / "target", stores=2, replicas=2, split_keys=BORDERS) as cluster:
        connect(monkeypatch, "tikv_default", cluster)
        yield cluster


def read(place: Path) -> brpb_pb2.BackupMeta:
    """The backupmeta of one of our backups, plain or encrypted."""
    data = (place / META_NAME).read_bytes()
    if b"_default.sst" not in data:
        data = restore_options(**CIPHERS["aes"]).cipher.decrypt(data[16:], data[:16])
    return brpb_pb2.BackupMeta.FromString(data)


def ssts(place: Path) -> list[Path]:
    """The files in key order; the last one is smaller than the others, which are equal in size."""
    return [place / file.name for file in sorted(read(place).files, key=lambda file: file.start_key)]


# --- the damages ---


def flip(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[min(int(len(data) * at), len(data) - 1)] ^= 4
    path.write_bytes(data)


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


@dataclass(frozen=True)
class Damage:
    """One kind of damage to SSTs.

    :param do: does it, given the files of the backup and those of the other one.
    :param says: what is said of the first file, by the depth that finds it first.
    :param depth: that one.
    """

    name: str
    do: Callable[[list[Path], list[Path]], object]
    says: str
    depth: str

    def found_at(self, depth: str) -> bool:
        return DEPTHS.index(depth) >= DEPTHS.index(self.depth)

    def __str__(self) -> str:
        return self.name


SIZE, DIGEST = r"has \d+ bytes instead of \d+", "is not the file that was written"
DAMAGES = [
    Damage("missing", lambda own, _: own[1].unlink(), "is missing", "size"),
    Damage("empty", lambda own, _: own[1].write_bytes(b""), SIZE, "size"),
    Damage("cut by a byte", lambda own, _: own[1].write_bytes(own[1].read_bytes()[:-1]), SIZE, "size"),
    Damage("cut in half", lambda own, _: own[1].write_bytes(own[1].read_bytes()[:5000]), SIZE, "size"),
    Damage("grown", lambda own, _: own[1].write_bytes(own[1].read_bytes() + b"\0"), SIZE, "size"),
    Damage("swapped, of other sizes", lambda own, _: swap(own[1], own[3]), SIZE, "size"),
    Damage("swapped, of one size", lambda own, _: swap(own[1], own[2]), DIGEST, "sha256"),
    Damage("foreign, of another size", lambda own, other: shutil.copy(other[3], own[1]), SIZE, "size"),
    Damage("foreign, of the same size", lambda own, other: shutil.copy(other[1], own[1]), DIGEST, "sha256"),
    Damage("bit at the head", lambda own, _: flip(own[1], 0), DIGEST, "sha256"),
    Damage("bit in the middle", lambda own, _: flip(own[1], 0.5), DIGEST, "sha256"),
    Damage("bit at the tail", lambda own, _: flip(own[1], 1), DIGEST, "sha256"),
]


def changes(seen: Seen) -> list[str]:
    """What was asked for beyond looking."""
    found = [method.path for method, _ in seen.requests if method.path not in READS]
    return found + [f"{method} {path}" for method, path in seen.http if method != "GET"]


def contents(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def held(cluster: ThreadedCluster) -> list[tuple[bytes, bytes]]:
    return [(pair.key, pair.value) for pair in cluster.pairs()]


def assert_refused(seen: Seen, cluster: ThreadedCluster, says: str) -> None:
    """It failed in one sentence before the cluster was changed in any way."""
    assert not seen.ok
    # The command has a summary on a line of its own, and tells of the first damaged files as it meets them.
    said = seen.text.partition("Error: ")[2].splitlines()[0] if "Error: " in seen.text else seen.text
    assert re.search(says, said), said
    assert "\n" not in said
    assert changes(seen) == []
    assert held(cluster) == []
    assert len(cluster.topology.regions) == 1 + len(BORDERS)
    assert cluster.apply(is_as_before)


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_damaged_files(
    damage: Damage,
    depth: str,
    cipher: str,
    made: Path,
    copy: Path,
    target: ThreadedCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, good = ssts(copy), contents(copy)
    damage.do(own, ssts(made / "foreign" / cipher))
    bad = contents(copy)
    assert bad != good
    options = {"verify_files": depth, "checksum": True, **CIPHERS[cipher]}
    seen = run("engine", "restore", target.pd_address, f"local://{copy}", options, monkeypatch)
    if damage.found_at(depth):
        assert_refused(seen, target, f"{own[1].name} {damage.says}.*; {REMEDY}")
        assert contents(copy) == bad
    else:
        # The stores find what is no SST any more, or not the one of this range, the comparison finds the rest.
        assert not seen.ok
        assert target.apply(is_as_before)
        if damage.name == "foreign, of the same size" and cipher == "plain":
            assert "the range does not hold the backup's pairs alone" in seen.text
        else:
            assert any(path.name in seen.text for path in own[1:])
            assert REMEDY in seen.text
    # That is all that was wrong: put right, the same job succeeds.
    for name, data in good.items():
        (copy / name).write_bytes(data)
    seen = run("engine", "restore", target.pd_address, f"local://{copy}", options, monkeypatch)
    assert seen.ok, seen.text
    assert held(target) == pairs(0)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(
    ("damage", "depth"),
    [(damage, depth) for damage in DAMAGES[:3:2] for depth in DEPTHS[1:]] + [(DAMAGES[10], "sha256")],
    ids=str,
)
def test_each_face_names_the_file(
    face: str, damage: Damage, depth: str, copy: Path, target: ThreadedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ssts(copy)
    damage.do(own, [])
    seen = run(face, "restore", target.pd_address, f"local://{copy}", {"verify_files": depth}, monkeypatch)
    says = f"the backup in local://{copy} is damaged: .*{own[1].name} {damage.says}.*; {REMEDY}"
    assert face != "command" or "Raw restore failed summary" in seen.text
    assert_refused(seen, target, says)


def test_damage_between_two_tries(copy: Path, target: ThreadedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a backup that is damaged meanwhile is restored on top; put right, the restore goes on."""
    own, good = ssts(copy), contents(copy)

    def restore() -> Seen:
        options = {"checksum": True, "concurrency": 1}
        return run("engine", "restore", target.pd_address, f"local://{copy}", options, monkeypatch)

    flip(own[2], 0.5)
    assert own[2].name in restore().text
    begun, kept = held(target), contents(copy)
    assert begun == pairs(0)[:200]
    own[3].unlink()
    seen = restore()
    assert not seen.ok
    assert f"{own[3].name} is missing; {REMEDY}" in seen.text
    assert changes(seen) == []
    assert held(target) == begun
    assert contents(copy).items() <= kept.items()
    for name, data in good.items():
        (copy / name).write_bytes(data)
    seen = restore()
    assert seen.ok, seen.text
    assert {request.name for request in seen.of(methods.IMPORT_DOWNLOAD)} == {
        str(path.relative_to(copy)) for path in own[2:]
    }
    assert held(target) == pairs(0)


def test_the_ranges_of_the_other_files_can_be_restored(
    copy: Path, target: ThreadedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssts(copy)[1].unlink()
    options = {"checksum": True, "start": b"k/200".hex()}
    seen = run("engine", "restore", target.pd_address, f"local://{copy}", options, monkeypatch)
    assert seen.ok, seen.text
    assert held(target) == pairs(0)[200:]


def test_all_that_is_damaged_is_counted(copy: Path, target: ThreadedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ssts(copy)
    for path in own:
        flip(path, 0.3)
    seen = run("engine", "restore", target.pd_address, f"local://{copy}", {"verify_files": "sha256"}, monkeypatch)
    assert_refused(seen, target, rf"4 of 4 files are wrong: (\S+ {DIGEST}(, )?){{3}} and 1 more; {REMEDY}")


def test_swapped_files_that_share_a_region_are_restored_all_the_same(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is restored into all of the region: it does not matter which of the two comes under which name."""
    own = ssts(copy)
    swap(own[1], own[2])
    options = {"verify_files": "size", "checksum": True}
    with ThreadedCluster(data_dir=tmp_path / "one region", stores=1) as cluster:
        seen = run("engine", "restore", cluster.pd_address, f"local://{copy}", options, monkeypatch)
        assert seen.ok, seen.text
        assert held(cluster) == pairs(0)


def test_a_foreign_file_needs_sha256_or_the_comparison(
    made: Path, copy: Path, target: ThreadedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What docs/operations.md says that nobody finds otherwise."""
    shutil.copy(ssts(made / "foreign" / "plain")[1], ssts(copy)[1])
    seen = run("engine", "restore", target.pd_address, f"local://{copy}", {}, monkeypatch)
    assert seen.ok
    assert held(target) != pairs(0)
    seen = run("engine", "restore", target.pd_address, f"local://{copy}", {"checksum": True}, monkeypatch)
    assert not seen.ok


@pytest.mark.parametrize("golden", [Golden("v1", "full"), Golden("v1", "aes256"), Golden("v2", "full")], ids=str)
def test_no_bit_of_a_real_backup_may_turn_over_unnoticed(
    golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Success means that all is there; some bytes of a file are padding."""
    rnd = random.Random(str(golden))
    truth = [(pair.key, pair.value) for pair in golden.pairs]
    place = tmp_path / "backup"
    shutil.copytree(golden.path, place)
    refused = 0
    for at in range(12):
        path = rnd.choice(sorted(place.rglob("*.sst")))
        good = path.read_bytes()
        # The last bytes tell where the rest is, so they are tried more often.
        spot = rnd.randrange(len(good)) if at % 3 else len(good) - 1 - rnd.randrange(60)
        path.write_bytes(good[:spot] + bytes([good[spot] ^ (1 << rnd.randrange(8))]) + good[spot + 1 :])
        options = {"checksum": True, "verify_files": rnd.choice(DEPTHS[:2]), "resume": False, **golden.crypter}
        with ThreadedCluster(data_dir=tmp_path / f"data {at}", stores=1, api_version=golden.api_version) as cluster:
            seen = run("engine", "restore", cluster.pd_address, f"local://{place}", options, monkeypatch)
            if seen.ok:
                assert held(cluster) == truth
            else:
                refused += 1
                assert path.name in seen.text
            assert cluster.apply(is_as_before)
        path.write_bytes(good)
    assert refused > 6


# --- backupmeta ---


def without_end(place: Path) -> None:
    data = (place / META_NAME).read_bytes()
    (place / META_NAME).write_bytes(data[:-40])


def cut_between_fields(place: Path) -> None:
    meta = read(place)
    for name in ("is_raw_kv", "raw_ranges", "ddls", "br_version", "api_version"):
        meta.ClearField(name)
    (place / META_NAME).write_bytes(meta.SerializeToString())


def losing_an_entry(place: Path) -> None:
    data = bytearray((place / META_NAME).read_bytes())
    data[data.index(b"\x22")] ^= 1 << 6
    (place / META_NAME).write_bytes(data)


def empty(place: Path) -> None:
    (place / META_NAME).write_bytes(b"")


def missing(place: Path) -> None:
    (place / META_NAME).unlink()


def transactional(place: Path) -> None:
    meta = read(place)
    meta.is_raw_kv = False
    (place / META_NAME).write_bytes(meta.SerializeToString())


def named_twice(place: Path) -> None:
    meta = read(place)
    meta.files.append(meta.files[0])
    (place / META_NAME).write_bytes(meta.SerializeToString())


def overlapping(place: Path) -> None:
    meta = read(place)
    meta.files[1].start_key = b"k/050"
    (place / META_NAME).write_bytes(meta.SerializeToString())


def sealed(place: Path) -> None:
    """Encrypted, as far as its name goes, with a bit of its IV turned over."""
    flip(place / META_NAME, 0)


NO_KEY: dict[str, Any] = {}
OTHER = {"crypter_method": "aes256-ctr", "crypter_key": OTHER_KEY}
SHORT = {"crypter_method": "aes128-ctr", "crypter_key": KEY[:32]}
UNREADABLE = f"the {META_NAME} in .* cannot be read: it is damaged, or encrypted; give the cipher and key"
NO_KEY_FITS = f"the {META_NAME} in .* cannot be read with this key: check that cipher and key are those of the backup"
UNUSABLE = f"the {META_NAME} in .* cannot be used: "
AES = CIPHERS["aes"]


def nothing(place: Path) -> None:
    """The backup is whole."""


METAS: list[tuple[str, str, Callable[[Path], None], dict[str, Any], str]] = [
    ("cut", "plain", without_end, {}, UNREADABLE),
    ("cut between fields", "plain", cut_between_fields, {}, UNUSABLE + "its end is missing; put back"),
    ("an entry lost", "plain", losing_an_entry, {}, UNUSABLE + "it is damaged, or newer .*; put back"),
    ("empty", "plain", empty, {}, UNREADABLE),
    ("empty, with a key", "plain", empty, AES, NO_KEY_FITS),
    ("missing", "plain", missing, {}, f"there is no backup in .*: it has no {META_NAME}; check the storage URL"),
    ("transactional", "plain", transactional, {}, "holds transactional data, not raw data: restore it with TiDB's br"),
    ("named twice", "plain", named_twice, {}, UNUSABLE + r"it lists \S+_default.sst twice; put back"),
    ("overlapping", "plain", overlapping, {}, r"is damaged: \S+ holds keys that \S+ holds too; put back"),
    ("a needless key", "plain", nothing, AES, "is not encrypted: leave the cipher and key out"),
    ("no key", "aes", nothing, NO_KEY, UNREADABLE),
    ("another key", "aes", nothing, OTHER, NO_KEY_FITS),
    ("another cipher", "aes", nothing, SHORT, NO_KEY_FITS),
    ("cut, encrypted", "aes", without_end, AES, NO_KEY_FITS),
    ("its IV flipped", "aes", sealed, AES, NO_KEY_FITS + "; if they are, it is damaged"),
]


@pytest.mark.parametrize("job", ["restore", "checksum"])
@pytest.mark.parametrize(("cipher", "damage", "options", "says"), [m[1:] for m in METAS], ids=[m[0] for m in METAS])
def test_a_damaged_backupmeta(
    cipher: str,
    damage: Callable[[Path], None],
    options: dict[str, Any],
    says: str,
    job: str,
    copy: Path,
    target: ThreadedCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    damage(copy)
    bad = contents(copy)
    for face in FACES:
        more = {"verify_files": "off"} if job == "restore" else {}
        if job == "checksum" and face == "operator":
            # A sensor that took it for whole would wait for days.
            more["on_mismatch"] = "fail"
        seen = run(face, job, target.pd_address, f"local://{copy}", {**options, **more}, monkeypatch)
        assert OTHER_KEY not in seen.text
        assert_refused(seen, target, says)
        assert contents(copy) == bad


@pytest.mark.parametrize(("cipher", "damage", "options", "says"), [m[1:] for m in METAS], ids=[m[0] for m in METAS])
def test_a_damaged_backupmeta_is_not_decoded(
    cipher: str,
    damage: Callable[[Path], None],
    options: dict[str, Any],
    says: str,
    copy: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(copy)
    bad = contents(copy)
    more = ["--crypter.method", options["crypter_method"], "--crypter.key", options["crypter_key"]] if options else []
    code = main(["debug", "decode", "--storage", f"local://{copy}", *more])
    said = capsys.readouterr().err
    if damage is overlapping:
        # It looks at the files' names alone.
        assert code == 0
        return
    assert code == 1
    assert re.search(says, said), said
    assert len(said.splitlines()) == 1
    assert contents(copy) == bad


# --- comparing, with files that are damaged ---


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_what_a_comparison_finds(
    face: str, damage: Damage, made: Path, copy: Path, target: ThreadedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks at presence and size of all files, and reads those alone that the wanted range cuts."""
    target.put(pairs(0))
    own = ssts(copy)
    damage.do(own, ssts(made / "foreign" / "plain"))

    def compare(**options: str) -> Seen:
        more = {"on_mismatch": "fail"} if face == "operator" else {}
        seen = run(face, "checksum", target.pd_address, f"local://{copy}", {**options, **more}, monkeypatch)
        assert changes(seen) == []
        assert held(target) == pairs(0)
        return seen

    seen = compare()
    assert seen.ok != damage.found_at("size"), seen.text
    if not seen.ok:
        assert re.search(f"{own[1].name} {damage.says}.*; {REMEDY}", seen.text), seen.text
    seen = compare(start=b"k/101".hex(), end=b"k/102".hex())
    assert not seen.ok
    assert re.search(f"{own[1].name} {damage.says}.*; {REMEDY}", seen.text), seen.text
