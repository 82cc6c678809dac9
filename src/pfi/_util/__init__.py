"""What several rooms need and no room is about: files, SQLite, settings, events, workers."""
