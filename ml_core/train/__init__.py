"""Training runs: the runner, the generic loop, and one module a student."""
