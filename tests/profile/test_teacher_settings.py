"""Which key goes with which address, over the layers of settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfi.augment.cache import TeacherStore
from pfi.augment.client import TeacherClient
from pfi.augment.config import AugmentConfig, TeacherConfig
from pfi.augment.teachers.remote import RemoteTeacher
from pfi.errors import ConfigError
from pfi.privacy.ledger.ledger import Ledger
from pfi.profile.config import HomeConfig
from pfi.profile.home import Home
from pfi.profile.learn.augmenting import augment_config

STORED = {"kind": "openai", "base_url": "https://one.example/v1", "api_key_env": "ONE_KEY"}


@pytest.mark.parametrize(
    ("given", "variable"),
    [
        ({}, "ONE_KEY"),
        ({"model": "m"}, "ONE_KEY"),
        ({"base_url": "https://one.example/v1"}, "ONE_KEY"),
        ({"base_url": "https://two.example/v1"}, "OPENAI_API_KEY"),
        ({"base_url": "https://two.example/v1", "api_key_env": "TWO_KEY"}, "TWO_KEY"),
    ],
)
def test_a_key_stays_with_the_address_that_it_was_named_beside(
    tmp_path: Path, given: dict[str, str], variable: str
) -> None:
    home = Home("ann", tmp_path, HomeConfig(augment={"teacher": STORED}))
    assert augment_config(home, {"teacher": given}).teacher.api_key_env == variable


def test_what_may_not_leave_may_be_sent_to_this_machine_and_is_noted(tmp_path: Path) -> None:
    """A server on this machine is asked under any policy, and never without the ledger."""
    config = AugmentConfig(policy="local")
    ledger = Ledger(tmp_path / "ledger.jsonl")
    here = TeacherConfig(kind="openai", model="m", base_url="http://127.0.0.1:9/v1")
    with TeacherStore(tmp_path / "teacher.db") as store:
        TeacherClient(RemoteTeacher(here), config, store, ledger)
        with pytest.raises(ValueError, match="ledger"):
            TeacherClient(RemoteTeacher(here), config, store)
        away = RemoteTeacher(here)
        away.host = "127.0.0.1.evil.example"
        with pytest.raises(ConfigError, match="nothing may leave"):
            TeacherClient(away, config, store, ledger)
        assert TeacherClient(RemoteTeacher(here), AugmentConfig(), store, ledger).redacts
