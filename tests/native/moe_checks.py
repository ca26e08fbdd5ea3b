"""Arguments of the C++ op moe_experts, and what the struct that its kernels are launched with must say of them."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, settings

from tests.cases import randn
from tests.cases.moe import experts
from tests.native.structs import MoeExpertsArgs

HALF = (torch.float32, torch.bfloat16, torch.float16)
NAMES = ("x", "ids", "weights", "gate_up", "down", "shared_gate", "shared_up", "shared_down", "out")
SHARED = NAMES[5:8]


def valid(size: tuple[int, ...], widths: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    values = dict(zip(NAMES, experts(*size, dtype), strict=False))
    d = size[1]
    values["shared_gate"] = [randn(width, d, dtype=dtype) for width in widths]
    values["shared_up"] = [randn(width, d, dtype=dtype) for width in widths]
    values["shared_down"] = [randn(d, width, dtype=dtype) for width in widths]
    return values | {"out": torch.empty(size[0], d, dtype=dtype)}


def _strides(x: torch.Tensor) -> tuple[int, ...]:
    """Those of all but the last axis; where there is but one, its stride may be anything, and is none."""
    return tuple(stride if size > 1 else 0 for stride, size in zip(x.stride()[:-1], x.shape, strict=False))


def _data(x: torch.Tensor, *strides: int) -> bool:
    return all(stride * x.element_size() % 16 == 0 for stride in strides) and x.data_ptr() % 16 == 0


def check_params(values: dict[str, Any], params: MoeExpertsArgs) -> None:
    x, ids, weights, gate_up, down = (values[name] for name in NAMES[:5])
    rows, k = ids.shape
    experts_, _, width, d = gate_up.shape
    found = (params.rows, params.k, params.slots, params.experts, params.d, params.width)
    assert found == (rows, k, rows * k, experts_, d, width)
    for name in ("x", "out"):
        row = getattr(params, name)
        assert (row.data, row.stride, HALF[row.type]) == (
            values[name].data_ptr(),
            values[name].stride(0),
            values[name].dtype,
        )
    assert (params.ids, params.weights) == (ids.data_ptr(), weights.data_ptr())
    assert (params.gate_up or 0, params.down or 0) == (gate_up.data_ptr(), down.data_ptr())
    assert (params.ids_stride, params.weights_stride) == (ids.stride(0), weights.stride(0))
    assert params.ids_bytes == ids.element_size()
    assert tuple(params.gate_up_strides) == _strides(gate_up)
    assert tuple(params.down_strides) == _strides(down)
    column = 0
    for index, (gate, up, last) in enumerate(zip(*(values[name] for name in SHARED), strict=True)):
        each = params.shared[index]
        assert (each.gate, each.up, each.down) == (gate.data_ptr(), up.data_ptr(), last.data_ptr())
        assert (each.gate_stride, each.up_stride, each.down_stride) == (gate.stride(0), up.stride(0), last.stride(0))
        assert (each.width, each.column) == (gate.shape[0], column)
        column += gate.shape[0]
    assert (params.shared_count, params.shared_width) == (len(values["shared_gate"]), column)
    fast = d % 8 == 0 and width % 8 == 0 and _data(x, x.stride(0))
    fast = fast and _data(gate_up, *_strides(gate_up)) and _data(down, *_strides(down))
    for matrix in (matrix for name in SHARED for matrix in values[name]):
        fast = fast and _data(matrix, matrix.stride(0)) and matrix.shape[1] % 8 == 0
    assert bool(params.aligned) == fast


SETTINGS = settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
