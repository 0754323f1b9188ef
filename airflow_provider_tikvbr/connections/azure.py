"""What a connection of Airflow's type ``wasb`` says of Azure Blob Storage.

The fields and their order are those of the Microsoft provider's hook. Keys and signatures are read here, as the stores
need them too; an identity is made by that hook if it is installed, and by azure-identity otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from airflow_provider_tikvbr.connections import StorageAccess
from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.masking import mask, signatures
from airflow_provider_tikvbr.storage.azure_location import AzureCredentials

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

_TYPES = ("wasb", "generic")
_READ = frozenset(
    {
        "account_key",
        "client_secret_auth_config",
        "connection_string",
        "managed_identity_client_id",
        "sas_token",
        "shared_access_key",
        "tenant_id",
        "workload_identity_tenant_id",
    }
)
# The form of the connection has put this before each name once.
_PREFIX = "extra__wasb__"
_SUFFIX = "core.windows.net"


def access(conn: Connection, conn_id: str) -> StorageAccess:
    """Read the connection.

    :raises InvalidOptionError: it is of another type, or cannot be read.
    """
    if conn.conn_type and conn.conn_type not in _TYPES:
        raise InvalidOptionError(
            f"storage_conn_id names connection {conn_id}, which is of type {conn.conn_type}: Azure takes one of type wasb",
            parameter="storage_conn_id",
        )
    raw: Mapping[str, Any] = conn.extra_dejson if isinstance(conn.extra_dejson, Mapping) else {}
    extra = {str(name).removeprefix(_PREFIX): value for name, value in raw.items() if value}
    for name in ("account_key", "connection_string", "sas_token", "shared_access_key"):
        mask(str(extra.get(name) or ""))
    mask(conn.password or "")
    credentials, endpoint = _read(conn, extra, conn_id)
    if not credentials.secret:
        credentials = AzureCredentials(account_name=credentials.account_name, token=_identity(conn, extra, conn_id))
    for secret in (credentials.shared_key, credentials.sas_token, *signatures(credentials.sas_token)):
        mask(secret)
    found = {"endpoint": endpoint, "account-name": credentials.account_name}
    return StorageAccess(
        credentials=credentials,
        parameters="&".join(f"{name}={quote(value, safe='')}" for name, value in found.items() if value),
        unread=tuple(sorted(extra.keys() - _READ)),
    )


def _read(conn: Connection, extra: Mapping[str, Any], conn_id: str) -> tuple[AzureCredentials, str]:
    """The key or the signature if there is one, and the endpoint if it is not the account's own."""
    text = str(extra.get("connection_string") or "")
    if text:
        return _of_connection_string(text, conn_id)
    sas, tenant = str(extra.get("sas_token") or ""), extra.get("tenant_id")
    key = extra.get("shared_access_key")
    if not key and not sas:
        key = conn.password or extra.get("account_key")
    host = conn.host or ""
    if sas.startswith("https") and not tenant and not key:
        host, _, sas = sas.partition("?")
    # With a tenant, login and password are those of an application.
    account, endpoint = _place(host, "" if tenant else conn.login or "")
    if tenant:
        return AzureCredentials(account_name=account), endpoint
    if key:
        return AzureCredentials(account_name=account, shared_key=str(key)), endpoint
    return AzureCredentials(account_name=account, sas_token=sas.lstrip("?")), endpoint


def _of_connection_string(text: str, conn_id: str) -> tuple[AzureCredentials, str]:
    pairs = (part.partition("=") for part in text.strip().split(";") if part.strip())
    found = {name.strip().lower(): value.strip() for name, _, value in pairs}
    account = found.get("accountname", "")
    suffix, scheme = found.get("endpointsuffix", _SUFFIX), found.get("defaultendpointsprotocol", "https")
    host = found.get("blobendpoint") or (f"{scheme}://{account}.blob.{suffix}" if account else "")
    named, endpoint = _place(host, account)
    credentials = AzureCredentials(
        account_name=account or named,
        shared_key=found.get("accountkey", ""),
        sas_token=found.get("sharedaccesssignature", "").lstrip("?"),
    )
    if not credentials.account_name or not credentials.secret:
        raise InvalidOptionError(
            f"storage_conn_id names connection {conn_id}, whose connection_string has no AccountName with an AccountKey or a"
            " SharedAccessSignature: copy it from the portal of Azure",
            parameter="storage_conn_id",
        )
    return credentials, endpoint


def _place(host: str, login: str) -> tuple[str, str]:
    """The account that a URL names, or else the login; and the URL, if it is not the account's own."""
    try:
        parts = urlsplit(host if "://" in host else f"https://{host}")
        name = parts.hostname or ""
    except ValueError:
        name = ""
    if "." not in name and name != "localhost":
        return login, ""
    endpoint = f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")
    account, of_azure, _ = name.partition(".blob.")
    if not of_azure:
        # Servers that are not Azure's have the account in the path.
        account = login or parts.path.strip("/")
    return account, "" if endpoint == f"https://{account}.blob.{_SUFFIX}" else endpoint


def _identity(conn: Connection, extra: Mapping[str, Any], conn_id: str) -> Any:
    """What gets tokens: for the application or the machine that the connection names."""
    tenant = extra.get("tenant_id")
    if tenant and not (conn.login and conn.password):
        raise InvalidOptionError(
            f"storage_conn_id names connection {conn_id}, which has a tenant_id but no login and password: give the"
            " application's client id and secret there",
            parameter="storage_conn_id",
        )
    try:
        return _identity_of_provider(conn, conn_id) or _own_identity(conn, extra)
    except ModuleNotFoundError:
        raise InvalidOptionError(
            f"storage_conn_id names connection {conn_id}, for which a library is missing:"
            " pip install 'airflow-provider-tikvbr[azure]'",
            parameter="storage_conn_id",
        ) from None
    except (TypeError, ValueError) as error:
        # Its texts may quote the extra.
        raise InvalidOptionError(
            f"storage_conn_id names connection {conn_id}, whose identity cannot be read ({type(error).__name__}):"
            " check tenant_id, login, password, host and the extra",
            parameter="storage_conn_id",
        ) from None


def _identity_of_provider(conn: Connection, conn_id: str) -> Any:
    """As the Microsoft provider makes it; None if that is not installed."""
    try:
        from airflow.providers.microsoft.azure.hooks.wasb import WasbHook
    except ImportError:
        return None

    class Hook(WasbHook):
        """Reads the connection that was found already."""

        @classmethod
        def get_connection(cls, conn_id: str) -> Any:
            return conn

    client = Hook(wasb_conn_id=conn_id).get_conn()
    try:
        return client.credential
    finally:
        client.close()


def _own_identity(conn: Connection, extra: Mapping[str, Any]) -> Any:
    from azure.identity import ClientSecretCredential, DefaultAzureCredential

    if extra.get("tenant_id"):
        settings = extra.get("client_secret_auth_config")
        return ClientSecretCredential(
            str(extra["tenant_id"]),
            str(conn.login),
            str(conn.password),
            **(settings if isinstance(settings, dict) else {}),
        )
    names = ("managed_identity_client_id", "workload_identity_tenant_id")
    given: dict[str, Any] = {name: str(extra[name]) for name in names if extra.get(name)}
    if "workload_identity_tenant_id" in given:
        given["additionally_allowed_tenants"] = [given["workload_identity_tenant_id"]]
    return DefaultAzureCredential(**given)
