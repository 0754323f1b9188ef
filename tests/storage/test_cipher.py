from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.proto import brpb_pb2, encryptionpb_pb2
from airflow_provider_tikvbr.storage.cipher import PLAINTEXT, Cipher, CipherMethod, new_iv

KEY = "2b7e151628aed2a6abf7158809cf4f3c"
IV = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")


def test_the_published_test_vector() -> None:
    # NIST SP 800-38A, F.5.1: CTR-AES128.Encrypt, first block.
    cipher = Cipher.parse("aes128-ctr", key_hex=KEY)
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172a")
    assert cipher.encrypt(plain, IV).hex() == "874d6191b620e3261bef6864990db6ce"
    assert cipher.decrypt(cipher.encrypt(plain, IV), IV) == plain


def test_plaintext_changes_nothing() -> None:
    assert Cipher.parse("") is Cipher.parse("Plaintext") is PLAINTEXT
    assert PLAINTEXT.encrypt(b"abc", IV) == b"abc"
    # TiKV fails on a message that leaves the method open.
    assert PLAINTEXT.message() == brpb_pb2.CipherInfo(cipher_type=encryptionpb_pb2.PLAINTEXT)


@pytest.mark.parametrize(("method", "length"), [("aes128-ctr", 16), ("AES192-CTR", 24), ("aes256_ctr", 32)])
def test_messages_round_trip(method: str, length: int) -> None:
    cipher = Cipher.parse(method, key_hex="ab" * length)
    assert cipher.message().cipher_key == b"\xab" * length
    assert Cipher.of_message(cipher.message()) == cipher


def test_an_unset_message_is_plaintext() -> None:
    assert Cipher.of_message(brpb_pb2.CipherInfo()) == PLAINTEXT


def test_an_unknown_method_in_a_message() -> None:
    with pytest.raises(ValueError, match="5 is not a valid CipherMethod"):
        Cipher.of_message(brpb_pb2.CipherInfo(cipher_type=encryptionpb_pb2.SM4_CTR, cipher_key=b"x" * 16))


def test_a_key_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    assert Cipher.parse("aes128-ctr", key_file=str(tmp_path / "key")) == Cipher.parse("aes128-ctr", key_hex=KEY)


@pytest.mark.parametrize(
    ("method", "key", "file", "parameter", "says"),
    [
        ("aes512-ctr", KEY, "", "crypter_method", "'aes512-ctr' is not a cipher: give one of plaintext, aes128-ctr,"),
        ("plaintext", KEY, "", "crypter_method", "the method is plaintext"),
        ("aes128-ctr", "", "", "crypter_key", "exactly one of them"),
        ("aes128-ctr", KEY, "/file", "crypter_key", "exactly one of them"),
        ("aes256-ctr", KEY, "", "crypter_key", "takes a key of 64 hex digits, this one has 32"),
        ("aes128-ctr", "hunter2", "", "crypter_key", "not made of hex digits"),
        ("aes128-ctr", "", "/no/such/file", "crypter_key_file", "'/no/such/file': No such file"),
        ("aes128-ctr", "", "0123456789abcdef" * 2, "crypter_key_file", "(not shown: it looks like a key"),
    ],
)
def test_refusals_name_the_option_and_hide_the_key(method: str, key: str, file: str, parameter: str, says: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        Cipher.parse(method, key_hex=key or None, key_file=file or None)
    assert caught.value.parameter == parameter
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert KEY not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="the key has 3 bytes, aes128-ctr takes 16"):
        Cipher(method=CipherMethod.AES128_CTR, key=b"abc")


def test_repr_hides_the_key() -> None:
    shown = repr(Cipher.parse("aes128-ctr", key_hex="61" * 16))
    assert "aaaa" not in shown
    assert "6161" not in shown


def test_ivs_differ() -> None:
    assert len({new_iv() for _ in range(8)}) == 8
    assert len(new_iv()) == 16
