"""Backbones, adapters and the bank: loading, prompts, scores, and the embedded base model."""
