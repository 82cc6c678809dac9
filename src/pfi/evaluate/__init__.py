"""Studies: arms, statistics, plots and reports."""
