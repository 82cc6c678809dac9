"""`pfi federate`: learn a shared adapter across devices, simulated or real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfi.cli import federate_keys
from pfi.cli.common import (
    BACKBONE,
    AsJson,
    Profile,
    TaskName,
    add_command,
    examples,
    federation_settings,
    note,
    open_profile,
    print_json,
    progress,
    shown_path,
    size,
)

if TYPE_CHECKING:
    from pfi.federate.deploy.agent.runtime import DeviceRuntime
    from pfi.federate.deploy.keys.invitation import Invitation
    from pfi.federate.deploy.server.settings import DeployConfig
    from pfi.federate.deploy.server.superlink import SuperLink
    from pfi.profile.home import Home

ADAPTER = "adapter"  # in a run folder

Out = Annotated[Path, typer.Option(help="Run folder to write.")]
Config = Annotated[Path | None, typer.Option(help="YAML file with the federation's settings.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="One setting.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")]
BackboneName = Annotated[str, typer.Option(help=BACKBONE)]
Check = Annotated[bool, typer.Option("--check", help="Messages there and back, no model.")]
SERVER = [
    "pfi federate server keys --out runs/fed --config federation.yaml --clients 50",
    "pfi federate server keys --out runs/check --check",
]
AGENT = [
    "pfi federate agent --invitation phone-7.json",
    "pfi federate agent",
]
SIMULATE = [
    "pfi federate simulate --data lamp --task LaMP_3 --out runs/sim",
    "pfi federate simulate --data lamp --task LaMP_3 --set strategy=ffa --set rounds=50",
]
TRY = [
    "pfi federate try --check --agents 4 --out runs/check",
    "pfi federate try --data lamp --task LaMP_3 --agents 4 --set rounds=2 --out runs/try",
]


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    group = typer.Typer(
        help="Learn a shared adapter with other devices, without giving records away.",
        no_args_is_help=True,
        rich_markup_mode=None,
        epilog=examples(TRY[0], SERVER[0], AGENT[0], "pfi federate status runs/fed"),
    )
    federate_keys.register(group)
    add_command(group, server, SERVER)
    add_command(group, agent, AGENT)
    add_command(group, try_out, TRY, name="try")
    add_command(group, simulate, SIMULATE)
    add_command(
        group, status, ["pfi federate status runs/fed", "pfi federate status runs/fed --json"]
    )
    app.add_typer(group, name="federate")


def server(
    keys: federate_keys.Keys,
    out: Out = Path("runs/federation"),
    config: Config = None,
    set_: Set = None,
    clients: Annotated[
        int, typer.Option(min=1, help="Devices that have to be connected before it begins.")
    ] = 2,
    wait: Annotated[float, typer.Option(min=1, help="Seconds in which they have to.")] = 3600,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "0.0.0.0",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="As in the keys' folder by default.")
    ] = None,
    backbone: BackboneName = "embedded",
    check: Check = False,
    resume: Resume = False,
    supernodes: Annotated[
        bool,
        typer.Option("--supernodes", help="Let Flower's own SuperNodes in, which sign less."),
    ] = False,
) -> None:
    """Run the server of a federation: its rounds, over the devices that are connected.

    Only registered devices get in, over TLS. It ends after the last round.
    """
    _need_flower()
    from pfi.federate.deploy.agent.device import until_terminated
    from pfi.federate.deploy.keys.nodes import read_nodes
    from pfi.federate.deploy.server.server import open_server
    from pfi.federate.deploy.server.settings import DeployConfig

    settings = DeployConfig(
        work="check" if check else "train",
        clients=clients,
        wait=wait,
        federation=federation_settings(config, set_ or []),
        backbone=backbone,
        resume=resume,
    )
    chosen = port or int(read_nodes(keys).server.rpartition(":")[2])
    opened = open_server(keys, out, host=host, port=chosen, supernodes=supernodes)
    with until_terminated(), opened as running:
        note(f"Listening at {host}:{running.port}; runs in {shown_path(out)}.")
        _follow(running, keys, out, settings)


def agent(
    profile: Profile = "default",
    invitation: Annotated[
        Path | None, typer.Option(help="The operator's file; kept, so it is given once.")
    ] = None,
    roster: Annotated[
        Path | None, typer.Option(help="The operator's newest roster.json; kept too.")
    ] = None,
    task: TaskName = None,
    poll: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 5.0,
    check: Annotated[bool, typer.Option("--check", help="Answer checks only.")] = False,
    no_link: Annotated[
        bool, typer.Option("--no-link", help="A Flower SuperNode brings the messages.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option(help="With --check: keys from here, not of a profile.")
    ] = None,
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run this device's agent: it learns when the server asks, from records that stay here.

    What it sends is in the ledger (`pfi ledger show`) before it leaves.
    """
    _need_flower()
    from pfi.federate.deploy.agent.device import FOLDER, run_agent, until_terminated
    from pfi.federate.deploy.check import echo
    from pfi.federate.deploy.keys.invitation import FILE, Invitation, keep_roster
    from pfi.federate.deploy.keys.keys import read
    from pfi.federate.deploy.keys.sealed import KeySeal

    home = None if check and folder else open_profile(profile)
    place = folder if home is None else home.path / FOLDER
    assert place is not None
    if invitation is not None:
        Invitation.read(invitation).save(place / FILE)
    found = Invitation.read(place / FILE)
    if roster is not None:
        keep_roster(place, read(roster), found)
    try:
        with until_terminated(parent):
            handler = echo if check or home is None else _runtime(home, task, found)
            run_agent(
                place,
                handler,
                found,
                poll=poll,
                link=not no_link,
                under=None if home is None else KeySeal.of(home.keys),
                on_event=note,
            )
    except KeyboardInterrupt:
        note("The agent was stopped.")


