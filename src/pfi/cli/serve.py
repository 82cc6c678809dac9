"""`pfi serve` and `pfi tokens`."""

from __future__ import annotations

import ipaddress
import logging
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfi.cli.common import (
    AsJson,
    PlainGroup,
    Profile,
    Threads,
    add_command,
    examples,
    flags,
    note,
    open_profile,
    print_json,
)

if TYPE_CHECKING:
    from pfi.serve import ServeConfig, Service

Profiles = Annotated[
    list[str] | None,
    typer.Option("--profile", "-p", envvar="PFI_PROFILE", help="Whose device; repeatable."),
]
_NEEDED = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")
_PASSPHRASES = ("PFI_PASSPHRASE", "PFI_NEW_PASSPHRASE", "PFI_ARCHIVE_PASSPHRASE")


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    lines = [
        "pfi serve",
        "pfi serve --profile work --profile home --port 8000",
        "pfi serve --all --set requests_per_minute=60",
    ]
    add_command(app, serve, lines)
    group = typer.Typer(
        cls=PlainGroup,
        help="The tokens that open a profile's models to programs.",
        no_args_is_help=True,
        rich_markup_mode=None,
        epilog=examples("pfi tokens new --label editor", "pfi tokens list"),
    )
    lines = [
        "pfi tokens new --label editor",
        "pfi tokens new --profile work --scope memory --days 30",
        "pfi tokens new --profile work --profile home --label 'chat window'",
        "pfi tokens new --scope admin --label 'my browser'",
    ]
    add_command(group, new, lines)
    add_command(group, list_tokens, ["pfi tokens list"], name="list")
    add_command(group, revoke, ["pfi tokens revoke 1f2e3d4c"])
    app.add_typer(group, name="tokens")


def serve(
    profiles: Profiles = None,
    every: Annotated[bool, typer.Option("--all", help="All profiles on this machine.")] = False,
    host: Annotated[str | None, typer.Option(help="Address to listen on; loopback if none.")] = (
        None
    ),
    port: Annotated[int | None, typer.Option(help="Port; 8484 if none, 0 for any.")] = None,
    engine: Annotated[
        str | None, typer.Option(help="torch or llama.cpp; as the profile says if none.")
    ] = None,
    threads: Threads = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="A server setting; repeatable."),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print a line for every request.")
    ] = False,
) -> None:
    """Answer programs that speak the OpenAI API, and show the console in a browser."""
    from pfi._util.settings import checked, nested_settings
    from pfi.errors import ConfigError
    from pfi.profile.config import DEFAULT_PROFILE
    from pfi.serve import ServeConfig, Service
    from pfi.serve.service import all_profiles

    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        what = f"the server needs {missing[0]}, which is not installed"
        raise ConfigError(what, fix="run `pip install 'pfi[serve]'`")
    values: dict[str, Any] = nested_settings(settings or [])
    given = {"host": host, "port": port, "engine": engine, "threads": threads}
    values |= {name: value for name, value in given.items() if value is not None}
    config = checked(ServeConfig, values, "server settings")
    names = all_profiles() if every else profiles or [DEFAULT_PROFILE]
    logging.basicConfig(format="%(message)s", level=logging.INFO if verbose else logging.WARNING)
    _run(Service.open(names, config), config)


