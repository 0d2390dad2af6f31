"""Stage two: training runs, their checkpoints and records."""
