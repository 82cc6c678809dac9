"""Tokens without a server and without a vault: when one ends, and what is read again and when."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pfi.errors import ConfigError, DataError, StorageError
from pfi.serve import auth, gatekeeper
from pfi.serve.auth import Caller, Token, alive, digest_of, included, matches, new_token, note_use
from pfi.serve.gatekeeper import FRESH_SECONDS, Gatekeeper

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def token(name: str = "t", text: str = "pfi-x", **more: Any) -> Token:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Token(name, digest, "", "2030-01-01T00:00:00+00:00", **more)


@dataclass
class Vault:
    """Keeps one setting in memory, and opens as a home's vault does."""

    value: Any = None
    broken: bool = False
    reads: int = 0
    vault_file: Path = field(default_factory=lambda: Path("nowhere") / "vault.db")

    @contextmanager
    def open_vault(self) -> Iterator[Vault]:
        if self.broken:
            raise StorageError("cannot be read")
        self.reads += 1
        yield self

    def setting(self, name: str) -> Any:
        return self.value

    @contextmanager
    def change_setting(self, name: str) -> Iterator[Vault]:
        yield self

    def hold(self, *tokens: Token) -> None:
        self.value = [asdict(one) for one in tokens]


# When a token ends --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expires", "used", "over"),
    [
        (None, None, False),
        (NOON.isoformat(), None, True),  # at its very end
        ((NOON + timedelta(seconds=1)).isoformat(), None, False),
        ((NOON + timedelta(hours=2)).isoformat(), (NOON + timedelta(hours=1)).isoformat(), False),
        ((NOON + timedelta(hours=2)).isoformat(), (NOON + timedelta(hours=2)).isoformat(), True),
        ((NOON + timedelta(hours=2)).isoformat(), (NOON - timedelta(hours=9)).isoformat(), False),
        ("2030-01-01T13:00:00+02:00", None, True),  # eleven o'clock here
        ("2031-01-01T00:00:00", None, True),  # of which clock is not said
        ("next year", None, True),
        (2031, None, True),
        ((NOON + timedelta(hours=2)).isoformat(), "lately", True),
        ((NOON + timedelta(hours=2)).isoformat(), 5, True),
    ],
)
def test_a_token_is_over_at_its_end_and_where_its_end_cannot_be_read(
    expires: Any, used: Any, over: bool
) -> None:
    assert token(expires=expires, used=used).expired(NOON) == over


def test_scopes_include_those_before_them_and_nothing_else() -> None:
    assert included([]) == included(["root", "ADMIN", ""]) == frozenset()
    assert included(["admin", "root"]) == {"answer", "memory", "admin"}
    assert included(["memory", "answer"]) == {"answer", "memory"}
    assert not token(scopes=("root",)).opens("answer")
    assert Caller("ann", "t").may("answer") and not Caller("ann", "t").may("memory")


def test_a_token_whose_parent_is_gone_or_over_is_over_at_any_depth() -> None:
    over = (NOON - timedelta(hours=1)).isoformat()
    root, child = token("root"), token("child", parent="root")
    grandchild, orphan = token("grandchild", parent="child"), token("orphan", parent="nobody")
    everything = [grandchild, child, root, orphan]
    assert alive(everything, NOON) == [grandchild, child, root]
    assert alive([grandchild, child, replace(root, expires=over), orphan], NOON) == []
    assert alive([grandchild, replace(child, expires=over), root], NOON) == [root]


def test_only_what_may_be_a_token_is_looked_for() -> None:
    text = "pfi-" + "x" * 196
    assert digest_of(text) == hashlib.sha256(text.encode()).hexdigest()
    for wrong in (text + "x", "pfi", "PFI-x", " pfi-x", "sk-x", "pfi-é", ""):
        assert digest_of(wrong) is None
    known = token(text="pfi-a")
    assert matches(known, digest_of("pfi-a") or "") and not matches(known, digest_of("pfi-b") or "")
    assert not matches(replace(known, sha256=7), "pfi-a")  # type: ignore[arg-type]


# What is stored -----------------------------------------------------------------------


def test_a_new_token_keeps_a_short_label_and_its_end_in_universal_time() -> None:
    home: Any = Vault()
    end = datetime(2199, 1, 1, 2, 0, 0, 7, tzinfo=UTC).astimezone(None)
    made, text = new_token(home, "x" * 500, scopes=["admin", "answer"], expires=end)
    assert made.label == "x" * 100 and made.scopes == ("answer", "admin") and len(made.id) == 8
    assert made.expires == "2199-01-01T02:00:00+00:00" and made.parent is None
    assert matches(made, digest_of(text) or "") and text.startswith("pfi-")
    assert home.value == [asdict(made)] and text not in str(home.value)


def test_a_token_that_would_open_nothing_is_not_made() -> None:
    home: Any = Vault()
    for scopes in ([], ["root"], ["answer", "root"]):
        with pytest.raises(ConfigError):
            new_token(home, scopes=scopes)
    assert home.value is None


