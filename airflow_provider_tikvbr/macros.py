"""Functions for templates: hand them to a DAG as ``user_defined_macros``."""

from __future__ import annotations


def below(storage: str | None, *names: str) -> str:
    """Extend the path of a storage URL, and leave its parameters where they are.

    >>> below("s3://bucket/tikv?region=eu-west-1", "orders", "20261122T000000")
    's3://bucket/tikv/orders/20261122T000000?region=eu-west-1'

    :return: an empty text if there is no storage URL, which must not become a folder in the root directory.
    """
    if not storage or not storage.strip():
        return ""
    path, mark, parameters = storage.partition("?") if "://" in storage else (storage, "", "")
    return "/".join([path.rstrip("/"), *names]) + mark + parameters
