"""Mixture of experts: route (top-k), sort (rows by expert), experts (grouped GEMMs), decode (few rows), backward."""

from __future__ import annotations
