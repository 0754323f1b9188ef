"""V2's keyspaces: which number a name has, and whether PD knows a number.

The names live in PD alone: keys carry the number. PD has told keyspaces by name since 6.4 and listed them since 7.3; it
loads them by number only in what follows 9.0 (PD, ``server/keyspace_service.go``).
"""

from __future__ import annotations

from airflow_provider_tikvbr.exceptions import InvalidOptionError, UnsupportedError
from airflow_provider_tikvbr.proto import keyspacepb_pb2
from airflow_provider_tikvbr.tikv.keys import ApiVersion
from airflow_provider_tikvbr.tikv.options import ClusterOptions
from airflow_provider_tikvbr.tikv.pd import PDClient

DEFAULT_KEYSPACE = "DEFAULT"


async def find_keyspace(pd: PDClient, options: ClusterOptions, api_version: ApiVersion) -> int:
    """The number of the keyspace to work in.

    The default keyspace, which every V2 cluster has, is not asked for by its number 0.

    :param api_version: the cluster's.
    :raises InvalidOptionError: PD does not know the keyspace, it is not enabled, or name and number disagree.
    :raises UnsupportedError: the cluster has no keyspaces, or PD is too old to know them by name.
    """
    name, number = options.keyspace, options.keyspace_id
    if not name and not number:
        return 0
    if api_version is not ApiVersion.V2:
        raise UnsupportedError(
            f"keyspace {name or number} is given, but the cluster has API version {api_version.name}: only V2 has"
            " keyspaces, so leave it out"
        )
    if name:
        return await _by_name(pd, name, number)
    try:
        found = await pd.keyspace_by_id(number)
    except UnsupportedError:
        # Nobody can tell, so the user's word counts.
        return number
    if found is None:
        raise InvalidOptionError(
            f"PD at {pd.leader_address} knows no keyspace with id {number}: check the id, or create the keyspace",
            parameter="keyspace",
        )
    _check_state(pd, found)
    return number


async def _by_name(pd: PDClient, name: str, number: int) -> int:
    try:
        found = await pd.keyspace(name)
    except UnsupportedError as err:
        if name != DEFAULT_KEYSPACE:
            raise UnsupportedError(
                f"PD at {pd.leader_address} is older than 6.4 and knows no keyspaces by name: give the number of"
                f" keyspace {name!r} instead",
                address=pd.leader_address,
            ) from err
        found = keyspacepb_pb2.KeyspaceMeta(id=0, name=name)
    if found is None:
        raise InvalidOptionError(
            f"PD at {pd.leader_address} knows no keyspace {name!r}: check the name (upper and lower case differ), or"
            " create the keyspace",
            parameter="keyspace",
        )
    if number and found.id != number:
        raise InvalidOptionError(
            f"keyspace {name!r} has id {found.id} in this cluster, but id {number} is given too: give one of them",
            parameter="keyspace",
        )
    _check_state(pd, found)
    return found.id


def _check_state(pd: PDClient, keyspace: keyspacepb_pb2.KeyspaceMeta) -> None:
    if keyspace.state == keyspacepb_pb2.ENABLED:
        return
    states = keyspacepb_pb2.KeyspaceState
    state = states.Name(keyspace.state) if keyspace.state in states.values() else str(keyspace.state)
    raise InvalidOptionError(
        f"keyspace {keyspace.name!r} (id {keyspace.id}) is {state} at PD {pd.leader_address}: give another one, or"
        " enable it first if it is only disabled",
        parameter="keyspace",
    )
