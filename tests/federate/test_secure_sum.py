"""Secure sums: exact, with every dropout that the threshold allows, and nothing beyond it."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from scipy import stats
from secure_world import BROADCAST, POLICY, World, over_fleet

from pfi.errors import FederationError
from pfi.federate.message import Failure, Message
from pfi.federate.secure import (
    STAGES,
    Policy,
    SecureClient,
    SecureConfig,
    SecureServer,
    crypto,
    groups,
    run,
    run_groups,
)
from pfi.federate.secure import terms as terms_module
from pfi.federate.secure.client import mask_key


@pytest.fixture
def known_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each signature is checked once, not once a client: hundreds of rounds take seconds so."""
    monkeypatch.setattr(terms_module, "verify", functools.lru_cache(1000)(crypto.verify))


def _kept(world: World, lost: dict[str, list[str]]) -> list[str]:
    """Whose vector reached the server."""
    gone = {name for stage in STAGES[:3] for name in lost.get(stage, ())}
    return [name for name in world.names if name not in gone]


@pytest.mark.parametrize("bits", [32, 64])
def test_the_sum_is_that_of_unlimited_integers(bits: int) -> None:
    world = World(6, Policy(**{**POLICY.model_dump(), "bits": bits, "length": 300}))
    assert run(world.server, world.ask()) == {}
    assert (world.server.sum() == world.expected(world.names)).all()
    assert world.server.survivors() == world.names
    exact = np.average(
        [world.vectors[name].astype(np.float64) for name in world.names],
        axis=0,
        weights=[world.weights[name] for name in world.names],
    )
    largest = POLICY.step / 2 * len(world.names) / world.server.weight()
    assert np.abs(world.server.mean() - exact).max() <= largest * (1 + 1e-6)


def test_the_sum_at_the_edge_of_the_modulus() -> None:
    policy = Policy(
        federation="f", length=2, bits=16, clip=1, step=1 / 200, heaviest=27, smallest=4, largest=6
    )
    assert policy.levels * policy.largest == 32400 < 2**15
    world = World(6, policy)
    for name in world.names:
        world.vectors[name], world.weights[name] = np.array([1, -1], np.float32), 27
    world.start(2)
    run(world.server, world.ask())
    assert world.server.sum().tolist() == [32400, -32400, 162]


@pytest.mark.usefixtures("known_signatures")
@pytest.mark.parametrize("stage", STAGES)
def test_every_set_of_dropouts_at_every_stage_of_six(stage: str) -> None:
    world, round = World(6), 1
    needed = world.server.terms.needed
    assert needed == 4
    for count in range(7):
        for names in itertools.combinations(world.names, count):
            round += 1
            world.start(round, forget=True)
            lost = {stage: list(names)}
            if 6 - count >= needed:
                run(world.server, world.ask(lost))
                assert (world.server.sum() == world.expected(_kept(world, lost))).all()
                continue
            with pytest.raises(FederationError, match=f"{6 - count} clients are left, 4 are"):
                run(world.server, world.ask(lost))
            with pytest.raises(FederationError, match="no sum"):
                world.server.sum()
            assert world.server._open is None


@pytest.mark.usefixtures("known_signatures")
def test_random_dropouts_at_all_stages_of_thirty() -> None:
    world = World(30)
    rng = np.random.default_rng(5)
    needed = world.server.terms.needed
    assert needed == 16
    for trial in range(6):
        world.start(trial + 2, forget=True)
        # The last trial loses one more than the threshold allows.
        gone = rng.permutation(30)[: 14 + (trial == 5)]
        stages = rng.integers(0, 5, gone.size)
        lost = {
            stage: [world.names[n] for n, at in zip(gone, stages, strict=True) if at == place]
            for place, stage in enumerate(STAGES)
        }
        if trial < 5:
            run(world.server, world.ask(lost))
            assert (world.server.sum() == world.expected(_kept(world, lost))).all()
        else:
            with pytest.raises(FederationError, match="15 clients are left, 16 are"):
                run(world.server, world.ask(lost))


def test_shares_one_short_of_the_threshold_do_not_unmask() -> None:
    """What the server holds then is a masked sum, as uniform as a single vector."""
    world = World(6, Policy(**{**POLICY.model_dump(), "length": 20_000}))
    world.until("unmask")
    requests = world.server.requests("unmask")
    for name in world.names[:3]:
        world.server.receive("unmask", name, world.handle(name, requests[name]))
    with pytest.raises(FederationError, match="3 clients are left"):
        world.server.close("unmask")
    assert _looks_uniform(world.server._total)


