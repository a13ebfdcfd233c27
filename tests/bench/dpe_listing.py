"""Instructions of the DPE kernels' main loops, compiled for sm_90 without a GPU and counted in nvdisasm's listing.

Of each loop: instructions, and the order of products (H: HGMMA), waits for them (W), exponentials (E) and atomics (R).
"""

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ml_core.kernels.dpe_attention import backward_kernel as back
from ml_core.kernels.dpe_attention import kernel, launch

_LOW = {"q_ptr", "k_ptr", "v_ptr", "o_ptr", "do_ptr", "dk_ptr", "dv_ptr", "pk_ptr", "pv_ptr"}
_INTEGERS = {"qid_ptr", "kid_ptr", "bounds_ptr"}
_ODD = {"heads", "offset", "b", "head0", "extra"}  # integers that need not be multiples of 16
_SETTINGS: Mapping[str, Any] = {
    "CAUSAL": False, "IDS": False, "SEGMENT": 0, "BEFORE": 0, "AFTER": 0, "HEAD": 64, "D": 64, "ALL_MASKED": False,
    "EVEN": True, "KEYS_EVEN": True, "PREFIX": False,
}  # fmt: skip


def main() -> int:
    """Print a line a kernel, tiling and loop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    print(f"Triton {triton.__version__}, sm_90, bf16, k 64")
    for tiles in launch.FORWARD:
        _print("forward", kernel.forward_kernel, tiles, falling=False, AHEAD=tiles.ahead)
    for tiles in launch.KEYS:
        for name, more in (("dk, dv", (False, False)), ("+ dq", (True, False)), ("+ dq + dtable", (True, True))):
            code, operands, _ = back.add_code(tiles.rows)
            given = {"DQ": more[0], "DT": more[1], "ADD": code, "ADD_OPERANDS": operands}
            _print(f"backward {name}", back.keys_kernel, tiles, falling=True, **given)
    return 0


def _print(name: str, fn: Any, tiles: launch.Tiles, *, falling: bool, **more: Any) -> None:
    size = f"{tiles.rows}x{tiles.columns} w{tiles.warps} s{tiles.stages}{' ahead' if tiles.ahead else ''}"
    for count, order in _loops(_listing(fn, tiles, falling=falling, **more)):
        print(f"{name}, {size}: {count} instructions, {order}", flush=True)


def _listing(fn: Any, tiles: launch.Tiles, *, falling: bool, **more: Any) -> list[str]:
    options = launch.tile_options(tiles, falling=falling)
    settings = {"num_warps": options.pop("num_warps"), "num_stages": options.pop("num_stages")}
    names = [each.name for each in fn.params]
    given = {name: value for name, value in (_SETTINGS | options | more).items() if name in names}
    kinds = {name: "constexpr" if name in given else _kind(name) for name in names}
    aligned = {
        (at,): [["tt.divisibility", 16]]
        for at, name in enumerate(names)
        if kinds[name][0] == "*" or (kinds[name] == "i32" and name not in _ODD)
    }
    constants = {(names.index(name),): value for name, value in given.items()}
    source = ASTSource(fn, kinds, constexprs=constants, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=settings)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
        said = subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True)
    return said.stdout.splitlines()


def _kind(name: str) -> str:
    if name in _LOW:
        return "*bf16"
    if name in _INTEGERS:
        return "*i32"
    return "*fp32" if name.endswith("_ptr") else "fp32" if name in ("scale", "factor") else "i32"


def _loops(lines: list[str]) -> list[tuple[int, str]]:
    """Instructions, and the order of what counts, between each label and the jump back to it."""
    labels: dict[str, int] = {}
    code: list[str] = []
    found = []
    for line in lines:
        if label := re.match(r"^(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        elif instruction := re.match(r"^\s+/\*[0-9a-f]+\*/\s+(.*?);", line):
            code.append(instruction[1])
            jump = re.search(r"BRA.*?(\.L_x_\d+)", instruction[1])
            if jump and len(code) - labels.get(jump[1], len(code)) > 60:
                found.append(code[labels[jump[1]] :])
    return [(len(loop), _order(loop)) for loop in found]


def _order(loop: list[str]) -> str:
    marks = {"HGMMA": "H", "DEPBAR.LE gsb": "W", "MUFU.EX2": "E", "REDG": "R"}
    kinds = "".join(next((mark for text, mark in marks.items() if text in line), "") for line in loop)
    return " ".join(f"{run[0][0]}{len(run[0])}" for run in re.finditer(r"(.)\1*", kinds))


if __name__ == "__main__":
    raise SystemExit(main())
