"""What the HTTP clients of PD and of the stores share."""

from __future__ import annotations

import ssl

import httpx

from airflow_provider_tikvbr.tikv.options import TlsOptions
from airflow_provider_tikvbr.tikv.security import ssl_context


def http_client(tls: TlsOptions | None, *, timeout_s: float) -> httpx.AsyncClient:
    """A client for a cluster's HTTP services. Make it inside the running loop and close it.

    :param tls: certificates; None means plain connections.
    :param timeout_s: time limit of each step of a request, in seconds.
    """
    # Without trust_env=False a proxy or a CA bundle from the environment would get in between.
    return httpx.AsyncClient(
        verify=ssl_context(tls) if tls else False,
        timeout=timeout_s,
        trust_env=False,
        follow_redirects=True,
    )


def is_tls_failure(err: BaseException | None) -> bool:
    """Whether a request failed because the two sides do not agree on TLS or on certificates."""
    while err is not None:
        if isinstance(err, ssl.SSLError) and not isinstance(err, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            return True
        err = err.__cause__ or err.__context__
    return False
