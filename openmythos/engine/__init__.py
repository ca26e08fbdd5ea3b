"""Inference: the decode step and its graph, sampling, generate and stream. It imports `nn`, never the other way."""

from __future__ import annotations

from openmythos.engine.cache import StepRows
from openmythos.engine.generate import generate, stream
from openmythos.engine.sampling import sample
from openmythos.engine.step import DecodeStep, why_no_graph, why_no_step

__all__ = ["DecodeStep", "StepRows", "generate", "sample", "stream", "why_no_graph", "why_no_step"]
