"""Multi-head attention with any mask and dropout: a reference only, for calls that no kernel serves."""

from __future__ import annotations
