"""Answers: engine, memory and gate of one profile."""
