"""Programs as ONNX, which ONNX Runtime and OpenVINO read: one graph for all sizes of the axes that vary."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ml_core.errors import EngineMissing, InputError
from ml_core.serving.engines.forms import spelt
from ml_core.serving.engines.interface import Program, Sizes, System

OPSET = 20
_INT8, _BOOL = 3, 9  # onnx.TensorProto
_HIDDEN = -1e30  # scores are added to it without overflow


def onnx_bytes(program: Program, *, system: System, sizes: Sizes) -> bytes:
    """The program in the system's form as one ONNX file. sizes: of the example that is traced, at least 2 each.

    Raises EngineMissing where onnxscript, which torch exports by, is not installed.
    """
    try:
        import_module("onnxscript")
    except ModuleNotFoundError:
        raise EngineMissing("exporting needs onnxscript: pip install -r ml_core/requirements-engines.txt") from None
    dims = {axis: Dim(axis, min=1, max=most) for axis, most in program.limits.items()}
    shapes = tuple({at: dims[axis] for at, axis in program.axes.get(name, {}).items()} for name in program.inputs)
    module = _Positional(spelt(program.module, form=system.form)).eval()
    example = program.example(sizes, 0)
    with _quiet(), torch.no_grad():
        with _RuntimeAttention() if system.engine == "onnxruntime" else nullcontext():
            exported = torch.export.export(module, example, dynamic_shapes=(shapes,), strict=False)
        made = torch.onnx.export(
            exported,
            input_names=list(program.inputs),
            output_names=list(program.outputs),
            opset_version=OPSET,
            custom_translation_table=_translations(),
            verbose=False,
        )
    return made.model_proto.SerializeToString()


class _Positional(torch.nn.Module):
    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> Any:
        """The module on the inputs in order."""
        return self.module(*inputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports each constant that it folds; errors are raised all the same."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [each.level for each in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for each in loggers:
                each.setLevel(logging.ERROR)
            yield
        finally:
            for each, level in zip(loggers, levels, strict=True):
                each.setLevel(level)


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Operators that are spelt here rather than as torch spells them, by onnxscript's tracing."""
    op = import_module("onnxscript").opset20
    return {
        torch.ops.assay_engines.matmul_integer.default: _matmul_integer(op),
        torch.ops.assay_engines.rounded.default: _rounded(op),
        torch.ops.assay_engines.dequantize.default: _dequantize(op),
        torch.ops.aten.scaled_dot_product_attention.default: _attention_written_out(op),
    }


def _matmul_integer(op: Any) -> Callable[..., Any]:
    def translated(levels: Any, weight: Any, zero: Any, weight_zero: Any) -> Any:
        return op.MatMulInteger(levels, weight, zero, weight_zero)

    return translated


def _rounded(op: Any) -> Callable[..., Any]:
    def translated(scaled: Any) -> Any:
        one, zero = op.Constant(value_float=1.0), op.Cast(op.Constant(value_int=0), to=_INT8)
        return op.DequantizeLinear(op.QuantizeLinear(scaled, one, zero), one, zero)

    return translated


def _dequantize(op: Any) -> Callable[..., Any]:
    def translated(weight: Any, scale: Any) -> Any:
        return op.DequantizeLinear(weight, scale, axis=1)

    return translated


def _attention_written_out(op: Any) -> Callable[..., Any]:
    """Two products and a softmax, which OpenVINO makes one operator of; torch's form checks for NaN in between."""

    def translated(
        query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
        scale: float | None = None, enable_gqa: bool = False,
    ) -> Any:  # fmt: skip
        size = _head_size(query, is_causal=is_causal, enable_gqa=enable_gqa)
        scaled = op.Mul(query, op.Constant(value_float=size**-0.5 if scale is None else scale))
        scores = op.MatMul(scaled, op.Transpose(key, perm=[0, 1, 3, 2]))
        if attn_mask is not None:
            scores = op.Add(scores, _bias(op, attn_mask))
        return op.MatMul(op.Softmax(scores, axis=-1), value)

    return translated


class _RuntimeAttention(TorchFunctionMode):
    """While a model is traced for ONNX Runtime: its attention in the place of torch's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every torch function comes by here."""
        call = _attention_of_runtime if func is functional.scaled_dot_product_attention else func
        return call(*args, **(kwargs or {}))


def _attention_of_runtime(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """ONNX Runtime's own operator, which does not write out all heads' scores. Query, key, value (b h n k)."""
    size = _head_size(query, is_causal=is_causal, enable_gqa=enable_gqa)
    b, heads, n, _ = query.shape
    rows = [each.transpose(1, 2).flatten(2) for each in (query, key, value)]
    bias = attn_mask
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.where(bias, 0.0, _HIDDEN)
    out = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        [*rows, None, None, bias],
        {"num_heads": heads, "scale": float(size**-0.5 if scale is None else scale)},
        dtype=query.dtype,
        shape=(b, n, heads * size),
        version=1,
    )
    return out.unflatten(2, (heads, size)).transpose(1, 2)


def _head_size(query: Any, *, is_causal: bool, enable_gqa: bool) -> int:
    if is_causal or enable_gqa:
        raise InputError("attention: causal and grouped attention are not exported; give a mask, or repeat the heads")
    return int(query.shape[3])


def _bias(op: Any, mask: Any) -> Any:
    """What is added to the scores. A query that sees no key at all averages all of them, where torch says 0."""
    if mask.dtype != _BOOL:
        return mask
    return op.Where(mask, op.Constant(value_float=0.0), op.Constant(value_float=_HIDDEN))
