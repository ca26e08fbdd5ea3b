"""Checkpoints: safetensors folders, and upstream's training checkpoints without running their code."""

from __future__ import annotations

from openmythos.io.reading import load
from openmythos.io.upstream_checkpoint import TrainingCheckpoint, load_training_checkpoint, read_training_checkpoint
from openmythos.io.writing import save

__all__ = ["TrainingCheckpoint", "load", "load_training_checkpoint", "read_training_checkpoint", "save"]
