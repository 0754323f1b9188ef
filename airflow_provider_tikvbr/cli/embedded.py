"""``embedded`` and ``demo``: clusters on this machine, for those who have no TiKV at hand."""

from __future__ import annotations

from pathlib import Path

import click

import airflow_provider_tikvbr
from airflow_provider_tikvbr.cli.options import flag, together
from airflow_provider_tikvbr.exceptions import ProtocolError

# What the extra "embedded" adds.
EXTRA = ("aiohttp", "rocksdict")
CHECKOUT = Path(airflow_provider_tikvbr.__file__).parents[1]


@click.command(short_help="Run a whole TiKV cluster in this process.")
@together(
    click.option("--data", type=click.Path(path_type=Path), required=True, metavar="DIR",
                 help="Where the cluster keeps its data; made if missing, taken up again if not."),
    flag("--api-version", default="v1", metavar="v1|v1ttl|v2", help="How the cluster encodes raw pairs."),
    click.option("--stores", type=click.IntRange(min=1), default=3, show_default=True, help="Number of stores."),
    click.option("--replicas", type=click.IntRange(min=1), default=1, show_default=True, help="Peers of each region."),
    click.option("--pd-port", type=click.IntRange(0, 65535), default=2379, show_default=True,
                 help="PD's port; 0 for any. The stores take any."),
    flag("--host", default="127.0.0.1", help="Where to listen, and what PD tells clients."),
    flag("--domain", metavar="NAME", help="Let PD tell names in this domain instead; prints the address map for it."),
    flag("--cluster-version", default="8.5.0", metavar="X.Y.Z", help="The version of TiKV to announce."),
    click.option("--split-keys", multiple=True, metavar="KEY,...",
                 help="Where a new cluster is split, in --format; several by commas or by repetition."),
    click.option("--keyspaces", multiple=True, metavar="NAME[=ID],...",
                 help="API V2: keyspaces to create; several by commas or by repetition."),
    flag("--format", default="hex", metavar="hex|raw|escaped", help="How --split-keys are written."),
    click.option("--faults", type=click.Path(path_type=Path), metavar="FILE",
                 help="What goes wrong at calls and what happens to the cluster, as JSON; see docs/embedded.md."),
    click.option("--max-store-down", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
                 help="After how long PD gives the peers of a store that is down to others; half an hour by default."),
    flag("--ca", metavar="FILE", help="With --cert: ask clients for a certificate of this CA."),
    flag("--cert", metavar="FILE", help="The servers' certificate; turns TLS on."),
    flag("--key", metavar="FILE", help="Private key of --cert."),
)  # fmt: skip
def embedded(
    data: Path,
    api_version: str,
    stores: int,
    replicas: int,
    pd_port: int,
    host: str,
    domain: str,
    cluster_version: str,
    split_keys: tuple[str, ...],
    keyspaces: tuple[str, ...],
    format: str,  # noqa: A002 - the flag's own name
    faults: Path | None,
    max_store_down: float | None,
    ca: str,
    cert: str,
    key: str,
) -> int:
    """Run a whole TiKV cluster in this process, until SIGINT or SIGTERM.

    It prints the line "ready pd=HOST:PORT" once it serves.
    """
    _need_extra()
    from airflow_provider_tikvbr.embedded.server import run
    from airflow_provider_tikvbr.embedded.serving import ServerTls
    from airflow_provider_tikvbr.rawbr.keyformat import parse_key
    from airflow_provider_tikvbr.tikv.versions import parse_version

    if bool(cert) != bool(key) or (ca and not cert):
        raise click.ClickException("--cert and --key belong together, and --ca needs both")
    try:
        parse_version(cluster_version)
    except ProtocolError as err:
        raise click.ClickException(f"--cluster-version {err}") from err
    return run(
        data=data,
        api_version=api_version,
        stores=stores,
        replicas=replicas,
        pd_port=pd_port,
        host=host,
        domain=domain,
        version=cluster_version,
        split_keys=[
            parse_key(text, format, parameter="split_keys") for given in split_keys for text in given.split(",") if text
        ],
        keyspaces=[name.strip() for given in keyspaces for name in given.split(",") if name.strip()],
        faults=faults,
        max_store_down_s=max_store_down,
        tls=ServerTls(cert=_pem(cert), key=_pem(key), ca=_pem(ca) if ca else None) if cert else None,
    )


@click.command()
@together(
    click.option("--work-dir", type=click.Path(path_type=Path), default=Path(".demo"), show_default=True,
                 metavar="DIR", help="Where everything goes; an earlier demo's is begun anew."),
    click.option("--golden", type=click.Path(path_type=Path), default=CHECKOUT / "tests" / "golden" / "v1" / "full",
                 metavar="DIR", help="The API V1 backup that becomes the first cluster's data; by default the"
                 " checkout's tests/golden/v1/full."),
)  # fmt: skip
def demo(work_dir: Path, golden: Path) -> int:
    """Convert a V1 cluster to V2 on this machine, with a real Airflow."""
    _need_extra()
    from airflow_provider_tikvbr.cli.demo import demo as tell

    return tell(work_dir, golden)


def _need_extra() -> None:
    from importlib.util import find_spec

    missing = [module for module in EXTRA if find_spec(module) is None]
    if missing:
        raise click.ClickException(
            f"embedded clusters need {' and '.join(missing)}, which {'are' if len(missing) > 1 else 'is'} not"
            f" installed: pip install {' '.join(missing)}"
        )


def _pem(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as err:
        raise click.ClickException(f"{path} cannot be read: {err.strerror}") from err
