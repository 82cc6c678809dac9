"""What suits this machine."""