def try_out(
    out: Out = Path("runs/try"),
    agents: Annotated[int, typer.Option(min=1, max=64, help="Agents to start.")] = 4,
    data: Annotated[
        Path | None, typer.Option(help="Folder with <task>/<split>_questions.json.")
    ] = None,
    task: TaskName = None,
    split: Annotated[str, typer.Option(help="Whose users' histories the agents have.")] = "train",
    config: Config = None,
    set_: Set = None,
    backbone: BackboneName = "embedded",
    check: Check = False,
    rounds: Annotated[int, typer.Option(min=1, help="Of a check.")] = 2,
) -> None:
    """Try it out: a server and agents on this machine, over TLS; all end with this command.

    With --check messages go there and back; else every agent gets a user of the data, and a
    shared adapter is learnt.
    """
    _need_flower()
    from pfi.errors import ConfigError
    from pfi.federate.deploy import local
    from pfi.federate.deploy.agent.device import until_terminated
    from pfi.federate.deploy.server.server import open_server
    from pfi.federate.deploy.server.settings import DeployConfig

    if not check and (data is None or task is None):
        fix = "add --data FOLDER --task NAME, or --check"
        raise ConfigError("there is nothing to learn from", fix=fix)
    federation = federation_settings(config, set_ or [])
    settings = DeployConfig(
        work="check" if check else "train",
        clients=agents,
        wait=300,
        rounds=rounds,
        federation=federation,
        backbone=backbone,
    )
    with until_terminated():
        port = local.free_port()
        keys = local.make_operator(out, port)
        if data is None or task is None or check:
            made = local.make_check(keys, out, agents)
        else:
            made = local.make_homes(keys, out, data, task, split, agents, backbone, federation)
        with (
            open_server(keys, out, host="127.0.0.1", port=port) as running,
            local.Agents(out, made) as processes,
        ):
            note(f"{agents} agents and a server at localhost:{port}; runs in {shown_path(out)}.")
            _follow(running, keys, out, settings, processes.check)


def simulate(
    data: Annotated[Path, typer.Option(help="Folder with <task>/<split>_questions.json.")],
    task: Annotated[str, typer.Option("--task", "-t", help="`pfi tasks` lists them.")],
    out: Out = Path("runs/simulation"),
    split: Annotated[str, typer.Option(help="Whose users are the clients.")] = "train",
    users: Annotated[int, typer.Option(min=0, help="Random sample of users; 0: all.")] = 0,
    config: Config = None,
    set_: Set = None,
    backbone: BackboneName = "embedded",
    resume: Resume = False,
) -> None:
    """Learn a shared adapter with simulated clients: the same code as on devices, one machine."""
    from pfi.federate.config import FederateConfig
    from pfi.federate.rounds import Federation
    from pfi.federate.simulate import SimulatedFleet
    from pfi.federate.users import Users
    from pfi.models.backbone import load_backbone
    from pfi.tasks import get_task

    settings = FederateConfig.model_validate(federation_settings(config, set_ or []))
    population = Users(data, get_task(task), split, limit=users or None, seed=settings.seed)
    model = load_backbone(backbone)
    fleet = SimulatedFleet(model, population, settings, out / "clients")
    try:
        with progress(bar=True) as shown:
            bar = shown.add_task("starting", total=settings.rounds)
            federation = Federation(
                settings,
                fleet.strategy,
                fleet,
                out,
                resume=resume,
                parties=fleet.parties,
                on_round=lambda text, done, rounds: shown.update(
                    bar, completed=done, total=rounds, description=text
                ),
            )
            fleet.adapter(federation.run()).save(out / ADAPTER)
    finally:
        fleet.close()
    if federation.stopped is not None:
        note(f"It ended before the last round: {federation.stopped}.")
    _ended(out)


