"""The text of the demo, one token for each byte."""

from __future__ import annotations

import torch

TEXT = (
    "A recurrent-depth transformer reads a sentence once and then thinks about it as often as it likes. "
    "A few ordinary layers turn the words into states; one further layer is applied again and again, each "
    "time with the first states mixed back in, so that the question is never forgotten while the answer "
    "takes shape; and a few last layers turn the result into the next word. Every position keeps count of "
    "how sure it is and stops adding to its answer once it is sure enough. The weights of the loop are read "
    "from memory sixteen times for each word that is written, which is why the speed of such a model is, "
    "before anything else, the speed at which those weights can be streamed.\n"
)
LENGTH = len(TEXT.encode("ascii"))


def tokens(count: int) -> torch.Tensor:
    """The first `count` bytes of the text as token ids, int64 (1, count).

    Raises:
        ValueError: when count is below 1 or above the length of the text.
    """
    if not 0 < count <= LENGTH:
        raise ValueError(f"count={count}: allowed is 1 to the text's length, {LENGTH}")
    return torch.tensor([list(TEXT.encode("ascii")[:count])])