def _run(service: Service, config: ServeConfig) -> None:
    from pfi._util.hardening import forget_variable, refuse_core_dumps
    from pfi.serve.app import create_app
    from pfi.serve.console.router import sign_in_link
    from pfi.serve.server import address, listen, make_server

    refuse_core_dumps()
    app = create_app(service, config)
    with listen(config) as socket:
        note("Loading the model ...")
        service.load()
        for variable in _PASSPHRASES:  # every profile is unlocked
            forget_variable(variable)
        for backbone, engine, footprint in service.footprints():
            note(f"{Path(backbone).name} with {engine}: {footprint}.")
        url = address(socket)
        if not _is_loopback(socket.getsockname()[0]):
            note(
                "warning: other machines can reach this server, and what they send is not "
                "encrypted: put a proxy with TLS before it."
            )
        typer.echo(f"{url}/v1 answers for {', '.join(service.profiles)}.")
        for profile in service.profiles:
            typer.echo(f"Console of {profile}: {sign_in_link(app, url, profile)}")
            if not service.gatekeeper.has_tokens(profile):
                made = f"`pfi tokens new{flags(profile)}` makes one"
                note(f"Programs need a token, and profile {profile} has none; {made}.")
        note("The links open the console once, within 10 minutes. Ctrl-C ends the server.")
        make_server(app, config).run(sockets=[socket])


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def new(
    label: Annotated[str, typer.Option(help="What it is for, in your words.")] = "",
    scopes: Annotated[
        list[str] | None,
        typer.Option(
            "--scope",
            metavar="SCOPE",
            help="answer: asks the models; memory: is also shown the records that answers rest "
            "on; admin: also signs in to the console. Repeatable; answer if none.",
        ),
    ] = None,
    days: Annotated[
        int | None,
        typer.Option(
            min=1, max=36500, help="Days until it ends; if none never, or 90 for an admin's."
        ),
    ] = None,
    profiles: Profiles = None,
) -> None:
    """Make a token; it is shown this once."""
    from pfi.serve.auth import ADMIN_DAYS, LEAST, new_shared_token

    if days is None and "admin" in (scopes or ()):
        days = ADMIN_DAYS
    expires = None if days is None else datetime.now(UTC) + timedelta(days=days)
    homes = {name: open_profile(name) for name in _named(profiles)}
    token, text = new_shared_token(homes, label, scopes=scopes or LEAST, expires=expires)
    typer.echo(text)
    of = f"of profile{'s' * (len(homes) > 1)} {', '.join(homes)}"
    opens = {
        "answer": f"opens the models {of}",
        "memory": f"opens the models {of} and shows the records they rest on",
        "admin": f"opens the models and the whole console {of}",
    }[token.scopes[-1]]
    until = f" until {token.expires[:10]}" if token.expires else ""
    note(f"Token {token.id} {opens}{until}; it is not shown again.")


def list_tokens(profile: Profile = "default", as_json: AsJson = False) -> None:
    """List a profile's tokens, without what is secret."""
    from pfi.serve.auth import tokens_of

    tokens = tokens_of(open_profile(profile))
    shown = [
        {
            "id": token.id,
            "profile": profile,
            "label": token.label,
            "scopes": list(token.scopes),
            "created": token.created,
            "expires": token.expires,
            "used": token.used,
            "parent": token.parent,
            "profiles": list(token.profiles) or [profile],
        }
        for token in tokens
    ]
    if as_json:
        print_json(shown)
        return
    for token in tokens:
        ends = f"ends {token.expires[:10]}" if token.expires else "no end"
        used = f"used {token.used[:10]}" if token.used else "never used"
        line = f"{token.id}  {token.created[:10]}  {','.join(token.scopes)}  {ends}  {used}"
        typer.echo(f"{line}  {token.label}".rstrip())
    if not tokens:
        note(f"Profile {profile} has no token; `pfi tokens new{flags(profile)}` makes one.")


def revoke(token: Annotated[str, typer.Argument()], profiles: Profiles = None) -> None:
    """Let the token with this id open nothing any more, nor those made in its sessions."""
    from pfi.serve.auth import revoke_token

    named, elsewhere = _named(profiles), dict[str, None]()
    for profile in named:
        revoked, *others = revoke_token(open_profile(profile), token)
        where = f" of profile {profile}" if len(named) > 1 or revoked.profiles else ""
        typer.echo(f"Token {revoked.id} opens nothing{where} any more.")
        for other in others:
            typer.echo(f"Token {other.id}, made with it, neither.")
        elsewhere |= dict.fromkeys(name for name in revoked.profiles if name not in named)
    if elsewhere:
        more = "".join(f" --profile {name}" for name in elsewhere)
        note(
            f"It was made for other profiles too: `pfi tokens revoke {token}{more}` ends it there."
        )


def _named(profiles: list[str] | None) -> list[str]:
    """The profiles that are named, each once; the default one where none is."""
    from pfi.profile.config import DEFAULT_PROFILE

    return list(dict.fromkeys(profiles or [DEFAULT_PROFILE]))
