"""Benchmarks of distillation: tasks, teachers and students, the systems compared, and what comes out of one cell."""