def test_a_client_that_dropped_out_may_not_come_back() -> None:
    world = World(6)
    world.step("keys")
    messages = world.server.requests("shares")
    late = world.handle("device-00", messages["device-00"])
    world.step("shares", lost=["device-00"])
    with pytest.raises(FederationError, match="not open"):
        world.server.receive("shares", "device-00", late)
    assert "device-00" not in world.server.requests("masked")


def test_run_names_who_was_refused_and_why() -> None:
    world = World(6)

    def ask(messages):  # type: ignore[no-untyped-def]
        for name, message in messages.items():
            if name == "device-02" and message.values["stage"] == "masked":
                yield name, FederationError("it went away")
            else:
                yield name, world.handle(name, message)

    assert run(world.server, ask) == {"device-02": "it went away"}
    assert (world.server.sum() == world.expected([n for n in world.names if "02" not in n])).all()


def test_a_round_that_fails_says_why() -> None:
    world = World(4)
    wrong = world.clients["device-01"] = SecureClient(
        world.identities["device-01"], world.roster, POLICY, "another", world.rounds["device-01"]
    )
    wrong.contribute(world.vectors["device-01"], 1)

    def ask(messages):  # type: ignore[no-untyped-def]
        for name, message in list(messages.items())[1:]:
            try:
                yield name, world.handle(name, message)
            except FederationError as error:
                yield name, error

    with pytest.raises(FederationError, match=r"stage keys: 2 .* left, 3 .* device-01: the others"):
        run(world.server, ask)


def test_groups_have_sums_of_their_own_and_one_may_fail() -> None:
    names = [f"device-{n:02d}" for n in range(24)]
    policy = Policy(**{**POLICY.model_dump(), "smallest": 8, "largest": 12})
    world = World(24, Policy(**{**POLICY.model_dump(), "largest": 24}))
    world.policy = policy
    divided = groups(names, 8, seed=1)
    world.clients = {name: world.client(name) for name in names}
    servers = [SecureServer(policy, world.roster, 2, members, BROADCAST) for members in divided]
    fleet = _Fleet(world, lost=divided[1][:4])
    ends, whys = run_groups(servers, over_fleet(fleet, 2))
    assert fleet.asked == len(STAGES)
    assert whys == dict.fromkeys(divided[1][:4], "it went away")
    assert [error is None for error in ends] == [True, False, True]
    assert f"stage masked: 4 clients are left, 5 are needed. {divided[1][0]}: it" in str(ends[1])
    for server, members, error in zip(servers, divided, ends, strict=True):
        if error is None:
            assert (server.sum() == world.expected(members)).all()
        else:
            with pytest.raises(FederationError, match="no sum"):
                server.sum()


class _Fleet:
    """Clients of a world behind bytes; some go away after they shared their secrets."""

    def __init__(self, world: World, lost: Sequence[str]) -> None:
        self.world, self.lost, self.asked = world, lost, 0

    def clients(self) -> Sequence[str]:
        return self.world.names

    def ask(
        self, round: int, messages: Mapping[str, bytes], seconds: float | None = None
    ) -> Iterator[tuple[str, bytes | Failure]]:
        self.asked += 1
        for name, data in messages.items():
            message = Message.decode(data)
            if name in self.lost and message.values["stage"] == "masked":
                yield name, Failure("it went away")
            else:
                yield name, self.world.clients[name].handle(message).encode()


def test_malformed_bytes_and_strangers_are_refused_by_name() -> None:
    world = World(5)

    class Odd(_Fleet):
        def ask(
            self, round: int, messages: Mapping[str, bytes], seconds: float | None = None
        ) -> Iterator[tuple[str, bytes | Failure]]:
            for name, reply in super().ask(round, messages, seconds):
                yield name, b"x" * 20 if name == "device-03" else reply
            yield "stranger", b"" if isinstance(reply, Failure) else reply

    whys = run(world.server, over_fleet(Odd(world, []), 1))
    assert "malformed" in whys["device-03"] and whys["stranger"] == "it was not asked"
    assert world.server.survivors() == [n for n in world.names if n != "device-03"]