def test_there_are_a_hundred_tokens_and_those_that_are_over_make_room() -> None:
    home: Any = Vault()
    home.hold(*(token(f"t{n}") for n in range(99)))
    new_token(home)
    with pytest.raises(ConfigError, match="100 tokens"):
        new_token(home)
    over = "2020-01-01T00:00:00+00:00"
    home.value[0]["expires"] = over
    new_token(home)
    assert len(home.value) == 100 and "t0" not in [entry["id"] for entry in home.value]


@pytest.mark.parametrize(
    ("own", "parents", "expected"),
    [
        (None, None, None),
        (None, "2199-01-01T00:00:00+00:00", "2199-01-01T00:00:00+00:00"),
        ("2198-01-01T00:00:00+00:00", "2199-01-01T00:00:00+00:00", "2198-01-01T00:00:00+00:00"),
        ("2200-01-01T00:00:00+00:00", "2199-01-01T00:00:00+00:00", "2199-01-01T00:00:00+00:00"),
        # Later as text, earlier as time.
        ("2198-12-31T23:30:00+00:00", "2199-01-01T00:00:00+02:00", "2199-01-01T00:00:00+02:00"),
        ("2200-01-01T00:00:00+00:00", None, "2200-01-01T00:00:00+00:00"),
    ],
)
def test_a_token_ends_no_later_than_the_one_that_made_it(
    own: str | None, parents: str | None, expected: str | None
) -> None:
    home: Any = Vault()
    home.hold(token("p", scopes=("admin",), expires=parents))
    end = datetime.fromisoformat(own) if own else None
    new_token(home, parent="p", expires=end)
    assert home.value[1]["expires"] == expected and home.value[1]["parent"] == "p"


def test_a_use_is_noted_to_the_hour_and_never_taken_back() -> None:
    home: Any = Vault()
    home.hold(token("a"), token("b"))
    note_use(home, "a", datetime(2030, 1, 1, 12, 59, 59, 9, tzinfo=UTC))
    assert [entry["used"] for entry in home.value] == ["2030-01-01T12:00:00+00:00", None]
    note_use(home, "a", datetime(2030, 1, 1, 3, tzinfo=UTC))
    assert home.value[0]["used"] == "2030-01-01T12:00:00+00:00"
    home.value = []
    note_use(home, "a", NOON)
    assert home.value is None  # no tokens, no setting


def test_what_is_no_entry_is_left_out_and_a_damaged_one_opens_nothing() -> None:
    home: Any = Vault()
    home.hold(token("a"))
    home.value += ["x", 5, None]
    assert [one.id for one in auth.read_tokens(home)] == ["a"]
    home.value[0]["later"] = "of a newer pfi"
    assert auth.tokens_of(home) == [token("a")]
    home.value = [{"id": "a"}]
    with pytest.raises(DataError, match="damaged"):
        auth.read_tokens(home)


# What is read, and when ---------------------------------------------------------------


@dataclass
class World:
    """A gatekeeper over vaults in memory, whose clocks are set by hand."""

    vaults: dict[str, Vault]
    seconds: float = 0.0
    now: datetime = NOON
    stamp: tuple[Any, ...] = ()
    keeper: Gatekeeper = field(init=False)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    vaults = {"ann": Vault(), "bob": Vault()}
    vaults["ann"].hold(token("a", "pfi-ann"))
    vaults["bob"].hold(token("b", "pfi-bob", scopes=("admin",)))
    world = World(vaults)
    monkeypatch.setattr(gatekeeper._Kept, "_stamp_now", lambda kept: world.stamp)
    homes: Any = vaults
    world.keeper = Gatekeeper(homes, lambda: world.seconds, lambda: world.now)
    yield world
    world.keeper.close()


def test_a_vault_that_cannot_be_read_opens_nothing_that_was_known_before(world: World) -> None:
    assert world.keeper.caller("pfi-ann") == Caller("ann", "a")
    world.vaults["ann"].broken, world.stamp = True, ("changed",)
    for _ in range(2):  # the second within the pause
        with pytest.raises(StorageError):
            world.keeper.caller("pfi-ann")
        with pytest.raises(StorageError):
            world.keeper.still("ann", "a", "answer")
        with pytest.raises(StorageError):
            world.keeper.has_tokens("ann")
    assert world.keeper.caller("pfi-bob") == Caller("bob", "b")  # others are not kept waiting
    with pytest.raises(StorageError):  # whether it is wrong cannot be said
        world.keeper.caller("pfi-nobody")
    assert world.keeper.caller("sk-nobody") is None
    world.vaults["ann"].broken = False
    with pytest.raises(StorageError):  # in the pause it is not asked again
        world.keeper.caller("pfi-ann")
    world.seconds += 1.0
    assert world.keeper.caller("pfi-ann") == Caller("ann", "a")


