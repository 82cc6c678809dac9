"""llama.cpp as an engine, and its file format."""
