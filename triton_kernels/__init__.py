"""Triton kernels, one subject a file: configs, kernels, launchers. Installed as openmythos.triton_kernels."""

from __future__ import annotations
