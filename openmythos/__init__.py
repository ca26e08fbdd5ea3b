"""Kernel-optimised backend of OpenMythos, the recurrent-depth transformer, under upstream's names."""

from __future__ import annotations

from openmythos import backends as _backends  # noqa: F401  (fills the dispatch table)
from openmythos.acceleration import accelerate
from openmythos.cache import KVCache
from openmythos.config import (
    MythosConfig,
    mythos_1b,
    mythos_1t,
    mythos_3b,
    mythos_10b,
    mythos_50b,
    mythos_100b,
    mythos_500b,
)
from openmythos.dispatch import BackendError, explain, record, use_backend
from openmythos.engine import generate, stream
from openmythos.io import load, load_training_checkpoint, save
from openmythos.nn import (
    ACTHalting,
    Expert,
    GQAttention,
    LoRAAdapter,
    LTIInjection,
    MLAttention,
    MoEFFN,
    Observation,
    OpenMythos,
    RecurrentBlock,
    RMSNorm,
    TransformerBlock,
    apply_rope,
    explain_module,
    loop_index_embedding,
    observe,
    precompute_rope_freqs,
)
from openmythos.tokenizer import MythosTokenizer

__version__ = "0.1.0"

# Upstream has these as methods of the model. They belong to the engine, which imports nn, so they are attached here.
OpenMythos.generate, OpenMythos.stream = generate, stream

__all__ = [
    "ACTHalting",
    "BackendError",
    "Expert",
    "GQAttention",
    "KVCache",
    "LTIInjection",
    "LoRAAdapter",
    "MLAttention",
    "MoEFFN",
    "MythosConfig",
    "MythosTokenizer",
    "Observation",
    "OpenMythos",
    "RMSNorm",
    "RecurrentBlock",
    "TransformerBlock",
    "accelerate",
    "apply_rope",
    "explain",
    "explain_module",
    "load",
    "load_training_checkpoint",
    "loop_index_embedding",
    "mythos_1b",
    "mythos_1t",
    "mythos_3b",
    "mythos_10b",
    "mythos_50b",
    "mythos_100b",
    "mythos_500b",
    "observe",
    "precompute_rope_freqs",
    "record",
    "save",
    "use_backend",
]
