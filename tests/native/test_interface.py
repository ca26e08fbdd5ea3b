"""The number of the library's interface changes with the schemas of its ops."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pytest
import torch

from openmythos.backends import library

# The interface and the digest of its schemas: raise INTERFACE in library.py and csrc/core/run.cpp with every change.
KNOWN = (2, "8573e65c574063d2")


@pytest.mark.skipif(library.not_loaded() is not None, reason=f"{library.not_loaded()}")
def test_other_schemas_are_another_interface() -> None:
    schemas = sorted(str(s) for s in torch._C._jit_get_all_schemas() if s.name.startswith("openmythos_native::"))
    digest = hashlib.sha256("\n".join(schemas).encode()).hexdigest()[:16]
    assert (library.INTERFACE, digest) == KNOWN, "\n".join(schemas)


LOADED = {
    "before-there-were-interfaces": (SimpleNamespace(), 1),
    "newer": (SimpleNamespace(interface=lambda: library.INTERFACE + 1), library.INTERFACE + 1),
}


@pytest.mark.skipif(library.not_loaded() is not None, reason=f"{library.not_loaded()}")
@pytest.mark.parametrize(("native", "found"), LOADED.values(), ids=LOADED)
def test_another_interface_is_a_sentence(monkeypatch: pytest.MonkeyPatch, native: SimpleNamespace, found: int) -> None:
    monkeypatch.setattr(torch.ops, "openmythos_native", native)
    assert library.not_loaded.__wrapped__() == (
        f"the native library has interface {found}, this package needs {library.INTERFACE}: "
        "pip install --no-build-isolation . builds the library again"
    )
