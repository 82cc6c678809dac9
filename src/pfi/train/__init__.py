"""Training adapters: settings, jobs, one loop with the objective passed in, the peft reference."""
