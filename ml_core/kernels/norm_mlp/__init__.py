"""Norm, MLP and residual; a linear layer with its residual: the second half of a block, and the end of its first."""
