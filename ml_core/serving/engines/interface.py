"""What every engine is to the rest: a program is compiled for it once, and then runs on tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from ml_core.errors import EngineError

if TYPE_CHECKING:
    from torch import Tensor, nn

Sizes = Mapping[str, int]  # of the axes that vary: {"b": 1, "n": 32}
# how W8A8 products are spelt for an engine; "float" is a model without integer layers (forms.py)
Form = Literal["float", "native", "u8u8", "u8s8", "held", "fake"]


class EngineRefused(EngineError):
    """An engine's outputs are not those of the torch CPU path; the message says by how much."""

    code = "engine_refused"


@dataclass(frozen=True, kw_only=True)
class Program:
    """What is compiled: `module` in eval mode takes the `inputs` in order and returns one tensor or a tuple.

    axes: for each input the names of the axes that vary, by their place; limits: how large each may be. All inputs and
    outputs are dense CPU tensors. example: makes inputs of given sizes, for a seed the same each time.
    """

    module: "nn.Module"
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axes: Mapping[str, Mapping[int, str]]
    limits: Mapping[str, int]
    example: "Callable[[Sizes, int], tuple[Tensor, ...]]"


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """One way to run a program: an engine, and the form that its integer products take.

    precision: what is multiplied ("int8", "fp32", "bf16"). compiled: by torch.compile, for each shape anew.
    """

    name: str
    engine: Literal["torch", "onnxruntime", "openvino"]
    form: Form
    precision: Literal["int8", "fp32", "bf16"]
    compiled: bool = False

    @property
    def package(self) -> str:
        """The distribution that must be installed."""
        return self.engine


class Compiled(Protocol):
    """A program on an engine. Calls may come from several threads; inputs are never written to."""

    system: System
    version: str

    def __call__(self, *inputs: "Tensor") -> "tuple[Tensor, ...]":
        """The outputs, in the caller's own memory. Any sizes of the program's varying axes."""
        ...


INT8 = (
    System(name="torch int8", engine="torch", form="native", precision="int8"),
    System(name="torch int8 compiled", engine="torch", form="held", precision="int8", compiled=True),
    System(name="onnxruntime int8", engine="onnxruntime", form="u8u8", precision="int8"),
    System(name="onnxruntime int8 u8s8", engine="onnxruntime", form="u8s8", precision="int8"),
    System(name="onnxruntime int8 in fp32", engine="onnxruntime", form="held", precision="int8"),
    System(name="openvino int8", engine="openvino", form="fake", precision="int8"),
    System(name="openvino int8 in fp32", engine="openvino", form="held", precision="int8"),
)
FLOAT = (
    System(name="torch fp32", engine="torch", form="float", precision="fp32"),
    System(name="torch fp32 compiled", engine="torch", form="float", precision="fp32", compiled=True),
    System(name="torch bf16 compiled", engine="torch", form="float", precision="bf16", compiled=True),
    System(name="onnxruntime fp32", engine="onnxruntime", form="float", precision="fp32"),
    System(name="openvino fp32", engine="openvino", form="float", precision="fp32"),
    System(name="openvino bf16", engine="openvino", form="float", precision="bf16"),
)
# compiling takes a minute for each shape, which a server cannot wait for
SERVABLE = tuple(system for system in INT8 if not system.compiled)
REFERENCE = INT8[0]
SYSTEMS: Mapping[str, System] = {system.name: system for system in (*INT8, *FLOAT)}