def test_an_error_is_not_tried_again_before_a_second_is_over(world: World) -> None:
    world.vaults["ann"].broken = True
    for seconds in (0.0, 0.99):
        world.seconds = seconds
        with pytest.raises(StorageError):
            world.keeper.has_tokens("ann")
    world.vaults["ann"].broken = False
    with pytest.raises(StorageError):
        world.keeper.has_tokens("ann")
    world.seconds = 1.0
    assert world.keeper.has_tokens("ann")


def test_tokens_are_read_again_when_a_file_changes_or_two_seconds_are_over(world: World) -> None:
    vault = world.vaults["ann"]
    assert world.keeper.has_tokens("ann")
    before = vault.reads
    world.seconds = FRESH_SECONDS
    assert world.keeper.has_tokens("ann") and vault.reads == before
    world.seconds = FRESH_SECONDS + 0.01
    assert world.keeper.has_tokens("ann") and vault.reads == before + 1
    world.stamp, vault.value = ("changed",), []
    assert not world.keeper.has_tokens("ann") and vault.reads == before + 2
    assert world.keeper.caller("pfi-ann") is None


def test_a_change_while_it_is_read_is_seen_the_next_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = world.vaults["ann"]

    def read(home: Any) -> list[Token]:
        tokens = auth.read_tokens(home)
        world.stamp = ("revoked",)  # by somebody else, just then
        vault.value = []
        return tokens

    monkeypatch.setattr(gatekeeper, "read_tokens", read)
    assert world.keeper.has_tokens("ann")
    monkeypatch.setattr(gatekeeper, "read_tokens", auth.read_tokens)
    assert not world.keeper.has_tokens("ann")


def test_a_token_is_asked_for_by_profile_id_and_scope(world: World) -> None:
    keeper = world.keeper
    assert keeper.still("bob", "b", "admin") and keeper.still("ann", "a", "answer")
    assert not keeper.still("ann", "a", "memory")
    assert not keeper.still("ann", "b", "answer") and not keeper.still("bob", "a", "answer")
    caller = keeper.caller("pfi-bob")
    assert caller is not None and caller.scopes == {"answer", "memory", "admin"}


def test_only_the_vault_of_a_known_token_is_asked(world: World) -> None:
    assert world.keeper.caller("pfi-ann") and world.keeper.caller("pfi-bob")
    reads = [vault.reads for vault in world.vaults.values()]
    world.stamp = ("changed",)
    assert world.keeper.caller("pfi-ann")
    assert world.vaults["ann"].reads > reads[0] and world.vaults["bob"].reads == reads[1]


def test_a_clock_set_back_brings_no_token_back(world: World) -> None:
    end = (NOON + timedelta(hours=1)).isoformat()
    world.vaults["ann"].hold(token("a", "pfi-ann", expires=end))
    assert world.keeper.caller("pfi-ann")
    world.now = NOON + timedelta(hours=1)
    assert world.keeper.caller("pfi-ann") is None and not world.keeper.still("ann", "a", "answer")
    world.now = NOON
    assert world.keeper.caller("pfi-ann") is None and not world.keeper.has_tokens("ann")


def test_a_use_is_noted_once_an_hour_for_each_token(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[tuple[str, datetime]] = []
    monkeypatch.setattr(gatekeeper, "note_use", lambda home, one, now: noted.append((one, now)))
    begun, end = world.now, timedelta(hours=1)
    for later in (timedelta(0), end - timedelta(seconds=1), end):
        world.now = begun + later
        assert world.keeper.caller("pfi-ann")
    assert world.keeper.caller("pfi-bob")
    world.keeper.close()
    assert noted == [("a", begun), ("a", begun + end), ("b", begun + end)]
    assert world.keeper.caller("pfi-ann")  # a use that cannot be noted any more refuses nobody
    world.now += end
    assert world.keeper.caller("pfi-ann")


def test_a_full_disk_refuses_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise StorageError("no space")

    monkeypatch.setattr(gatekeeper, "note_use", full)
    assert world.keeper.caller("pfi-ann") == Caller("ann", "a")
    world.keeper._notes.submit(lambda: None).result(timeout=5)


def test_a_stamp_tells_every_change_of_the_files(tmp_path: Path) -> None:
    file = tmp_path / "vault.db"
    home: Any = SimpleNamespace(vault_file=file)
    kept = gatekeeper._Kept("ann", home, lambda: 0.0)
    seen = [kept._stamp_now()]
    for change in (
        lambda: file.write_text("a"),
        lambda: file.write_text("ab"),
        lambda: (tmp_path / "vault.db-wal").write_text("a"),
        lambda: file.rename(tmp_path / "away") and file.write_text("ab"),
    ):
        change()
        seen.append(kept._stamp_now())
    assert len({*seen}) == len(seen) and seen[0] == (None, None)
    assert kept._stamp_now() == seen[-1]
