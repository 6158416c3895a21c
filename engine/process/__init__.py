"""Child processes, forks and signals."""
