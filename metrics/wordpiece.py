"""BERT's tokens from the vocabulary file of the user's: WordPiece of lower-cased words, [CLS] … [SEP], padded.

By the host's ``tokenizers``, as transformers' BertTokenizer does it, whose arguments changed with transformers 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from .backbones import Tokenizer, Tokens

FILE = "vocab.txt"
ADDED = ("[DEC]", "[ENC]")
"""What BLIP adds behind BERT's vocabulary."""
_NEEDED = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WANTED = f"take {FILE} of google-bert/bert-base-uncased (a Grounding DINO's folder has the same file)"


def wordpiece(path: Path, size: int, limit: int) -> Tokenizer:
    """Prompts -> ``input_ids`` and ``attention_mask`` (B, limit).

    Args:
        path: a word or piece a line.
        size: tokens that the network knows, with the two that BLIP adds.
        limit: tokens that it reads, start and end included.

    Raises:
        ValueError: no such file, or another model's.
    """
    from tokenizers import BertWordPieceTokenizer

    try:
        words = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as why:
        raise ValueError(f"{path} cannot be read ({str(why)[:100]}); {WANTED}") from why
    vocabulary = {word: number for number, word in enumerate(words)}
    lacking = [word for word in _NEEDED if word not in vocabulary]
    if lacking or len(vocabulary) + len(ADDED) != size:
        what = f"lacks {', '.join(lacking)}" if lacking else f"has {len(vocabulary)} words, not {size - len(ADDED)}"
        raise ValueError(f"{path} {what}: it is not the vocabulary that the network was trained with; {WANTED}")
    reads = BertWordPieceTokenizer(vocabulary, lowercase=True)
    reads.add_special_tokens(list(ADDED))
    end, none = vocabulary["[SEP]"], vocabulary["[PAD]"]

    def tokenize(prompts: Sequence[str]) -> Tokens:
        found = [one.ids for one in reads.encode_batch(list(prompts))]
        kept = [ids if len(ids) <= limit else [*ids[: limit - 1], end] for ids in found]
        ids = torch.tensor([[*one, *[none] * (limit - len(one))] for one in kept])
        mask = torch.tensor([[1] * len(one) + [0] * (limit - len(one)) for one in kept])
        cut = tuple(len(one) > limit for one in found)
        return Tokens({"input_ids": ids, "attention_mask": mask}, cut, limit)

    return tokenize
