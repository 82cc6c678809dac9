"""Sealed files and signatures."""
