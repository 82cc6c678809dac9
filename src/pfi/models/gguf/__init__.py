"""GGUF files, the format of llama.cpp, as backbones: header, family, tokenizer, weights."""
