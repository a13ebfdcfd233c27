"""Quantization: W8A8 training, conversion and the integer layers."""
