"""The placement driver's HTTP API: version, region count, schedulers and schedule limits.

PD serves HTTP on the same port as gRPC; a member that does not lead passes requests on to the leader. Source: PD,
``server/api``; what PD 9 was seen to answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_from_bytes

import httpx

from airflow_provider_tikvbr.exceptions import (
    AuthenticationError,
    PDUnavailableError,
    ProtocolError,
    TikvBrError,
    UnsupportedError,
)
from airflow_provider_tikvbr.tikv.http import http_client, is_tls_failure
from airflow_provider_tikvbr.tikv.keys import KeyRange, RegionKey
from airflow_provider_tikvbr.tikv.pd import PDClient
from airflow_provider_tikvbr.tikv.retry import Backoff
from airflow_provider_tikvbr.tikv.security import Greeting, diagnose

API = "/pd/api/v1"
TIMEOUT_S = 10.0
DIAGNOSIS_S = 2.0
BUDGET_S = 20.0
SCHEDULE = "schedule."


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSafePoint:
    """What one service holds back from garbage collection.

    :param service_id: name of the service.
    :param safe_point: versions from this timestamp on are kept.
    :param expires_at: second since the epoch, by PD's clock, from which on it no longer counts.
    """

    service_id: str
    safe_point: int
    expires_at: int


class PDHttp:
    """Calls to PD's HTTP API, at the leader first and at the other members when it does not answer. Close it.

    :param pd: tells who leads.
    """

    def __init__(self, pd: PDClient) -> None:
        self._pd = pd
        self._scheme = "https" if pd.options.tls else "http"
        self._map = pd.options.address_map
        self._client = http_client(pd.certificates, timeout_s=TIMEOUT_S, address_map=self._map)
        # Whether a member has ever answered, or all have been looked at: TLS that is wrong is so from the start.
        self._acquainted = False

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def cluster_version(self) -> str:
        """The lowest version that PD holds the cluster to, such as ``8.5.0``."""
        version = await self._request("GET", f"{API}/config/cluster-version")
        if not isinstance(version, str):
            raise self._unexpected("cluster version", version)
        return version.strip()

    async def region_count(self, keys: KeyRange[RegionKey]) -> int:
        """How many regions overlap a range; PD knows it roughly only, so it is for progress reports."""
        # With "count" PD counts; without it, and before 6.5, it goes through the statistics of every region.
        query = f"start_key={_quote(keys.start)}&end_key={_quote(keys.end)}&count"
        stats = await self._request("GET", f"{API}/stats/region?{query}")
        count = stats.get("count") if isinstance(stats, dict) else None
        if not isinstance(count, int):
            raise self._unexpected("region count", stats)
        return count

    async def schedulers(self) -> list[str]:
        """Names of the schedulers that exist, paused ones too."""
        return await self._schedulers("")

    async def paused_schedulers(self) -> list[str]:
        """Names of the schedulers that are paused now."""
        return await self._schedulers("?status=paused")

    async def _schedulers(self, query: str) -> list[str]:
        names = await self._request("GET", f"{API}/schedulers{query}")
        if names is None:
            return []
        if not isinstance(names, list):
            raise self._unexpected("list of schedulers", names)
        return [str(name) for name in names]

    async def pause_scheduler(self, name: str, seconds: int) -> None:
        """Pause a scheduler; PD resumes it by itself when the time is over.

        :param seconds: how long; 0 resumes it now.
        """
        await self._request("POST", f"{API}/schedulers/{name}", body={"delay": seconds})

    async def service_safe_points(self) -> list[ServiceSafePoint]:
        """What holds garbage collection back, by service (PD, ``server/api/service_gc_safepoint.go``)."""
        found = await self._request("GET", f"{API}/gc/safepoint")
        try:
            return [
                ServiceSafePoint(
                    service_id=str(each["service_id"]),
                    safe_point=int(each["safe_point"]),
                    expires_at=int(each["expired_at"]),
                )
                for each in found["service_gc_safe_points"] or ()
            ]
        except (TypeError, KeyError, ValueError):
            raise self._unexpected("list of GC safepoints", found) from None

    async def schedule_config(self) -> dict[str, Any]:
        """The permanent schedule settings by name. What :meth:`set_schedule_ttl` sets does not show here."""
        config = await self._request("GET", f"{API}/config/schedule")
        if not isinstance(config, dict):
            raise self._unexpected("schedule settings", config)
        return config

    async def set_schedule_ttl(self, values: Mapping[str, int | bool | str], ttl_s: int) -> None:
        """Set schedule settings for a while; afterwards the permanent ones hold again.

        ``/config/schedule`` ignores the time limit and changes the settings for good, so this goes to ``/config``.

        :param values: by the names of :meth:`schedule_config`.
        :param ttl_s: for how long, in seconds; at least 1. PD before 6.1 reads 0 as no time limit, and changes the
            settings for good (PD, ``server/api/config.go``).
        """
        if ttl_s < 1:
            raise ValueError(f"temporary settings cannot last {ttl_s} s")
        # PD keeps every value as text; large JSON numbers would get an exponent, which not every PD reads back.
        body = {f"{SCHEDULE}{name}": _text(value) for name, value in values.items()}
        await self._request("POST", f"{API}/config?ttlSecond={ttl_s}", body=body)

    async def end_schedule_ttl(self, values: Mapping[str, int | bool | str]) -> None:
        """Let temporary settings end: a second later the permanent ones hold again, in every version of PD.

        :param values: what was given to :meth:`set_schedule_ttl`.
        """
        await self.set_schedule_ttl(values, 1)

    async def set_schedule(self, values: Mapping[str, int | str]) -> None:
        """Set schedule settings for good.

        :param values: by the names of :meth:`schedule_config`; PD reads some flags as text only, ``"true"``.
        """
        await self._request("POST", f"{API}/config/schedule", body=values)

    # --- requests ---

    async def _request(self, method: str, path: str, *, body: Mapping[str, Any] | None = None) -> Any:
        """Ask the leader; on failures that may pass, the other members and again, within the budget.

        :return: the answer's JSON value.
        :raises PDUnavailableError: no member answered in time.
        :raises AuthenticationError: TLS is why none of them does, or it does not let us.
        """
        backoff = Backoff(base_s=0.2, cap_s=2.0, budget_s=BUDGET_S)
        while True:
            last: TikvBrError | None = None
            for address in self._pd.members:
                try:
                    answer = await self._request_once(address, method, path, body)
                except PDUnavailableError as err:
                    last = err
                else:
                    self._acquainted = True
                    return answer
            if not isinstance(last, PDUnavailableError):
                raise PDUnavailableError("PD has no members to ask", method=f"{method} {path}")
            if not self._acquainted and last.code is None:
                self._acquainted = True
                await self._raise_if_tls_is_wrong(last)
            if backoff.remaining_s <= 0:
                raise last
            await backoff.sleep(last)

    async def _request_once(self, address: str, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        plain_path = path.partition("?")[0]
        fields: dict[str, Any] = {"address": address, "method": f"{method} {plain_path}"}
        who = f"PD at {self._map.target(address)}"
        try:
            response = await self._client.request(
                method,
                f"{self._scheme}://{address}{path}",
                content=None if body is None else json.dumps(body),
                headers={} if body is None else {"Content-Type": "application/json"},
            )
        except httpx.HTTPError as err:
            if is_tls_failure(err):
                raise await self._diagnosis(address) or AuthenticationError(
                    f"{who} and this client do not agree on TLS: {err}", **fields
                ) from err
            reason = str(err) or type(err).__name__
            raise PDUnavailableError(
                f"{who} did not answer {method} {plain_path}: {reason}", endpoints=(address,), **fields
            ) from err
        code = response.status_code
        fields["code"] = str(code)
        if code >= 500 or code == 429:
            raise PDUnavailableError(
                f"{who} failed on {method} {plain_path}: {code} {_first_line(response.text)}",
                endpoints=(address,),
                **fields,
            )
        if code in (401, 403):
            raise AuthenticationError(f"{who} does not let us {method} {plain_path}: {code}", **fields)
        if code in (404, 405):
            raise UnsupportedError(f"{who} does not know {method} {plain_path}", **fields)
        if code != 200:
            raise ProtocolError(f"{who} refused {method} {plain_path}: {code} {_first_line(response.text)}", **fields)
        try:
            return response.json()
        except ValueError:
            # Answers to a POST are for people; some are not JSON.
            if method == "POST":
                return response.text
            raise ProtocolError(
                f"{who} answered {method} {plain_path} with something that is not JSON", **fields
            ) from None

    async def _raise_if_tls_is_wrong(self, failure: TikvBrError) -> None:
        """A server may refuse our certificate without a word, which looks like any broken connection."""
        for reason in await asyncio.gather(*(self._diagnosis(address) for address in self._pd.members)):
            if reason is not None:
                raise reason from failure

    async def _diagnosis(self, address: str) -> AuthenticationError | None:
        target = self._map.target(address)
        tls = self._pd.certificates.current()
        return await diagnose(
            target, tls, timeout_s=DIAGNOSIS_S, greeting=Greeting.HTTP, who=f"the HTTP service of PD at {target}"
        )

    def _unexpected(self, what: str, value: object) -> ProtocolError:
        return ProtocolError(
            f"PD at {self._pd.leader_address} answered {_first_line(str(value))!r} instead of the {what}"
        )


def _quote(key: RegionKey) -> str:
    return quote_from_bytes(key, safe="")


def _text(value: int | bool | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:200]
