"""Keys, who takes part, and invitations."""
