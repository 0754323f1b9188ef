from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from airflow_provider_tikvbr.embedded.serving import ServerTls
from airflow_provider_tikvbr.exceptions import AuthenticationError, PDUnavailableError, WrongClusterError
from airflow_provider_tikvbr.proto import methods, pdpb_pb2
from airflow_provider_tikvbr.tikv.options import ClusterOptions, TlsOptions
from airflow_provider_tikvbr.tikv.pd import PDClient
from tests.support.certs import Authority, KeyPair
from tests.tikv.servers import Group, closed_port, serving, silent_port


def options(*pd: str, timeout_s: float = 10, **fields: Any) -> ClusterOptions:
    return ClusterOptions(pd=pd, connect_timeout_s=timeout_s, **fields)


async def test_any_member_tells_the_leader() -> None:
    async with Group() as group:
        group.leader = 2
        async with await PDClient.connect(options(group.addresses[0])) as pd:
            assert pd.leader_address == group.addresses[2]
            assert pd.members == (group.addresses[2], group.addresses[0], group.addresses[1])
            assert pd.cluster_id == 77


async def test_dead_and_silent_endpoints_do_not_matter() -> None:
    async with Group() as group, silent_port() as silent:
        pd = await PDClient.connect(options(closed_port(), silent, group.addresses[1]))
        assert pd.leader_address == group.addresses[0]
        await pd.close()


async def test_unreachable_pd_is_one_sentence_with_every_endpoint() -> None:
    first, second = closed_port(), closed_port()
    with pytest.raises(PDUnavailableError) as caught:
        await PDClient.connect(options(first, second, timeout_s=0.5))
    assert caught.value.endpoints == (first, second)
    message = str(caught.value)
    assert message.startswith(f"no PD leader found within 0.5 s, tried {first}, {second}: check the PD endpoints")
    assert "\n" not in message


async def test_a_pd_that_never_answers_is_given_up_in_time() -> None:
    async with silent_port() as silent:
        with pytest.raises(PDUnavailableError, match="did not answer in time"):
            await asyncio.wait_for(PDClient.connect(options(silent, timeout_s=0.5)), 20)


async def test_a_host_that_does_not_exist() -> None:
    with pytest.raises(PDUnavailableError, match=r"tried nowhere\.invalid:2379"):
        await PDClient.connect(options("nowhere.invalid:2379", timeout_s=0.5))


async def test_no_leader() -> None:
    async with Group() as group:
        group.leader = None
        with pytest.raises(PDUnavailableError, match="has no leader"):
            await PDClient.connect(options(*group.addresses, timeout_s=0.5))


async def test_an_election_is_waited_for() -> None:
    async with Group() as group:
        group.leader = None
        task = asyncio.create_task(PDClient.connect(options(*group.addresses)))
        await asyncio.sleep(0.3)
        assert not task.done()
        group.leader = 1
        async with await task as pd:
            assert pd.leader_address == group.addresses[1]


async def test_a_leader_that_does_not_answer_from_here() -> None:
    async with Group() as group:
        group.leader = 2
        await group.kill(2)
        with pytest.raises(PDUnavailableError) as caught:
            await PDClient.connect(options(group.addresses[0], timeout_s=0.5))
        assert f"names http://{group.addresses[2]} as its leader, which does not answer from here" in str(caught.value)


async def test_a_leader_of_another_cluster() -> None:
    async with Group(size=1, cluster_id=1) as one, Group(size=2, cluster_id=2) as other:
        other.addresses[0] = one.addresses[0]
        with pytest.raises(WrongClusterError, match="belongs to another cluster"):
            await PDClient.connect(options(other.addresses[1]))


async def test_tls_mistakes_are_told_at_once(authority: Authority, server_pair: KeyPair) -> None:
    """Long before the time is up: certificates do not mend themselves."""
    server = ServerTls(cert=server_pair.cert, key=server_pair.key)

    async def get_members(_request: Any, context: Any) -> pdpb_pb2.GetMembersResponse:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "server not started")
        return pdpb_pb2.GetMembersResponse()

    table = {methods.PD_GET_MEMBERS: get_members}
    async with serving(table) as plain, serving(table, tls=server) as secure:
        for address, tls, message in (
            (secure, None, "speaks TLS only"),
            (plain, TlsOptions(ca=authority.ca), "does not speak TLS"),
            (secure, TlsOptions(ca=Authority("other").ca), "has not signed"),
        ):
            with pytest.raises(AuthenticationError, match=message):
                await asyncio.wait_for(PDClient.connect(options(address, timeout_s=60, tls=tls)), 20)


async def test_a_tls_mistake_at_one_endpoint_does_not_hide_a_good_one(
    authority: Authority, server_pair: KeyPair
) -> None:
    async with Group() as group, serving({}, tls=ServerTls(cert=server_pair.cert, key=server_pair.key)) as secure:
        pd = await PDClient.connect(options(secure, group.addresses[0]))
        assert pd.leader_address == group.addresses[0]
        await pd.close()


async def test_cancelling_a_search_leaves_nothing_behind() -> None:
    async with silent_port() as silent:
        task = asyncio.create_task(PDClient.connect(options(silent, timeout_s=60)))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) <= 2
