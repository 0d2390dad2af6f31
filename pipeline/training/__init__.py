"""Stage two: training runs, sweeps, their checkpoints and records."""