# What the server sees --------------------------------------------------------------------


def _looks_uniform(entries: NDArray[np.generic]) -> bool:
    """Chi-square of every byte's values and Kolmogorov-Smirnov of the whole, both at 1e-9."""
    raw = entries.view(np.uint8).reshape(entries.size, -1)
    chi = [stats.chisquare(np.bincount(raw[:, at], minlength=256)).pvalue for at in range(4)]
    ks = stats.kstest(entries / 2.0**32, "uniform").pvalue
    return bool(min(*chi, ks) > 1e-9)


def test_masked_vectors_look_uniform_and_unmasked_ones_do_not() -> None:
    world = World(6, Policy(**{**POLICY.model_dump(), "length": 20_000}))
    world.step("keys")
    world.step("shares", lost=["device-05"])
    masking = {name: world.clients[name]._masking for name in world.names}
    seeds = {name: world.clients[name]._seed for name in world.names[:5]}
    world.step("masked", lost=["device-04"])
    seen = {name: world.sent["masked"][name].arrays["entries"] for name in world.names[:4]}
    terms = world.server.terms
    for name, masked in seen.items():
        me = world.names.index(name)
        # As sent; less its own mask, which the server learns; and less another's.
        without_own = masked.copy()
        own = crypto.derive(seeds[name], terms.digest, terms.seed_key(me))
        crypto.add_mask(without_own, own, negative=True)
        others = masked.copy()
        for other in range(5):
            if other != me:
                public = crypto.public_of(masking[world.names[other]])
                key = mask_key(terms, masking[name], public, me, other)
                assert key is not None
                crypto.add_mask(others, key, negative=me < other)
        assert _looks_uniform(masked) and _looks_uniform(without_own) and _looks_uniform(others)
        # Positive control: with all masks off it is the client's own entries, which fail.
        plain = without_own + others - masked
        assert (plain == world.entries(name)).all()
        assert not _looks_uniform(plain)
    for one, other in itertools.combinations(seen.values(), 2):
        assert _looks_uniform(one - other)


def test_the_same_update_is_masked_afresh_in_every_round() -> None:
    world = World(4, Policy(**{**POLICY.model_dump(), "length": 20_000}))
    seen = []
    for round in (1, 2):
        world.start(round)
        run(world.server, world.ask())
        seen.append(world.sent["masked"]["device-00"].arrays["entries"])
    assert _looks_uniform(seen[0] - seen[1])


def test_nothing_of_a_client_travels_in_clear() -> None:
    """Neither its weight nor anything else but the stage and the round is in a message's values."""
    world = World(6)
    world.weights["device-00"] = 43
    world.start(1 + world.round)
    run(world.server, world.ask())
    assert [set(m.values) for by in world.sent.values() for m in by.values()] == [
        {"stage", "round"}
    ] * 30
    sent = world.sent["masked"]["device-00"].arrays
    assert set(sent) == {"entries"}
    assert sent["entries"][-1] != 43
    assert world.server.sum()[-1] == sum(world.weights.values())


def test_the_servers_first_message_states_the_terms() -> None:
    world = World(4)
    values = world.server.requests("keys")["device-00"].values
    assert json.loads(str(values["policy"])) == json.loads(POLICY.text())
    assert json.loads(str(values["cohort"])) == world.names


def test_an_update_that_was_not_given_is_not_sent() -> None:
    world = World(4)
    name = "device-00"
    world.clients[name] = SecureClient(
        world.identities[name], world.roster, POLICY, BROADCAST, world.rounds[name]
    )
    world.step("keys")
    world.step("shares")
    with pytest.raises(FederationError, match="not given in time"):
        world.handle(name, world.server.requests("masked")[name])


def test_the_example_of_the_docs_works(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "secure-aggregation.md"
    blocks = dict(re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S))
    exec(blocks["python"], {})
    assert capsys.readouterr().out == blocks["text"]
    assert Policy(**yaml.safe_load(blocks["yaml"])).length == 45056


def test_every_setting_of_a_policy_is_documented() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "secure-aggregation.md"
    for name, setting in SecureConfig.model_fields.items():
        shown = round(setting.default, 4) if name != "threshold" else 0.667
        assert f"| `{name}` | {shown} |" in page.read_text("utf-8")
