"""Products of int8 activations and int8 weights (W8A8)."""
