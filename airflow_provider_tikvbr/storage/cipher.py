"""How backup files are encrypted: AES in counter mode, or not at all.

An SST is encrypted as a whole, its 16-byte IV stands in the backupmeta. The backupmeta itself starts with its IV.
Neither the method nor the key is recorded anywhere: whoever restores has to give them again. Source: TiKV,
``components/encryption/src/io.rs``; tikv-br, ``pkg/metautil/metafile.go``.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher as AesCipher
from cryptography.hazmat.primitives.ciphers import algorithms, modes

from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.secret_text import show_path

IV_LENGTH = 16
BYTES_AT_ONCE = 4 << 20


class CipherMethod(enum.IntEnum):
    """The numbers of ``encryptionpb.EncryptionMethod``."""

    PLAINTEXT = 1
    AES128_CTR = 2
    AES192_CTR = 3
    AES256_CTR = 4

    @property
    def option(self) -> str:
        """How users write it: ``aes256-ctr``."""
        return self.name.lower().replace("_", "-")

    @property
    def key_length(self) -> int:
        """In bytes."""
        return {"PLAINTEXT": 0, "AES128_CTR": 16, "AES192_CTR": 24, "AES256_CTR": 32}[self.name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cipher:
    """A method and its key.

    :param key: 16, 24 or 32 bytes, as the method asks; empty for plaintext.
    :raises InvalidOptionError: the key's length does not fit the method.
    """

    method: CipherMethod = CipherMethod.PLAINTEXT
    key: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        if len(self.key) != self.method.key_length:
            raise InvalidOptionError(
                f"the key has {len(self.key)} bytes, {self.method.option} takes {self.method.key_length}",
                parameter="crypter_key",
            )

    @classmethod
    def parse(cls, method: str, *, key_hex: str | None = None, key_file: str | None = None) -> Cipher:
        """Read what a user gives.

        :param method: ``plaintext``, ``aes128-ctr``, ``aes192-ctr`` or ``aes256-ctr``, in any case; empty = plaintext.
        :param key_hex: the key in hex digits.
        :param key_file: path of a file that holds them instead.
        :raises InvalidOptionError: unknown method, no key or two of them, an unreadable file, a wrong length.
        """
        name = (method or "plaintext").strip().upper().replace("-", "_")
        if name not in CipherMethod.__members__:
            known = ", ".join(m.option for m in CipherMethod)
            raise InvalidOptionError(f"{method!r} is not a cipher: give one of {known}", parameter="crypter_method")
        wanted = CipherMethod[name]
        if wanted is CipherMethod.PLAINTEXT:
            if key_hex or key_file:
                raise InvalidOptionError(
                    "a key is given, but the method is plaintext: give the method too, such as aes256-ctr",
                    parameter="crypter_method",
                )
            return PLAINTEXT
        if bool(key_hex) == bool(key_file):
            raise InvalidOptionError(
                f"{wanted.option} takes a key or a key file, and exactly one of them", parameter="crypter_key"
            )
        parameter = "crypter_key" if key_hex else "crypter_key_file"
        text = key_hex or _read(key_file or "")
        try:
            raw = bytes.fromhex(text.strip())
        except ValueError:
            # Not chained: the text is the secret.
            raise InvalidOptionError("the key is not made of hex digits", parameter=parameter) from None
        if len(raw) != wanted.key_length:
            raise InvalidOptionError(
                f"{wanted.option} takes a key of {wanted.key_length * 2} hex digits, this one has {len(raw) * 2}",
                parameter=parameter,
            )
        return cls(method=wanted, key=raw)

    @classmethod
    def of_message(cls, info: brpb_pb2.CipherInfo) -> Cipher:
        """Read what a request carries; an unset message means plaintext.

        :raises ValueError: a method that nobody implements here.
        """
        if not info.cipher_type and not info.cipher_key:
            return PLAINTEXT
        return cls(method=CipherMethod(int(info.cipher_type)), key=info.cipher_key)

    @property
    def is_plain(self) -> bool:
        """Whether nothing is encrypted at all."""
        return self.method is CipherMethod.PLAINTEXT

    def message(self) -> brpb_pb2.CipherInfo:
        """What a request carries. Plaintext is said openly: TiKV fails on a message that leaves the method open."""
        return brpb_pb2.CipherInfo(cipher_type=int(self.method), cipher_key=self.key)  # type: ignore[arg-type]

    def encrypt(self, data: bytes, iv: bytes) -> bytes:
        """Encrypt a whole file from its first byte on.

        :param iv: 16 bytes, never used twice with one key.
        """
        if self.is_plain:
            return data
        context = AesCipher(algorithms.AES(self.key), modes.CTR(iv)).encryptor()
        # A single call for a hundred megabytes would hold Python's global lock, and an event loop, for a long time.
        view = memoryview(data)
        parts = [context.update(view[at : at + BYTES_AT_ONCE]) for at in range(0, len(view), BYTES_AT_ONCE)]
        return b"".join([*parts, context.finalize()])

    def decrypt(self, data: bytes, iv: bytes) -> bytes:
        """Undo :meth:`encrypt`. A wrong key gives other bytes, not an error: counter mode has no seal."""
        return self.encrypt(data, iv)


PLAINTEXT = Cipher()


def new_iv() -> bytes:
    """Sixteen fresh random bytes."""
    return os.urandom(IV_LENGTH)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="latin-1")
    except (OSError, ValueError) as error:
        raise InvalidOptionError(
            f"cannot read the key file {show_path(path)}: {getattr(error, 'strerror', None) or 'not a path'}",
            parameter="crypter_key_file",
        ) from None
