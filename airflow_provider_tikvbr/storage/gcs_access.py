"""Whose credentials are used for Google Cloud Storage, and which of them stores can use too.

tikv-br sends any JSON document that it finds; stores read the key of a service account only, and fail with every other
one (TiKV, ``components/cloud/gcp/src/gcs.rs``). Without a document a store uses its own credentials or none: that depends
on its release.
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google.auth
from google.auth.credentials import AnonymousCredentials, Credentials, with_scopes_if_required
from google.oauth2 import credentials as user_credentials
from google.oauth2 import service_account

from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.secret_text import show_path
from airflow_provider_tikvbr.storage.gcs_location import GcsCredentials, GcsLocation
from airflow_provider_tikvbr.storage.parameters import refused

SCOPES = ("https://www.googleapis.com/auth/devstorage.read_write",)

_ENVIRONMENT = "GOOGLE_APPLICATION_CREDENTIALS"
# What a store has to find in the document.
_STORES_NEED = ("client_email", "private_key", "token_uri")
_REMEDY = (
    "name a service account's key in the storage parameter credentials-file, or set send-credentials-to-tikv to false"
    " if the stores are to use their own"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GcsAccess:
    """The credentials in use.

    :param session: for this process.
    :param document: the JSON document that they were read from; empty if there is none.
    """

    session: Credentials
    document: str = field(default="", repr=False)

    def for_stores(self) -> str:
        """The document to send to the stores; empty if they need none.

        :raises InvalidOptionError: there is none that they can read.
        """
        if isinstance(self.session, AnonymousCredentials):
            return ""
        if not self.document:
            raise InvalidOptionError(
                f"the Google credentials in use are in no JSON document that could be sent to the stores: {_REMEDY}",
                parameter="send_credentials_to_tikv",
            )
        check_for_stores(self.document)
        return self.document


def find_access(
    location: GcsLocation, *, given: GcsCredentials | None, environment_first: bool, no_credentials: bool
) -> GcsAccess:
    """Find the credentials: those given, those named by the environment or the URL, or the machine's own.

    :param environment_first: whether the environment goes before the URL.
    :raises InvalidOptionError: a file or a document of them cannot be read.
    :raises google.auth.exceptions.DefaultCredentialsError: there are none.
    """
    if no_credentials:
        return GcsAccess(session=AnonymousCredentials())  # type: ignore[no-untyped-call]
    if given is not None and given.session is not None:
        return GcsAccess(session=_scoped(given.session))
    if given is not None:
        return _of_document(given.blob, "the document of Google credentials")
    named = (os.environ.get(_ENVIRONMENT, ""), f"the file of Google credentials that {_ENVIRONMENT} names")
    of_url = (location.credentials_file, "the storage parameter credentials-file")
    for path, what in (named, of_url) if environment_first else (of_url, named):
        if path:
            return _of_document(_read(path, what), f"{what}, {path},")
    if _gcloud_file().is_file():
        path = str(_gcloud_file())
        return _of_document(_read(path, "gcloud's file"), f"gcloud's file {path}")
    session, _ = google.auth.default(scopes=SCOPES)
    return GcsAccess(session=session)


def check_for_stores(document: str) -> None:
    """Refuse a document that no store can use.

    :raises InvalidOptionError: it is not the key of a service account.
    """
    info = _parsed(document, "the document of Google credentials")
    if all(isinstance(info.get(name), str) for name in _STORES_NEED):
        return
    raise InvalidOptionError(
        f"Google credentials of the kind {str(info.get('type') or 'unknown')!r} are of no use to the stores, which read"
        f" a service account's key only: {_REMEDY}",
        parameter="send_credentials_to_tikv",
    )


def _gcloud_file() -> Path:
    """Where ``gcloud auth application-default login`` keeps what it makes."""
    folder = os.environ.get("CLOUDSDK_CONFIG") or Path.home() / ".config" / "gcloud"
    return Path(folder, "application_default_credentials.json")


def _read(path: str, what: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        reason = "does not exist"
    except UnicodeDecodeError:
        reason = "is no JSON document"
    except (OSError, ValueError) as error:
        reason = f"cannot be read ({getattr(error, 'strerror', None) or 'no such path'})"
    raise refused(
        f"{what} is {show_path(path)}, which {reason}: name a service account's key on this machine"
    ) from None


def _parsed(document: str, what: str) -> dict[str, Any]:
    try:
        info = json.loads(document)
    except ValueError:
        info = None
    if not isinstance(info, dict):
        # Nothing of it is shown: it may be the key itself.
        raise refused(f"{what} is no JSON document: give the key of a service account as Google's console makes it")
    return info


def _of_document(document: str, what: str) -> GcsAccess:
    info = _parsed(document, what)
    kind = info.get("type") or "service_account"
    try:
        if kind == "service_account":
            session = service_account.Credentials.from_service_account_info(info, scopes=SCOPES)  # type: ignore[no-untyped-call]
        elif kind == "authorized_user":
            session = user_credentials.Credentials.from_authorized_user_info(info, scopes=SCOPES)  # type: ignore[no-untyped-call]
        else:
            with warnings.catch_warnings():
                # The library warns of documents of strangers; the user named this one.
                warnings.simplefilter("ignore", DeprecationWarning)
                session, _ = google.auth.load_credentials_from_dict(info, scopes=SCOPES)  # type: ignore[no-untyped-call]
    except Exception:  # what the libraries below raise for a bad key is of many kinds, and may quote it
        raise refused(
            f"{what} holds no usable Google credentials: download the key of the service account again"
        ) from None
    return GcsAccess(session=session, document=document)


def _scoped(session: Credentials) -> Credentials:
    scoped: Credentials = with_scopes_if_required(session, SCOPES)  # type: ignore[no-untyped-call]
    return scoped
