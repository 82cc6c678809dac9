"""A clock that was wrong once shuts no device out of later secure sums."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from pfi.errors import FederationError
from pfi.federate.secure.history import Rounds


def test_a_far_round_number_of_an_earlier_version_shuts_no_device_out(tmp_path: Path) -> None:
    now = time.time_ns() // 10**6
    far, cohort = now + 13 * 365 * 86400 * 1000, ["a", "b"]
    path = tmp_path / "rounds.json"
    path.write_text(json.dumps({"club": far, "other": now - 5}))
    rounds = Rounds(path)
    with pytest.raises(FederationError, match="not newer"):
        rounds.join("club", now - 3600 * 1000, "x", cohort)  # what may have been joined before
    rounds.join("club", now, "x", cohort)
    with pytest.raises(FederationError, match="not newer"):
        rounds.join("club", now, "x", cohort)
    with pytest.raises(FederationError, match="a day ahead"):
        rounds.join("club", far, "y", cohort)
    rounds.join("club", now + 1, "y", cohort)
    rounds.join("other", now, "z", cohort)
