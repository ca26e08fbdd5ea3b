"""The emulator runs small HIP programs as their sources say: shared memory, calls, atomics, matrix products."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch

from tests.tolerances import assert_within
from tests.tools.gfx1151_emulator.hip import PROGRAMS, needs_hip, program
from tools import gfx1151_emulator as emulator
from tools.gfx1151_emulator.hip import compile_hip, compiler

pytestmark = needs_hip


def test_host_and_emulator_agree_bit_for_bit(tmp_path: Path) -> None:
    rows, slots = 96, 200
    words = torch.randint(-(2**31), 2**31 - 1, (rows,), dtype=torch.int32)
    words[:6] = torch.tensor([0, -1, 1, -(2**31), 2**31 - 1, 255], dtype=torch.int32)
    want, found = (torch.zeros(rows, slots, dtype=torch.int32) for _ in range(2))
    library = tmp_path / "same.so"
    source = '#define F\n#include "same.h"\n'
    source += (
        'extern "C" void all(const u32* x, u32* o, int n, int s) { for (int i = 0; i < n; i++) same(i, x, o, n, s); }'
    )
    flags = ["-O1", "-ffp-contract=off", "-fwrapv", "-shared", "-fPIC", "-march=native", "-I", PROGRAMS]
    subprocess.run([compiler(), "-x", "c++", "-", *flags, "-o", library], input=source.encode(), check=True)
    ctypes.CDLL(str(library)).all(ctypes.c_void_p(words.data_ptr()), ctypes.c_void_p(want.data_ptr()), rows, slots)
    source = '#include "device.h"\n#define F __device__\n#include "same.h"\n'
    source += "KERNEL all(const u32* x, u32* o, int n, int s) { same(threadIdx.x, x, o, n, s); }"
    code = compile_hip(source, ["-ffp-contract=off", "-I", str(PROGRAMS)])
    emulator.launch(code, "all", (1,), (rows,), [words, found, rows, slots])
    differing = (want != found).any(0).nonzero().flatten().tolist()
    assert not differing, f"words {differing} of a row differ"
    assert want[:, -40:].eq(0).all(), "rows are longer than what is written"


def test_shared_memory_calls_pointers_and_lanes() -> None:
    items, blocks = 64, 12
    words, floats = torch.zeros(blocks, 4, items, dtype=torch.int32), torch.zeros(blocks, 2, items)
    halves = torch.randn(2 * items, 2).half()
    emulator.launch(program("features"), "features", (3, 2, 2), (8, 4, 2), [words, floats, halves])
    t, table = torch.arange(items), [3, 1, 4, 1, 5]
    for block in range(blocks):
        bins = torch.zeros(8).long().index_add(0, (t * 7 + block) & 7, t)
        assert torch.equal(words[block, 0].long(), bins[t & 7] + (t ^ 21).max() * 1000), "LDS atomics"

    def folded(item: int) -> int:
        total = 0
        for i in range(item % 11):
            total = total * 3 + item * (i & 7) + table[(item + (i & 7)) % 5]
        return total

    assert words[5, 1].tolist() == [folded(i) for i in range(items)], "a call, a private array, a constant table"
    voted = torch.tensor([sum((w * 32 + i) % 3 == 0 for i in range(32)) + 100 * (w == 0) for w in range(2)])
    assert torch.equal(words[0, 2].long(), voted[t // 32] + ((t & 32) + ((t * 5) & 31)) * 1000), "ballot, shuffle"
    up, down = torch.where((t & 31) >= 3, t - 3, t), torch.where((t & 31) < 30, t + 2, t)
    assert torch.equal(words[0, 3].long(), up + 1000 * down), "shuffles past the ends"
    x, y = halves[:items].double(), halves[items:].double()
    assert_within("packed halves", floats[0, 0], (x * y + x).sum(1), 1e-3)
    assert_within("fdot2", floats[0, 1], (x * y).sum(1) + 1.5, 1e-6)


def test_atomics_in_memory() -> None:
    words, floats, wide = torch.zeros(3, dtype=torch.int32), torch.zeros(2), torch.zeros(1, dtype=torch.int64)
    emulator.launch(program("features"), "memory_atomics", (3,), (64,), [words, floats, wide])
    total = 191 * 192 // 2
    odd = sum(range(1, 192, 2))
    assert floats.tolist() == [total - odd, odd]
    assert words.tolist() == [-1, -50, total]
    assert wide[0] == sum(1 << 33 | i for i in range(192))


def test_lds_of_the_launch() -> None:
    x, out = torch.randn(3, 1000), torch.zeros(3, 2)
    emulator.launch(program("features"), "reduce", (3,), (256,), [x, out, 1000, 0.5], dynamic_lds=1024)
    assert_within("sums", out, x.double().sum(1, keepdim=True).expand(3, 2) * 0.5, 1e-5)


@pytest.mark.parametrize(
    ("kernel", "dtype", "result", "relative"),
    [("bfloat16", torch.bfloat16, torch.float32, 1e-6), ("float16", torch.float16, torch.float16, 1e-3)],
)
def test_wmma(kernel: str, dtype: torch.dtype, result: torch.dtype, relative: float) -> None:
    a, b, c = torch.randn(16, 16).to(dtype), torch.randn(16, 16).to(dtype), torch.randn(16, 16).to(result)
    want = a.double() @ b.double() + c.double()
    ran = emulator.launch(program("matrix"), kernel, (1,), (32,), [a, b, c])
    assert_within("product", c, want, relative)
    assert ran.matrix == 1


def test_wmma_of_signed_and_unsigned_bytes() -> None:
    a = torch.randint(-128, 128, (16, 16)).to(torch.int8)
    b = torch.randint(0, 256, (16, 16)).to(torch.uint8)
    c = torch.zeros(16, 16, dtype=torch.int32)
    emulator.launch(program("matrix"), "bytes", (1,), (32,), [a, b, c])
    assert torch.equal(c, a.int() @ b.int())


def test_dot_products_of_bytes() -> None:
    n = 100
    a, b = (torch.randint(-128, 128, (n, 4)).to(torch.int8) for _ in range(2))
    out = torch.zeros(3, n, dtype=torch.int32)
    emulator.launch(program("matrix"), "dot4", (4,), (32,), [a, b, out, n])
    unsigned_a, unsigned_b = a.view(torch.uint8).int(), b.view(torch.uint8).int()
    assert torch.equal(out[0], (a.int() * b.int()).sum(1).int() + 5)
    assert torch.equal(out[1], (a.int() * unsigned_b).sum(1).int())
    assert torch.equal(out[2], (unsigned_a * unsigned_b).sum(1).int() + 7)


@pytest.mark.parametrize("count", [0, 5])
def test_a_wrong_number_of_arguments_is_refused(count: int) -> None:
    with pytest.raises(TypeError, match=f"takes 4 arguments, was given {count}"):
        emulator.launch(program("matrix"), "dot4", (1,), (32,), [torch.zeros(1)] * count)


def test_an_endless_kernel_is_stopped() -> None:
    with pytest.raises(RuntimeError, match="ran 10000 instructions without ending"):
        emulator.launch(program("features"), "endless", (1,), (32,), [torch.zeros(1, dtype=torch.int32)], budget=10000)
