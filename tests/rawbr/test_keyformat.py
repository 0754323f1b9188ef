from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.rawbr.keyformat import KeyFormat, parse_key


@pytest.mark.parametrize(
    ("text", "written", "key"),
    [
        ("", "hex", b""),
        ("61fF00", "hex", b"a\xff\x00"),
        ("a\\x61", "raw", b"a\\x61"),
        ("grün", "raw", "grün".encode()),
        ("\udcff", "raw", b"\xff"),
        ("a", " RAW ", b"a"),
        ("", "escaped", b""),
        ("plain", "escaped", b"plain"),
        (r"\x00\xFFz", "escaped", b"\x00\xffz"),
        (r"\000\377\101", "escaped", b"\x00\xff\x41"),
        (r"\a\b\f\n\r\t\v\\\'\"", "escaped", b"\a\b\f\n\r\t\v\\'\""),
        ("ü", "escaped", "ü".encode()),
    ],
)
def test_parse(text: str, written: str, key: bytes) -> None:
    assert parse_key(text, written, parameter="start") == key


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("6", "hex"),
        ("6g", "hex"),
        ("61 62", "hex"),
        ("0x61", "hex"),
        ("６１", "hex"),
        ("\\", "escaped"),
        (r"\q", "escaped"),
        (r"\x6", "escaped"),
        (r"\x+6", "escaped"),
        (r"\xzz", "escaped"),
        (r"\12", "escaped"),
        (r"\400", "escaped"),
        (r"\189", "escaped"),
    ],
)
def test_refuse(text: str, written: str) -> None:
    with pytest.raises(InvalidOptionError, match=f"end .* is not a key in format {written}") as caught:
        parse_key(text, written, parameter="end")
    assert caught.value.parameter == "end"


def test_unknown_format() -> None:
    with pytest.raises(InvalidOptionError, match="'base64' is not a key format: give hex, raw or escaped") as caught:
        parse_key("61", "base64", parameter="start")
    assert caught.value.parameter == "format"


@given(st.binary(max_size=40))
def test_every_key_can_be_written(data: bytes) -> None:
    for kind, text in [
        (KeyFormat.HEX, data.hex()),
        (KeyFormat.RAW, data.decode("utf-8", "surrogateescape")),
        (KeyFormat.ESCAPED, "".join(f"\\x{byte:02x}" for byte in data)),
        (KeyFormat.ESCAPED, "".join(f"\\{byte:03o}" for byte in data)),
    ]:
        assert parse_key(text, kind, parameter="start") == data
