"""A profile's model as files for other programs."""
