"""The name under which this machine's results are kept: `python -m bench.device`."""

from __future__ import annotations

import re

import torch

from openmythos.backends.library import cpu_isa
from openmythos.doctor import cpu_name


def device_name() -> str:
    """Processor, instruction set and threads, fit for a folder's name."""
    if torch.cuda.is_available():
        words = torch.cuda.get_device_name()
    else:
        words = f"{cpu_name()} {cpu_isa() or 'torch'} {torch.get_num_threads()} threads"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


if __name__ == "__main__":
    print(device_name())
