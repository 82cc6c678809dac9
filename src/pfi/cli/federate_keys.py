"""`pfi federate keys`: certificates, keys, and who may take part."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pfi.cli.common import (
    AsJson,
    Profile,
    TaskName,
    add_command,
    examples,
    federation_settings,
    flags,
    note,
    open_profile,
    print_json,
    shown_path,
)

Keys = Annotated[Path, typer.Argument(metavar="FOLDER", help="The operator's folder of keys.")]
Hosts = Annotated[
    list[str] | None,
    typer.Option("--host", help="Name or address under which devices reach it; repeatable."),
]
SERVER = ["pfi federate keys server keys --host fl.example.org"]
DEVICE = ["pfi federate keys device --name phone-7"]
ADD = [
    "pfi federate keys add keys public.json",
    "pfi federate keys add keys public.json --config federation.yaml --task LaMP_3",
]


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    group = typer.Typer(
        help="Make certificates and keys, and say who may take part.",
        no_args_is_help=True,
        rich_markup_mode=None,
        epilog=examples(*SERVER, *DEVICE, ADD[0]),
    )
    add_command(group, server, SERVER)
    add_command(group, device, DEVICE)
    add_command(group, supernode, ["pfi federate keys supernode node.pem"])
    add_command(group, add, ADD)
    add_command(group, remove, ["pfi federate keys remove keys phone-7"])
    add_command(group, renew, ["pfi federate keys renew keys"])
    add_command(group, show, ["pfi federate keys show keys", "pfi federate keys show keys --json"])
    app.add_typer(group, name="keys")


def server(
    folder: Keys,
    host: Hosts = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where it listens.")] = 9092,
    name: Annotated[str, typer.Option(help="Name of the federation.")] = "federation",
    days: Annotated[int, typer.Option(min=1, help="How long the certificate is good.")] = 365,
) -> None:
    """On the server: make the CA, the server's certificate and the list of devices.

    Keep ca.key and operator.key where only you can read them; the server needs neither to run.
    """
    from pfi.federate.deploy.keys.keys import make_server_keys
    from pfi.federate.deploy.keys.nodes import create_nodes

    make_server_keys(folder, host or [], days=days)
    first = (host or [""])[0]
    create_nodes(folder, name, f"[{first}]:{port}" if ":" in first else f"{first}:{port}")
    typer.echo(f"Made the keys of {name} in {shown_path(folder)}.")
    note("Next: each device runs `pfi federate keys device`, and you add its public.json.")


def device(
    name: Annotated[str, typer.Option(help="The device's name in the federation.")],
    profile: Profile = "default",
    renew: Annotated[bool, typer.Option("--renew", help="Replace the keys it has.")] = False,
) -> None:
    """On a device: make its keys.  Give the operator public.json; the others never leave.

    The private ones are sealed with the profile's key.
    """
    from pfi.federate.deploy.agent.device import FOLDER
    from pfi.federate.deploy.keys.nodes import PUBLIC, make_device_keys
    from pfi.federate.deploy.keys.sealed import KeySeal

    home = open_profile(profile)
    folder = home.path / FOLDER
    make_device_keys(folder, name, renew=renew, under=KeySeal.of(home.keys))
    typer.echo(f"Made the keys of {name}.")
    note(f"Next: give {shown_path(folder / PUBLIC)} to the operator, and get an invitation.")
    note(f"Then: `pfi federate agent{flags(profile)} --invitation FILE`.")


def supernode(
    file: Annotated[Path, typer.Argument(help="Where to; only you can read it.")],
    profile: Profile = "default",
) -> None:
    """On a device: write its node key in clear, for Flower's own SuperNode.

    Whoever has the file can take part as this device. `pfi federate agent` does not need it.
    """
    from pfi.federate.deploy.agent.device import FOLDER
    from pfi.federate.deploy.keys.keys import write_private
    from pfi.federate.deploy.keys.nodes import NODE_KEY
    from pfi.federate.deploy.keys.sealed import KeySeal, read_key

    home = open_profile(profile)
    write_private(file, read_key(home.path / FOLDER / NODE_KEY, KeySeal.of(home.keys)))
    typer.echo(f"Wrote the node's key to {shown_path(file)}.")


def add(
    folder: Keys,
    public: Annotated[Path, typer.Argument(help="A device's public.json.")],
    config: Annotated[
        Path | None, typer.Option(help="YAML file with the federation's settings.")
    ] = None,
    task: TaskName = None,
    replace: Annotated[bool, typer.Option("--replace", help="The device has new keys.")] = False,
) -> None:
    """On the server: let a device take part, and make its invitation.

    A running server admits it at once, from the next run on it is asked.
    """
    from pfi.federate.deploy.keys.invitation import Invitation
    from pfi.federate.deploy.keys.nodes import read_public, register

    settings = federation_settings(config, [])
    keys = read_public(public)
    register(folder, keys, replace=replace)
    path = folder / "invitations" / f"{keys.client}.json"
    Invitation.make(folder, keys.client, settings, task).save(path)
    typer.echo(f"{keys.client} may take part.")
    note(f"Next: give {shown_path(path)} to it; the server hands the new roster out by itself.")


def remove(folder: Keys, name: Annotated[str, typer.Argument(help="The device's name.")]) -> None:
    """On the server: take a device out; a running server refuses it at once."""
    from pfi.federate.deploy.keys.nodes import unregister

    unregister(folder, name)
    typer.echo(f"{name} may not take part any more.")


def renew(
    folder: Keys,
    host: Hosts = None,
    days: Annotated[int, typer.Option(min=1, help="How long the certificate is good.")] = 365,
) -> None:
    """On the server: make a new certificate, by the same CA; devices notice nothing.

    Without --host it is for the same hosts as before.
    """
    from pfi.federate.deploy.keys.keys import renew_server_keys

    renew_server_keys(folder, host or [], days=days)
    typer.echo(f"Made a new certificate in {shown_path(folder)}, good for {days} days.")
    note("A running server uses it when it is started again.")


def show(folder: Keys, as_json: AsJson = False) -> None:
    """Show a federation's server, certificate and devices."""
    from pfi.federate.deploy.keys.keys import SERVER as CERTIFICATE
    from pfi.federate.deploy.keys.keys import expiry
    from pfi.federate.deploy.keys.nodes import read_nodes

    nodes = read_nodes(folder)
    end = expiry(folder / CERTIFICATE)
    if as_json:
        print_json(
            {
                "federation": nodes.federation,
                "server": nodes.server,
                "certificate_until": end.isoformat(),
                "roster": nodes.serial,
                "devices": sorted(nodes.clients),
            }
        )
        return
    typer.echo(f"federation   {nodes.federation} at {nodes.server}")
    typer.echo(f"certificate  good until {end:%Y-%m-%d}")
    typer.echo(f"roster       {nodes.serial}")
    typer.echo(f"devices      {len(nodes.clients)}")
    for name in sorted(nodes.clients):
        typer.echo(f"  {name}")