def _follow(
    running: SuperLink,
    keys: Path,
    out: Path,
    settings: DeployConfig,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Show a run's rounds until it is done."""
    from pfi.federate.deploy.server.server import run_server

    with progress(bar=False) as shown:
        line = shown.add_task("waiting for clients")

        def wait(online: list[str]) -> None:
            check()
            shown.update(line, description=f"{len(online)} clients are connected")

        def event(found: dict[str, Any]) -> None:
            typer.echo(told(found))

        run_server(running, keys, out, settings, on_event=event, on_wait=wait)
    if settings.work == "train":
        _ended(out)


def _ended(out: Path) -> None:
    typer.echo(f"The shared adapter is in {shown_path(out / ADAPTER)}.")
    note(f"Use it on a device with `pfi adapters install {shown_path(out / ADAPTER)}`.")


def _need_flower() -> None:
    """Refuse where the extra is missing."""
    from importlib.util import find_spec

    from pfi.errors import ConfigError

    if find_spec("flwr") is None:
        raise ConfigError("Flower is not installed", fix="run `pip install 'pfi[federate]'`")


def _runtime(home: Home, task: str | None, invitation: Invitation) -> DeviceRuntime:
    """What answers for a profile."""
    from pfi._util.settings import checked
    from pfi.federate.config import FederateConfig
    from pfi.federate.deploy.agent.runtime import DeviceRuntime
    from pfi.federate.strategies import check
    from pfi.profile.answer.runtime import pick_task

    where = "the invitation's settings"
    config = check(checked(FederateConfig, invitation.settings, where), where, None)
    made = DeviceRuntime(home, pick_task(home, task or invitation.task), invitation, config)
    note("Loading the model.")
    made.load()
    return made


def status(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="A federation's run folder.")],
    last: Annotated[int, typer.Option("--last", "-n", min=1, help="Rounds to show.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show how a federation goes: rounds, clients, loss, bytes and epsilon."""
    from pfi.federate.deploy.server.now import headline, read_now
    from pfi.federate.events import FILE, read_rounds

    now = read_now(out)
    rounds = list(read_rounds(out)) if now is None or (out / FILE).exists() else []
    if as_json:
        print_json([*rounds, now] if now else rounds)
        return
    if not rounds:
        typer.echo("No round is done yet.")
    if now is not None and not rounds:
        typer.echo(f"In work: {headline(now)}")
    if not rounds:
        return
    for event in rounds[-last:]:
        typer.echo(told(event))
    sent = size(sum(event["bytes_down"] for event in rounds))
    received = size(sum(event["bytes_up"] for event in rounds))
    typer.echo(f"{len(rounds)} rounds, {sent} sent to clients, {received} received from them.")
    if rounds[-1].get("spent"):
        typer.echo(rounds[-1]["spent"])
    if now is not None:
        typer.echo(f"In work: {headline(now)}")


def told(event: dict[str, Any]) -> str:
    """What is logged of a run in one line, and below it who was left out."""
    from pfi.federate.events import headline

    if event.get("event") == "agreement":
        line = f"{event['agreed']} devices agree with the server's settings and backbone"
    elif event.get("event") == "empty":
        line = f"round {event['number'] + 1} is asked again, as too few devices answered"
    else:
        line = f"{headline(event)}, {event['seconds']:.1f} s"
    left_out = {**event["failed"], **event["refused"]}
    for client, why in list(left_out.items())[:3]:
        line += f"\n  {client}: {why}"
    return line + (f"\n  and {len(left_out) - 3} more" if len(left_out) > 3 else "")
