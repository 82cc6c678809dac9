"""On the server: SuperLink, the fleet behind it, and the round loop over it."""
