"""Teachers: behind an OpenAI-compatible endpoint, from a folder, or the embedded one."""
