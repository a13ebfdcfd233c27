"""Engines behind one interface: torch, ONNX Runtime and OpenVINO on the CPU, gated by parity, chosen by measured time.

Importing this package, or any of its modules, imports neither torch nor an engine: each is imported when it is chosen.
"""
