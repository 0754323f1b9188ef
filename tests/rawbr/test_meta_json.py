from __future__ import annotations

import hashlib
import json

import pytest

from airflow_provider_tikvbr.exceptions import BackupInvalidError, InvalidOptionError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr.meta_json import decode_json, encode_json, show_field
from tests.support.golden import ROOT


def test_the_files_are_printed_as_tikv_br_prints_them() -> None:
    meta = brpb_pb2.BackupMeta.FromString((ROOT / "v2" / "range" / "backupmeta").read_bytes())
    # the digest of what tikv-br wrote
    assert hashlib.md5(f"{show_field(meta, 'Files')}\n".encode()).hexdigest() == "016ef931b4589ef578271e4cd7eee89e"


def test_quotes_and_control_characters_of_a_field() -> None:
    keys = brpb_pb2.RawRange(start_key=b"\"\\'\n\r\t\x7f\xff", cf="ü")
    shown = show_field(brpb_pb2.BackupMeta(raw_ranges=[keys]), "RawRanges")
    assert shown == r'[start_key:"\"\\' + r"'\n\r\t\177\377" + r'" cf:"\303\274" ]'


def test_text_that_go_escapes() -> None:
    meta = brpb_pb2.BackupMeta(br_version='a<b>&c\u2028\n"ü', cluster_id=2**64 - 1, is_raw_kv=True)
    said = encode_json(meta)
    assert said.decode() == (
        r'{"cluster_id":18446744073709551615,"br_version":"a\u003cb\u003e\u0026c\u2028\n\"ü","is_raw_kv":true}'
    )
    assert decode_json(said) == meta


def test_an_index_that_is_not_resolved_survives() -> None:
    meta = brpb_pb2.BackupMeta(version=1, api_version=2)  # type: ignore[arg-type]
    meta.file_index.meta_files.append(brpb_pb2.File(name="m", sha256=b"\x01\x02", start_key=b"k"))
    said = encode_json(meta)
    # below the first level Go writes bytes in its own way
    assert json.loads(said)["file_index"] == {"meta_files": [{"name": "m", "sha256": "AQI=", "start_key": "aw=="}]}
    assert decode_json(said) == meta


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "backupmeta.json is not JSON: "),
        ("[]", "backupmeta.json holds no object"),
        ('{"schemas":[{"db":{}}]}', "has the field schemas, which no backup of raw data has"),
        ('{"files":[{"name":"a"},{"start_key":"6"}]}', r"a value that files\[1\].start_key cannot have"),
        ('{"files":[{"cipher_iv":"%"}]}', r"a value that files\[0\].cipher_iv cannot have"),
        ('{"cluster_id":"one"}', "a value that cluster_id cannot have"),
        ('{"cluster_id":-1}', "a value that cluster_id cannot have"),
        ('{"files":5}', "a value that files cannot have"),
        ('{"files":["x"]}', "a value that files cannot have"),
    ],
)
def test_wrong_json_is_told_by_its_place(text: str, sentence: str) -> None:
    with pytest.raises(BackupInvalidError, match=sentence):
        decode_json(text.encode())


def test_a_field_goes_by_the_name_it_has_in_go() -> None:
    assert show_field(brpb_pb2.BackupMeta(cluster_id=5), "ClusterId") == "5"
    with pytest.raises(InvalidOptionError, match="'cluster_id' is not known: give start-version") as caught:
        show_field(brpb_pb2.BackupMeta(), "cluster_id")
    assert caught.value.parameter == "field"


def test_ddls_stand_as_what_they_are() -> None:
    meta = brpb_pb2.BackupMeta(ddls=b'[{"a": 1}]', version=1)
    assert encode_json(meta) == b'{"ddls":[{"a":1}],"version":1}'
    assert decode_json(encode_json(meta)).ddls == b'[{"a":1}]'
    assert encode_json(brpb_pb2.BackupMeta(version=1)) == b'{"version":1}'
    with pytest.raises(BackupInvalidError, match="its DDLs are not JSON"):
        encode_json(brpb_pb2.BackupMeta(ddls=b"["))
