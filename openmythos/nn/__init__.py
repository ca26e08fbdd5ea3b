"""The model's modules under upstream's names, built on the ops, the reference and the cache."""

from __future__ import annotations

from openmythos.nn.block import TransformerBlock
from openmythos.nn.experts import Expert
from openmythos.nn.fusion import explain_module
from openmythos.nn.gqa import GQAttention
from openmythos.nn.mla import MLAttention
from openmythos.nn.model import OpenMythos
from openmythos.nn.moe import MoEFFN
from openmythos.nn.norm import RMSNorm
from openmythos.nn.observe import Observation, observe
from openmythos.nn.recurrent import ACTHalting, LoRAAdapter, LTIInjection, RecurrentBlock, loop_index_embedding
from openmythos.nn.rope import apply_rope, precompute_rope_freqs

__all__ = [
    "ACTHalting",
    "Expert",
    "GQAttention",
    "LTIInjection",
    "LoRAAdapter",
    "MLAttention",
    "MoEFFN",
    "Observation",
    "OpenMythos",
    "RMSNorm",
    "RecurrentBlock",
    "TransformerBlock",
    "apply_rope",
    "explain_module",
    "loop_index_embedding",
    "observe",
    "precompute_rope_freqs",
]
