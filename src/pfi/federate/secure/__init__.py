"""Secure aggregation: the server learns the sum of a cohort's updates and no client's own."""

from pfi.federate.secure.client import SecureClient
from pfi.federate.secure.groups import groups, run, run_groups
from pfi.federate.secure.history import Rounds
from pfi.federate.secure.policy import Policy, SecureConfig, load_policy
from pfi.federate.secure.roster import Identity, Roster
from pfi.federate.secure.server import SecureServer
from pfi.federate.secure.terms import STAGES

__all__ = [
    "STAGES",
    "Identity",
    "Policy",
    "Roster",
    "Rounds",
    "SecureClient",
    "SecureConfig",
    "SecureServer",
    "groups",
    "load_policy",
    "run",
    "run_groups",
]
