"""What the engine asks of the operating system: child processes, forks, signals."""
