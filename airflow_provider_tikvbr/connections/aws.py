"""What a connection such as one of Airflow's type ``aws`` says of S3.

With the Amazon provider installed its hook reads the connection, so that everything works as in Amazon's operators: every
way to assume a role, session factories, per-service endpoints. Without it, the fields that need no more than boto3 are
read here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from airflow_provider_tikvbr.connections import StorageAccess
from airflow_provider_tikvbr.exceptions import AuthenticationError, InvalidOptionError
from airflow_provider_tikvbr.masking import mask
from airflow_provider_tikvbr.storage.s3_location import S3Credentials

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

# "s3" and "generic" are what connections to other makers' services are often called.
_TYPES = ("aws", "s3", "generic")
_READ = frozenset(
    {
        "assume_role_kwargs",
        "assume_role_method",
        "aws_access_key_id",
        "aws_secret_access_key",
        "aws_session_token",
        "config_kwargs",
        "endpoint_url",
        "external_id",
        "profile_name",
        "region_name",
        "role_arn",
        "service_config",
        "verify",
    }
)
# How the names of the fields begin that the provider reads besides.
_READ_BY_PROVIDER = ("assume_role_with_", "session_kwargs")
# A role that is assumed with these only is the same one when a store assumes it: how long it lasts and what its sessions
# are called change nothing in what it may do.
_PLAIN_ROLE = frozenset({"ExternalId", "RoleSessionName", "DurationSeconds"})


def access(conn: Connection, conn_id: str) -> StorageAccess:
    """Read the connection.

    :raises InvalidOptionError: it is of another type, or cannot be read.
    """
    if conn.conn_type and conn.conn_type not in _TYPES:
        raise InvalidOptionError(
            f"storage_conn_id names connection {conn_id}, which is of type {conn.conn_type}: S3 takes one of type aws",
            parameter="storage_conn_id",
        )
    extra = _extra(conn)
    keys = _keys(conn, extra)
    for secret in (*keys, str(extra["assume_role_kwargs"].get("ExternalId") or "")):
        mask(secret)
    session = _session_of_provider(conn_id, extra, keys)
    role = str(extra.get("role_arn") or "")
    plain = extra.get("assume_role_method", "assume_role") == "assume_role" and (
        extra["assume_role_kwargs"].keys() <= _PLAIN_ROLE
    )
    if session is None and role and not plain:
        raise InvalidOptionError(
            f"storage_conn_id names connection {conn_id}, whose way to assume its role takes Amazon's provider:"
            " pip install apache-airflow-providers-amazon",
            parameter="storage_conn_id",
        )
    config, verify = _config(extra, conn_id), extra.get("verify")
    credentials = S3Credentials(
        access_key=keys[0],
        secret_access_key=keys[1],
        session_token=keys[2],
        profile="" if keys[0] else str(extra.get("profile_name") or ""),
        role_arn=role if plain else "",
        external_id=str(extra["assume_role_kwargs"].get("ExternalId") or "") if plain else "",
        session=session,
        owns_credentials=bool(role) and not plain,
        # A connection written as a URI has nothing but text.
        verify={"true": True, "false": False}.get(str(verify).lower(), verify),
        config=config,
    )
    return StorageAccess(
        credentials=credentials,
        parameters=_parameters(extra, config),
        unread=_unread(extra, by_provider=session is not None),
    )


def _extra(conn: Connection) -> dict[str, Any]:
    """The extra of the connection; one that is no object is none."""
    extra = dict(conn.extra_dejson) if isinstance(conn.extra_dejson, Mapping) else {}
    for field in ("assume_role_kwargs", "config_kwargs", "service_config"):
        extra[field] = dict(extra[field]) if isinstance(extra.get(field), Mapping) else {}
    # Amazon's provider knew it by this name once, and connections of that time still have it.
    if extra.get("external_id"):
        extra["assume_role_kwargs"].setdefault("ExternalId", extra["external_id"])
    return extra


def _keys(conn: Connection, extra: Mapping[str, Any]) -> tuple[str, str, str]:
    token = str(extra.get("aws_session_token") or "")
    if conn.login and conn.password:
        return conn.login, conn.password, token
    access, secret = extra.get("aws_access_key_id"), extra.get("aws_secret_access_key")
    if access and secret:
        return str(access), str(secret), token
    return "", "", ""


def _session_of_provider(
    conn_id: str, extra: dict[str, Any], keys: tuple[str, str, str]
) -> Callable[[str], Any] | None:
    """What makes boto3 sessions as the Amazon provider does; None if it is not installed."""
    try:
        from airflow.providers.amazon.aws.hooks.base_aws import AwsGenericHook
        from airflow.providers.amazon.aws.utils.connection_wrapper import AwsConnectionWrapper
    except ImportError:
        return None
    try:
        # Not by the hook: it would look the connection up again, and go on with the machine's credentials if that fails.
        read = AwsConnectionWrapper.from_connection_metadata(
            conn_id=conn_id, login=keys[0] or None, password=keys[1] or None, extra=extra
        )
    except Exception as error:
        # Its texts may quote the extra.
        raise _unreadable(conn_id, error) from None
    hook: Any = AwsGenericHook(aws_conn_id=conn_id, client_type="s3")
    hook.conn_config = read

    def session(region: str) -> Any:
        try:
            return hook.get_session(region_name=region)
        except (BotoCoreError, ClientError):
            raise
        except Exception as error:
            raise AuthenticationError(
                f"storage_conn_id names connection {conn_id}, of which Amazon's provider makes no session"
                f" ({type(error).__name__}): check the role and its method in the extra"
            ) from None

    return session


def _unread(extra: Mapping[str, Any], *, by_provider: bool) -> tuple[str, ...]:
    own = _READ_BY_PROVIDER if by_provider else ()
    return tuple(sorted(field for field in map(str, extra) if field not in _READ and not field.startswith(own)))


def _config(extra: Mapping[str, Any], conn_id: str) -> Any:
    options = dict(extra["config_kwargs"])
    if not options:
        return None
    if options.get("signature_version") == "unsigned":
        options["signature_version"] = UNSIGNED
    try:
        return Config(**options)
    except (BotoCoreError, TypeError, ValueError) as error:
        raise _unreadable(conn_id, error) from None


def _parameters(extra: Mapping[str, Any], config: Any) -> str:
    """What the connection says of the service, as parameters of a storage URL: the stores have to know it as well."""
    of_s3 = extra["service_config"].get("s3")
    of_s3 = of_s3 if isinstance(of_s3, Mapping) else {}
    style = ((config.s3 or {}) if config is not None else {}).get("addressing_style")
    told = {
        "endpoint": of_s3.get("endpoint_url", extra.get("endpoint_url")),
        "region": extra.get("region_name"),
        "force-path-style": {"path": "true", "virtual": "false"}.get(str(style)),
    }
    return "&".join(f"{name}={quote(str(value), safe='')}" for name, value in told.items() if value)


def _unreadable(conn_id: str, error: Exception) -> InvalidOptionError:
    return InvalidOptionError(
        f"storage_conn_id names connection {conn_id}, whose extra cannot be read as one of type aws"
        f" ({type(error).__name__}): correct its fields",
        parameter="storage_conn_id",
    )
