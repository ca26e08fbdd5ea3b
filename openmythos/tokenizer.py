"""Text to token ids by a Hugging Face tokenizer; `transformers` is imported on first use."""

from __future__ import annotations

DEFAULT_MODEL_ID = "openai/gpt-oss-20b"


class MythosTokenizer:
    """A `transformers` tokenizer under upstream's names.

    model_id: a model's name on the hub, or a folder with tokenizer files.

    Raises:
        ImportError: when the package transformers is not installed.
    """

    def __init__(self, model_id: str = DEFAULT_MODEL_ID) -> None:
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise ImportError("MythosTokenizer needs the package transformers: pip install transformers") from error
        self.tokenizer = AutoTokenizer.from_pretrained(model_id)

    @property
    def vocab_size(self) -> int:
        """The number of tokens in the vocabulary, without added tokens."""
        return self.tokenizer.vocab_size

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, token_ids: list[int]) -> str:
        """Text of `token_ids`, without special tokens."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)
