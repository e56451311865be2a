"""The class noun of a prompt becomes the word that the subject was taught under."""

from __future__ import annotations

import re


def with_token(prompt: str, noun: str, token: str) -> str:
    """`a photo of a dog on a bench`, `dog`, `sks dog` -> `a photo of a sks dog on a bench`.

    Whole words, in any case, wherever they stand. Without a noun or token, or where the token is there already, the
    prompt stays as it is.

    Raises:
        ValueError: the prompt has neither.
    """
    noun, token = noun.strip(), token.strip()
    if not noun or not token or _word(token).search(prompt):
        return prompt
    found, count = _word(noun).subn(lambda _: token, prompt)
    if not count:
        raise ValueError(
            f"the prompt {prompt!r} has neither the class noun {noun!r} nor the token {token!r}; write one of them "
            "where the subject is to be"
        )
    return found


def _word(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(text)}(?!\w)", re.IGNORECASE)
