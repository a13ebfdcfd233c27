"""Adapters: every kind of teacher (and student) shows itself as Features."""
