"""Distillation: what a model shows of itself (Features) and the DFAD loss."""
