"""Triton kernels, one subject per file: configs, kernels, launchers. Installed as openmythos.triton_kernels."""

from __future__ import annotations
