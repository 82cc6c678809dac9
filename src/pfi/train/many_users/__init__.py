"""An adapter for each of many users, resumable, in processes or on Ray."""
