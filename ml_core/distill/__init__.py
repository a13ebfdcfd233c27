"""Distillation: what models show (features), the DFAD loss, teachers, their cache, and objectives for the loop."""
