"""The structs that the kernels of csrc take as their only argument, as ctypes; the fields are those of the headers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from tools.recording_driver import FakeOps

_INT, _LONG, _FLOAT, _POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


def _fields(kind: type, names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, kind) for name in names.split())


class Matrix(ctypes.Structure):
    """csrc/core/types.h"""

    _fields_ = (("data", _POINTER), ("stride", _LONG), ("type", _INT), ("_", _INT))


class LoopStepArgs(ctypes.Structure):
    """csrc/loop_step/args.h"""

    _fields_ = (
        *_fields(Matrix, "h e block_out h_new x_next h_out h_out_new"),
        *_fields(_POINTER, "cum_p A B lora_down lora_scale lora_b halt_w halt_b norm_w cum_p_new t_rows"),
        ("n", _LONG),
        *_fields(_INT, "d rank scale_rows loop_dim t aligned"),
        *_fields(_FLOAT, "threshold eps frequency_hi frequency_lo"),
    )


class MlaArgs(ctypes.Structure):
    """csrc/mla_attention/args.h"""

    _fields_ = (
        *_fields(_POINTER, "q_nope q_rope latent k_rope w_uk w_uv out lse seq_lens block_table folded part part_lse"),
        *_fields(_LONG, "q_nope_b q_nope_t q_nope_h q_rope_b q_rope_t q_rope_h latent_b latent_s k_rope_b k_rope_s"),
        *_fields(_LONG, "w_uk_h w_uk_n w_uv_h w_uv_v out_b out_t out_h table_b"),
        *_fields(_INT, "b t h dn dr dc dv total page splits causal wide_lens wide_table columns"),
        ("scale", _FLOAT),
        ("type", _INT),
    )


class MlaDecompressedArgs(ctypes.Structure):
    """csrc/mla_attention/args.h"""

    _fields_ = (
        *_fields(_POINTER, "q_nope q_rope keys values latent k_rope seq_lens block_table gathered out lse"),
        *_fields(_LONG, "q_nope_b q_nope_t q_nope_h q_rope_b q_rope_t q_rope_h out_b out_t out_h"),
        *_fields(_LONG, "lse_b latent_b latent_s k_rope_b k_rope_s table_b"),
        *_fields(_INT, "b t h dn dr dc dv total padded page causal wide_lens wide_table"),
        ("scale", _FLOAT),
    )


class MoeRouteArgs(ctypes.Structure):
    """csrc/moe/args.h"""

    _fields_ = (
        ("logits", Matrix),
        *_fields(_POINTER, "bias ids counts weights"),
        *_fields(_LONG, "ids_stride weights_stride"),
        *_fields(_INT, "rows experts k rows_per_block add_counts _"),
    )


class MoeShared(ctypes.Structure):
    """csrc/moe/args.h"""

    _fields_ = (
        *_fields(_POINTER, "gate up down"),
        *_fields(_LONG, "gate_stride up_stride down_stride"),
        *_fields(_INT, "width column end_block _"),
    )


class MoeExpertsArgs(ctypes.Structure):
    """csrc/moe/args.h"""

    _fields_ = (
        *_fields(Matrix, "x out"),
        *_fields(_POINTER, "gate_up down act ids weights"),
        *_fields(_LONG, "ids_stride weights_stride"),
        ("gate_up_strides", _LONG * 3),
        ("down_strides", _LONG * 2),
        *_fields(_INT, "ids_bytes rows k slots experts d width shared_width shared_count shared_blocks"),
        *_fields(_INT, "hidden_per_block aligned"),
        ("shared", MoeShared * 16),
    )


class MoeGroupedArgs(ctypes.Structure):
    """csrc/moe/args.h"""

    _fields_ = (
        ("moe", MoeExpertsArgs),
        *_fields(_POINTER, "tiles counts slots y"),
        *_fields(_INT, "chunk chunks tile_count _"),
    )


def recorded(fake: FakeOps, kind: type[ctypes.Structure], call: Callable[[], object]) -> tuple[list[tuple], str]:
    """(kernel, grid, threads, shared, stream, params) of every launch, and the error."""
    launches = []

    def run(kernel, *facts):
        *grid, params = facts
        launches.append((kernel, *grid, kind.from_buffer_copy(ctypes.string_at(params, ctypes.sizeof(kind)))))

    with fake.driver.running(run):
        try:
            call()
        except RuntimeError as error:
            return launches, str(error).splitlines()[0]
    return launches, ""
