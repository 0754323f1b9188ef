"""What Airflow reads about this package, without importing more of it."""

from __future__ import annotations

from typing import Any

from airflow_provider_tikvbr import __version__

INTEGRATION = "TiKV"


def get_provider_info() -> dict[str, Any]:
    """Describe the provider: what it brings, and the form for its connections."""
    return {
        # Airflow refuses to start when this is not the distribution's canonical name.
        "package-name": "airflow-provider-tikvbr",
        "name": "TiKV BR",
        "description": "Back up, verify, convert and restore TiKV RawKV clusters.",
        "versions": [__version__],
        "integrations": [
            {
                "integration-name": INTEGRATION,
                "external-doc-url": "https://tikv.org/",
                "tags": ["software"],
            }
        ],
        "hooks": [{"integration-name": INTEGRATION, "python-modules": ["airflow_provider_tikvbr.hooks.tikv"]}],
        "operators": [
            {
                "integration-name": INTEGRATION,
                "python-modules": [
                    "airflow_provider_tikvbr.operators.backup",
                    "airflow_provider_tikvbr.operators.restore",
                ],
            }
        ],
        "sensors": [{"integration-name": INTEGRATION, "python-modules": ["airflow_provider_tikvbr.sensors.checksum"]}],
        "triggers": [
            {
                "integration-name": INTEGRATION,
                "python-modules": [
                    "airflow_provider_tikvbr.triggers.backup",
                    "airflow_provider_tikvbr.triggers.restore",
                    "airflow_provider_tikvbr.triggers.checksum",
                ],
            }
        ],
        "connection-types": [_connection_type()],
        "config": {
            "tikvbr": {
                "description": "Backup and restore of TiKV RawKV clusters.",
                "options": {
                    "progress_interval": {
                        "description": "Seconds between two reports of a task's progress in its log.",
                        "version_added": "0.1.0",
                        "type": "float",
                        "example": "30",
                        "default": "10",
                    }
                },
            }
        },
    }


def _connection_type() -> dict[str, Any]:
    return {
        "connection-type": "tikv",
        "hook-class-name": "airflow_provider_tikvbr.hooks.tikv.TiKVHook",
        "hook-name": "TiKV",
        "ui-field-behaviour": {
            "hidden-fields": ["login", "password", "schema"],
            "relabeling": {"host": "PD endpoints", "port": "Default PD port"},
            "placeholders": {"host": "pd0:2379,pd1:2379,pd2:2379", "port": "2379"},
        },
        "conn-fields": {
            "api_version": {
                "label": "API version",
                "description": "Refuse the cluster if it has another one.",
                # Without values_display, the form calls the first one "null".
                "schema": {
                    "type": ["string", "null"],
                    "enum": [None, "v1", "v1ttl", "v2"],
                    "values_display": {"null": "any"},
                },
            },
            "cluster_id": {
                "label": "Cluster ID",
                "description": "Refuse every other cluster. Empty: whatever answers.",
                "schema": {"type": ["string", "null"], "pattern": "^[0-9]*$"},
            },
            "keyspace": {
                "label": "Keyspace",
                "description": "The keyspace of API V2, by name or number. Empty: the default keyspace.",
                "schema": {"type": ["string", "null"], "pattern": "^[-A-Za-z0-9_]{0,64}$"},
            },
            "keyspace_id": {
                "label": "Keyspace ID",
                "description": "The keyspace of API V2; 0 is the default keyspace.",
                "schema": {"type": ["integer", "null"], "minimum": 0, "maximum": 16777215},
            },
            "address_map": {
                "label": "Address map",
                "description": "For workers outside of the cluster's network: where to reach the addresses that PD "
                "tells, such as tikv-0:20160=10.0.0.5:30160, several by commas.",
                "schema": {"type": ["string", "null"], "format": "multiline"},
            },
            "ca": {
                "label": "CA certificate",
                "description": "TLS: path on the worker, or PEM text, of the CA that signed the servers' certificates.",
                "schema": {"type": ["string", "null"], "format": "multiline"},
            },
            "cert": {
                "label": "Client certificate",
                "description": "TLS: path on the worker, or PEM text, of the certificate that the servers want to see.",
                "schema": {"type": ["string", "null"], "format": "multiline"},
            },
            "private_key": {
                "label": "Client private key",
                "description": "TLS: path on the worker, or PEM text, of the client certificate's key.",
                "schema": {"type": ["string", "null"], "format": "password"},
            },
            "check_requirements": {
                "label": "Check requirements",
                "description": "Refuse clusters with stores older than 5.0.0 or with TiFlash.",
                "schema": {"type": "boolean", "default": True},
            },
            "connect_timeout": {
                "label": "Connect timeout",
                "description": "How long to try to reach PD, such as 10s.",
                "schema": {"type": ["string", "null"]},
            },
            "grpc_keepalive_time": {
                "label": "gRPC keepalive time",
                "description": "Silence after which a connection is probed, such as 10s.",
                "schema": {"type": ["string", "null"]},
            },
            "grpc_keepalive_timeout": {
                "label": "gRPC keepalive timeout",
                "description": "How long such a probe may go unanswered, such as 3s.",
                "schema": {"type": ["string", "null"]},
            },
            "grpc_max_recv_msg_size": {
                "label": "gRPC message size",
                "description": "Largest message to accept, in bytes. Empty: any.",
                "schema": {"type": ["integer", "null"], "minimum": 1, "maximum": 2147483647},
            },
        },
    }
