"""Quantization to W8A8: training for it, conversion, the integer layers, saving and loading."""

from ml_core.quant.describe import LayerReport, describe
from ml_core.quant.general import GeneralQuantLinear, PackedEmbedding, QuantPatches
from ml_core.quant.layers import QuantEmbedding, QuantLinear
from ml_core.quant.quantizer import Quantizer
from ml_core.quant.state import load_quantized, quantized_state

__all__ = [
    "GeneralQuantLinear",
    "LayerReport",
    "PackedEmbedding",
    "QuantEmbedding",
    "QuantLinear",
    "QuantPatches",
    "Quantizer",
    "describe",
    "load_quantized",
    "quantized_state",
]
