"""Agents that run in a thread, for tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pfi.federate.deploy.agent.agent import SOCKET, Agent, Handler


@contextmanager
def running(home: Path, handler: Handler, **options: Any) -> Iterator[Path]:
    """The socket of an agent in this folder."""
    with Agent(home / SOCKET, handler, **options) as agent:
        thread = threading.Thread(target=agent.serve)
        thread.start()
        yield home / SOCKET
        agent.stop()
        thread.join(60)
        assert not thread.is_alive()
