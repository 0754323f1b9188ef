"""Who this process is to S3, and who the stores are told to be.

The order: an Airflow connection; the environment, where it goes first; the storage URL; what the machine has.

"The environment" are the variables that somebody set to be used: ``AWS_ACCESS_KEY_ID`` with its fellows, or
``AWS_PROFILE``. What a platform gives its machines (a web identity, the role of a container or an instance) and the
default profile come last, behind keys that somebody wrote into the URL: that is boto3's default chain.

A role is assumed on top of these. TiKV can do so itself (``components/cloud/aws/src/s3.rs``): with the keys that it is
sent, or its own if none, at the STS of the bucket's region. So the stores are told the role, and never the keys that
came of it here, which would end with the hour. A profile is for this machine: no TiKV up to 9.0 reads that field, so what
it leads to is sent instead.
"""

from __future__ import annotations

import os
import uuid
from typing import Any

import boto3
import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.credentials import (
    AssumeRoleCredentialFetcher,
    CredentialProvider,
    CredentialResolver,
    DeferredRefreshableCredentials,
    RefreshableCredentials,
)
from botocore.exceptions import ClientError, NoCredentialsError

from airflow_provider_tikvbr.storage.parameters import refused
from airflow_provider_tikvbr.storage.s3_location import S3Credentials, S3Location

CONNECTION = "the connection"
ENVIRONMENT = "the environment"
URL = "the storage URL"
MACHINE = "the machine"
NOBODY = "nobody"

_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_DEFAULT_PROFILE")
_STS_OPTIONS: dict[str, Any] = {
    "connect_timeout": 10,
    "read_timeout": 30,
    "retries": {"mode": "standard"},
    "ignore_configured_endpoint_urls": True,
}


class S3Identity:
    """Chooses among the credentials there are, and opens sessions with them.

    :param given: what a connection says.
    :param environment_first: whether the environment goes before the URL.
    :param no_credentials: be nobody, whatever there is.
    :raises InvalidOptionError: the connection and the URL name different roles.
    """

    def __init__(
        self,
        *,
        location: S3Location,
        given: S3Credentials | None = None,
        environment_first: bool = False,
        no_credentials: bool = False,
    ) -> None:
        self._location = location
        self._given = given or S3Credentials()
        self.source = NOBODY if no_credentials or self._is_unsigned() else self._choose(environment_first)
        named = self._given.role_arn
        if named and location.role_arn not in ("", named):
            raise refused("the connection and the storage URL name different roles: keep one of them")
        self._role = (named, self._given.external_id) if named else (location.role_arn, location.external_id)
        # Both are made on first use: see S3Storage.
        self._base: Any = None
        self._own: Any = None

    @property
    def anonymous(self) -> bool:
        """Whether requests are not signed."""
        return self.source == NOBODY

    @property
    def passes_over_url(self) -> bool:
        """Whether the URL has keys that are not used."""
        return self._location.credentials is not None and self.source != URL

    @property
    def role_arn(self) -> str:
        """The role that the stores assume; empty if they are to be what they are sent."""
        return "" if self.anonymous else self._role[0]

    @property
    def external_id(self) -> str:
        """What the role's owner wants to hear."""
        return "" if self.anonymous else self._role[1]

    def session(self) -> Any:
        """A boto3 session of this process; not for several threads at first.

        :raises botocore.exceptions.BotoCoreError: the credentials cannot be had.
        """
        if self._own is None:
            self._own = self._open()
        return self._own

    def keys_for_stores(self) -> S3Credentials | None:
        """The keys of now, which may be temporary ones.

        :return: None if the stores have to use their own: there are no keys, or a role is to be assumed and the keys for
            that would end before the job.
        """
        if self.anonymous:
            return None
        session = self.session()
        found = (self._base if self._role[0] else session).get_credentials()
        if found is None or (self._role[0] and isinstance(found, RefreshableCredentials)):
            return None
        frozen = found.get_frozen_credentials()
        return S3Credentials(
            access_key=frozen.access_key, secret_access_key=frozen.secret_key, session_token=frozen.token or ""
        )

    def _is_unsigned(self) -> bool:
        config = self._given.config
        return config is not None and config.signature_version is UNSIGNED

    def _choose(self, environment_first: bool) -> str:
        if self._given.names_any:
            return CONNECTION
        environment = any(os.environ.get(name) for name in _VARIABLES)
        if environment and environment_first:
            return ENVIRONMENT
        if self._location.credentials is not None or self._location.profile:
            return URL
        return ENVIRONMENT if environment else MACHINE

    def _open(self) -> Any:
        region = self._location.region
        keys, profile = S3Credentials(), ""
        if self.source == CONNECTION:
            keys, profile = self._given, self._given.profile
        elif self.source == URL:
            keys, profile = self._location.credentials or keys, self._location.profile
        self._base = boto3.session.Session(
            aws_access_key_id=keys.access_key or None,
            aws_secret_access_key=keys.secret_access_key or None,
            aws_session_token=keys.session_token or None,
            profile_name=None if keys.access_key else profile or None,
            region_name=region,
        )
        if self.anonymous:
            return self._base
        if self._given.session is not None and self.source in (CONNECTION, MACHINE):
            session = self._given.session(region)
            if self._given.role_arn or not self._role[0]:
                return session
            self._base = session
        role, external_id = self._role
        return assume_role(self._base, role, external_id=external_id, region=region) if role else self._base


class _Fixed(CredentialProvider):
    """Credentials that a session is given, under botocore's name for their kind."""

    METHOD = "assume-role"
    CANONICAL_NAME = "AssumeRole"

    def __init__(self, credentials: Any) -> None:
        super().__init__()
        self._credentials = credentials

    def load(self) -> Any:
        """The credentials."""
        return self._credentials


def assume_role(base: Any, role_arn: str, *, external_id: str, region: str) -> Any:
    """A boto3 session that assumes a role, and does so again before its keys end.

    The STS is the one of the region, unless ``AWS_ENDPOINT_URL_STS`` names another: unlike the bucket's, this endpoint
    matters to this process only. Nothing is asked yet.

    :param base: the boto3 session whose credentials may assume it.
    :raises botocore.exceptions.NoCredentialsError: it has none.
    """
    source = base.get_credentials()
    if source is None:
        raise NoCredentialsError

    def client(service: str, **keys: Any) -> Any:
        return base.client(
            service,
            region_name=region,
            endpoint_url=os.environ.get("AWS_ENDPOINT_URL_STS") or None,
            config=Config(**_STS_OPTIONS),
            **keys,
        )

    # Every session of a role has a name, which the role's owner finds in the audit log.
    extra = {
        "RoleSessionName": f"tikvbr-{uuid.uuid4().hex[:16]}",
        **({"ExternalId": external_id} if external_id else {}),
    }
    fetcher = AssumeRoleCredentialFetcher(client, source, role_arn, extra_args=extra)

    def refresh() -> Any:
        try:
            return fetcher.fetch_credentials()
        except ClientError as error:
            # botocore logs it, and the server's text may quote what was signed.
            said = error.response.get("Error", {})
            bare: Any = {**error.response, "Error": {"Code": said.get("Code", ""), "Message": ""}}
            raise ClientError(bare, error.operation_name) from None

    fresh = DeferredRefreshableCredentials(refresh_using=refresh, method=_Fixed.METHOD)
    core = botocore.session.Session()
    core.register_component("credential_provider", CredentialResolver([_Fixed(fresh)]))
    return boto3.session.Session(botocore_session=core, region_name=region)
