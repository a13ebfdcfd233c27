"""Operators: naive.py is the truth of each, op.py its only public face."""
