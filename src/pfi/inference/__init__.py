"""Answers: one interface over the bank in PyTorch and over llama.cpp."""
