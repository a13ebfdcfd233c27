"""Writes of training: runs, their children, and following what these write."""
