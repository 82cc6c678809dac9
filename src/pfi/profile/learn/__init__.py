"""What a profile learns: training, augmentation, feedback, refresh, the gate."""
