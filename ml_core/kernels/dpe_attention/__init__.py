"""Attention with a learned bias by distance (DPE)."""
