"""Text to tokens and back, by the vocabulary and merges that the GGUF file carries."""

from __future__ import annotations

from pathlib import Path

from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTROL = 3  # GGUF's token type for markers such as <|im_start|>


def load_tokenizer(gguf: Path) -> Tokenizer:
    """Byte-pair encoding as the model was trained: each digit alone, then bytes; no BOS."""
    reader = GGUFReader(gguf)

    def field(name: str) -> list:
        return reader.get_field(f"tokenizer.ggml.{name}").contents()

    words = field("tokens")
    merges = [tuple(merge.split(" ")) for merge in field("merges")]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = field("token_type")
    tokenizer.add_special_tokens(
        [AddedToken(word, normalized=False) for word, kind in zip(words, kinds) if kind == CONTROL]
    )
    return tokenizer


def encode_document(tokenizer: Tokenizer, text: str, limit: int) -> list[int]:
    """The first `limit` tokens of a text. Markers such as <|im_end|> are plain text in a document."""
    tokenizer.encode_special_tokens = True
    ids = tokenizer.encode(text, add_special_tokens=False).ids[:limit]
    tokenizer.encode_special_tokens = False
    return ids


def encode_question(tokenizer: Tokenizer, question: str) -> list[int]:
    """A question about the text before it, in the chat form that the model was trained on. The text
    itself opens the conversation, so that its tokens stay its own."""
    chat = f"<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return tokenizer.encode(chat, add_special_tokens=False).ids
