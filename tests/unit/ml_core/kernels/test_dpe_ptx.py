"""The inline PTX of DPE attention: what it fetches and adds, thread by thread; and that the compiler lays tiles so."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ml_core.kernels.dpe_attention.backward_kernel import add_code
from ml_core.kernels.dpe_attention.kernel import fetch_code
from ml_core.kernels.dpe_attention.positions import MARGIN, origin, spread_length

ROOT = Path(__file__).resolve().parents[4]


def registers(lane, *, columns):
    """(row, column) of each register of a thread: wgmma's accumulator of 16 rows, PTX ISA 9.7.15.5.1."""
    return [
        (lane // 4 + 8 * half, 8 * group + 2 * (lane % 4) + pair)
        for group in range(columns // 8)
        for half in range(2)
        for pair in range(2)
    ]


def run_fetch(code, *, size, memory, address):
    """The values of the registers after the code ran; memory is a function of a byte address."""
    found = {}
    for line in filter(None, (part.strip() for part in code.split(";"))):
        if move := re.fullmatch(r"mov\.f32 \$(\d+), \$(\d+)", line):
            found[int(move[1])] = found[int(move[2])]
            continue
        load = re.fullmatch(r"ld\.global\.nc\.v2\.f32 \{\$(\d+), \$(\d+)\}, \[\$(\d+)\+(-?\d+)\]", line)
        assert load, line
        assert int(load[3]) == size
        place = address + int(load[4])
        assert place % 8 == 0, "a pair starts at an even entry"
        found[int(load[1])], found[int(load[2])] = memory(place), memory(place + 4)
    return [found[at] for at in range(size)]


def place_of(x, *, falling, width):
    """The address that bias_tile computes for entry x of a thread's first register, in a table of `width` entries."""
    low = x - 1 if falling else x
    return 4 * (low + (low & 1) * (width + 1))


def test_a_spread_table_begins_at_even_entries_for_every_number_of_queries():
    for n in range(1, 300):
        assert origin(n) % 2 == 0
        assert spread_length(n=n, m=77) % 2 == 0
        # the outermost distances, and the margin that a kernel's last tiles read
        assert origin(n) - (n - 1) >= MARGIN
        assert spread_length(n=n, m=77) - origin(n) - 77 >= MARGIN


@pytest.mark.parametrize("columns", [32, 64, 128])
@pytest.mark.parametrize("falling", [False, True])
@pytest.mark.parametrize("start", [300, 301])
def test_a_thread_fetches_the_entry_of_every_register(columns, falling, start):
    width = 1000
    code, operands, size = fetch_code(columns, falling=falling)
    assert (size, len(operands.split(","))) == (4 * columns // 8, 8 * columns // 8)
    entry = lambda byte: byte // 4 if byte // 4 < width else byte // 4 - width - 1  # noqa: E731
    for lane in range(32):
        places = registers(lane, columns=columns)
        # rows are queries and columns keys: key less query rises along a row; it falls where rows are keys
        wanted = [start + (row - column if falling else column - row) for row, column in places]
        address = place_of(wanted[0], falling=falling, width=width)
        assert run_fetch(code, size=size, memory=entry, address=address) == wanted


@pytest.mark.parametrize("columns", [32, 64, 128])
@pytest.mark.parametrize("start", [300, 301])
def test_a_thread_adds_every_register_to_its_entry_once(columns, start):
    width = 1000
    code, operands, size = add_code(columns)
    results = size // 4
    assert len(operands.split(",")) == results + 2 * size
    for lane in range(32):
        places = registers(lane, columns=columns)
        entries = [start + row - column for row, column in places]
        values = [float(2**at) if at < 50 else float(3 * at) for at in range(size)]
        wanted, got = {}, {}
        for entry, value in zip(entries, values, strict=True):
            wanted[entry] = wanted.get(entry, 0.0) + value
        address = place_of(entries[0], falling=True, width=width)
        for byte, value in _run_add(code, results=results, size=size, values=values, address=address):
            entry = byte // 4 if byte // 4 < width else byte // 4 - width - 1
            got[entry] = got.get(entry, 0.0) + value
        assert got == wanted


def _run_add(code, *, results, size, values, address):
    """(byte, value) of every addition to memory."""
    names = {f"${results + at}": value for at, value in enumerate(values)}
    said = []
    for line in filter(None, (part.strip() for part in re.sub(r"^\{ |\}$", "", code).split(";"))):
        if add := re.fullmatch(r"add\.f32 (\w), (\$\d+), (\$\d+)", line):
            names[add[1]] = names[add[2]] + names[add[3]]
        elif red := re.fullmatch(
            r"red\.relaxed\.gpu\.global\.add\.v2\.f32 \[\$(\d+)\+(-?\d+)\], \{(\S+), (\S+)\}", line
        ):
            assert int(red[1]) == results + size
            place = address + int(red[2])
            assert place % 8 == 0
            said += [(place, names[red[3]]), (place + 4, names[red[4]])]
        else:
            assert line == ".reg .f32 a, b" or line.startswith("mov.u32"), line
    return said


COMPILE = """if True:
    import json
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from ml_core.kernels.dpe_attention import backward_kernel as back, kernel, launch

    def compiled(fn, tiles, falling, dtype="bf16", **more):
        options = launch.tile_options(tiles, falling=falling)
        warps, stages = options.pop("num_warps"), options.pop("num_stages")
        given = {"CAUSAL": True, "IDS": False, "SEGMENT": 0, "BEFORE": 0, "AFTER": 0, "HEAD": 64, "D": 64}
        given |= {"ALL_MASKED": False, "EVEN": True, "AHEAD": tiles.ahead, "PREFIX": False} | options | more
        names = [each.name for each in fn.params]
        given = {name: value for name, value in given.items() if name in names}
        low = {"q_ptr", "k_ptr", "v_ptr", "o_ptr", "do_ptr", "dk_ptr", "dv_ptr", "pk_ptr", "pv_ptr"}
        ints = {"qid_ptr", "kid_ptr", "bounds_ptr"}
        kind = lambda name: (
            "constexpr" if name in given else f"*{dtype}" if name in low else "*i32" if name in ints
            else "*fp32" if name.endswith("_ptr") else "fp32" if name in ("scale", "factor") else "i32"
        )
        attrs = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(names) if kind(name)[0] == "*"}
        signature = {name: kind(name) for name in names}
        source = ASTSource(fn, signature, constexprs={(names.index(k),): v for k, v in given.items()}, attrs=attrs)
        options = {"num_warps": warps, "num_stages": stages}
        return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)

    add = lambda tiles: dict(zip(("ADD", "ADD_OPERANDS"), back.add_code(tiles.rows)))
    found = []
    for tiles in launch.FORWARD[:2]:
        found.append(("forward", tiles, compiled(kernel.forward_kernel, tiles, False)))
    banded = {"PREFIX": True, "SEGMENT": 1024, "BEFORE": 1, "AFTER": 1, "CAUSAL": False}
    found.append(("forward", tiles, compiled(kernel.forward_kernel, tiles, False, **banded)))
    for tiles in launch.KEYS[:2]:
        more = {"KEYS_EVEN": True, "DQ": True, "DT": True, **add(tiles)}
        found.append(("keys", tiles, compiled(back.keys_kernel, tiles, True, **more)))
    square = launch.Tiles(64, 64, 4, 2)
    found.append(("queries", square, compiled(back.queries_kernel, square, False)))
    found.append(("diagonals", square, compiled(back.diagonals_kernel, square, False, MASK=False, PARTS=1, B=64)))
    # products of fp32 are unrolled: narrow heads, as wider ones repeat the same instructions
    for dtype, size in (("fp32", {"HEAD": 16, "D": 16}), ("bf16", {})):
        first = launch.Tiles(64, 32, 4, 2, ptx=False) if size else launch.Tiles(16, 64, 4, 3, ptx=False)
        compiled(kernel.forward_kernel, first, False, dtype, **size)
        plain = launch.Tiles(32, 32, 4, 1, ptx=False)
        more = {"KEYS_EVEN": True, "DQ": True, "DT": True, "ADD": "", "ADD_OPERANDS": ""} | size
        compiled(back.keys_kernel, plain, True, dtype, **more)
        compiled(back.queries_kernel, plain, False, dtype, **size)
        compiled(back.diagonals_kernel, plain, False, dtype, MASK=False, PARTS=1, B=32, **size)
    compiled(kernel.copies_kernel, square, False, CLAMP=True, BLOCK=1024)
    compiled(back.rows_kernel, square, False, WITH_LSE=True)
    compiled(back.sums_kernel, square, False, PARTS=1, B=64)
    print(json.dumps([[name, list(tiles), each.asm["ttgir"], each.metadata.shared] for name, tiles, each in found]))
"""


@pytest.mark.slow
def test_for_hopper_every_kernel_compiles_and_every_tile_of_ptx_lies_as_the_ptx_presumes(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    said = subprocess.run(
        [sys.executable, "-c", COMPILE], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    compiled = json.loads(said.stdout)
    assert [name for name, *_ in compiled] == ["forward", "forward", "forward", "keys", "keys", "queries", "diagonals"]
    for name, tiles, ir, shared in compiled:
        rows, columns, warps, *_ = tiles
        height, width = (columns, rows) if name == "keys" else (rows, columns)
        results = re.findall(r'elementwise_inline_asm "([^"]*)".*?-> tensor<(\d+)x(\d+)x\w+, (#\w+)>', ir)
        verbs = {"red" if "red.relaxed" in code else "ld" for code, *_ in results}
        assert verbs == ({"ld", "red"} if name == "keys" else {"ld"}), (name, tiles)
        for _, tall, wide, layout in results:
            assert (int(tall), int(wide)) == (height, width)
            mma = re.search(rf"^{layout} = (.*)$", ir, re.MULTILINE)[1]
            assert f"versionMajor = 3, versionMinor = 0, warpsPerCTA = [{warps}, 1]" in mma, (name, tiles, mma)
            assert re.search(rf"instrShape = \[16, {width}, 16\]", mma), (name, tiles, mma)
        assert shared <= 227 * 1024
