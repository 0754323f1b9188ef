"""A store's HTTP status server: its configuration, the only place that tells a cluster's API version.

Source: TiKV, ``src/server/status_server`` and ``src/storage/config.rs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from airflow_provider_tikvbr.exceptions import AuthenticationError, ProtocolError, StoreUnavailableError
from airflow_provider_tikvbr.tikv.addresses import NO_ADDRESS_MAP, AddressMap
from airflow_provider_tikvbr.tikv.certificates import Certificates
from airflow_provider_tikvbr.tikv.http import http_client, is_tls_failure
from airflow_provider_tikvbr.tikv.keys import ApiVersion
from airflow_provider_tikvbr.tikv.model import Store
from airflow_provider_tikvbr.tikv.options import TlsOptions
from airflow_provider_tikvbr.tikv.security import Greeting, diagnose

TIMEOUT_S = 5.0
DIAGNOSIS_S = 2.0
ANY_HOST = ("0.0.0.0", "[::]", "")  # noqa: S104 - what stores advertise by mistake, not what we listen on


async def store_api_version(
    store: Store,
    tls: Certificates | TlsOptions | None,
    *,
    timeout_s: float = TIMEOUT_S,
    address_map: AddressMap = NO_ADDRESS_MAP,
) -> ApiVersion:
    """Ask a store for its API version.

    :param store: the store, as PD describes it.
    :param tls: certificates; None means a plain connection.
    :param timeout_s: time limit of each step, in seconds.
    :param address_map: where to reach the store's address.
    :raises StoreUnavailableError: its status server does not answer, or is switched off.
    :raises AuthenticationError: TLS on one side only, or a certificate is refused.
    :raises ProtocolError: it answers something else than its configuration.
    """
    config = await store_config(store, tls, timeout_s=timeout_s, address_map=address_map)
    try:
        return api_version_of(config)
    except ValueError as err:
        raise ProtocolError(
            f"{_name(store, address_map)} does not tell its API version: {err}", **_fields(store)
        ) from err


async def store_config(
    store: Store,
    tls: Certificates | TlsOptions | None,
    *,
    timeout_s: float = TIMEOUT_S,
    address_map: AddressMap = NO_ADDRESS_MAP,
) -> dict[str, Any]:
    """Ask a store for its whole configuration.

    :param store: the store, as PD describes it.
    :param tls: certificates; None means a plain connection.
    :param timeout_s: time limit of each step, in seconds.
    :param address_map: where to reach the store's address.
    :raises StoreUnavailableError: its status server does not answer, or is switched off.
    :raises AuthenticationError: TLS on one side only, or a certificate is refused.
    :raises ProtocolError: it answers something else than its configuration.
    """
    if not store.status_address:
        raise StoreUnavailableError(
            f"store {store.id} ({store.address}) tells PD no address of its status server: set server.status-addr in its"
            " configuration",
            store_id=store.id,
            address=store.address,
        )
    who, fields = _name(store, address_map), _fields(store)
    certificates = Certificates.of(tls)
    scheme = "https" if certificates.current() else "http"
    async with http_client(certificates, timeout_s=timeout_s, address_map=address_map) as client:
        try:
            response = await client.get(f"{scheme}://{status_address(store)}/config")
        except httpx.HTTPError as err:
            # HTTP's errors do not tell a closed port from one that speaks TLS where we do not.
            reason = await diagnose(
                address_map.target(status_address(store)),
                certificates.current(),
                timeout_s=min(DIAGNOSIS_S, timeout_s),
                greeting=Greeting.HTTP,
                who=who,
            )
            if reason is not None:
                raise reason from err
            if is_tls_failure(err):
                raise AuthenticationError(f"{who} and this client do not agree on TLS: {err}", **fields) from err
            raise StoreUnavailableError(f"{who} does not answer: {str(err) or type(err).__name__}", **fields) from err
    fields["code"] = str(response.status_code)
    if response.status_code in (401, 403):
        raise AuthenticationError(f"{who} does not let us read its configuration: {response.status_code}", **fields)
    if response.status_code >= 500 or response.status_code == 429:
        raise StoreUnavailableError(f"{who} failed: {response.status_code}", **fields)
    try:
        config = response.json() if response.status_code == 200 else None
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise ProtocolError(f"{who} answers something else than a TiKV configuration", **fields)
    return config


def status_address(store: Store) -> str:
    """Where the status server is; a store that advertises no host, or any host, is where its clients reach it."""
    host, _, port = store.status_address.rpartition(":")
    return f"{store.address.rpartition(':')[0]}:{port}" if host in ANY_HOST else store.status_address


def api_version_of(config: Mapping[str, Any]) -> ApiVersion:
    """Read the API version from a store's configuration.

    :raises ValueError: the configuration has none, or one that does not exist.
    """
    storage = config.get("storage")
    if not isinstance(storage, dict):
        raise ValueError("the answer is not a TiKV configuration")
    number, ttl = storage.get("api-version", 1), storage.get("enable-ttl", False)
    if number in (0, 1):
        # Stores before 6.1 know no api-version; 0 is an unset one.
        return ApiVersion.V1TTL if ttl is True else ApiVersion.V1
    if number == 2:
        return ApiVersion.V2
    raise ValueError(f"storage.api-version is {number!r}")


def _name(store: Store, address_map: AddressMap) -> str:
    target = address_map.target(status_address(store))
    where = f"at {target}" if target.is_mapped else f"({target})"
    return f"the status server of store {store.id} {where}"


def _fields(store: Store) -> dict[str, Any]:
    return {"store_id": store.id, "address": status_address(store), "method": "GET /config"}
