"""A study: arms over tasks and users, run, resumed and logged."""
