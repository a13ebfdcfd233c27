"""Compiling a program for a system, whichever engine that is."""

from ml_core.serving.engines.interface import Compiled, Program, Sizes, System


def export_for(program: Program, *, system: System, sizes: Sizes) -> bytes:
    """The graph that the system's engine reads; b"" for torch, which takes the module itself. Raises EngineMissing."""
    if system.engine == "torch":
        return b""
    from ml_core.serving.engines.export import onnx_bytes

    return onnx_bytes(program, system=system, sizes=sizes)


def compiled(program: Program, *, system: System, model: bytes, threads: int, streams: int = 1) -> Compiled:
    """The program on the system's engine; model: of `export_for`. streams: how many calls may run side by side.

    Raises EngineMissing where the engine is not installed, and InputError where this CPU cannot run the system.
    """
    if system.engine == "torch":
        from ml_core.serving.engines.torch_cpu import TorchCpu

        return TorchCpu(system=system, program=program, threads=threads)
    if system.engine == "onnxruntime":
        from ml_core.serving.engines.onnxruntime import OnnxRuntime

        return OnnxRuntime(model, system=system, program=program, threads=threads)
    from ml_core.serving.engines.openvino import OpenVino

    return OpenVino(model, system=system, program=program, threads=threads, streams=streams)
