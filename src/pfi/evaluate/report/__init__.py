"""What a run says: figures, plots, pages."""
