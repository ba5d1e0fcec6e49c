"""English prose that every CPython carries: the manual's chapters behind `help()`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from jaxkit.datasets.text import Corpus, TextSplit

_VALIDATION_SHARE = 0.1
_QUOTABLE = 60


def embedded_prose() -> TextSplit:
    """Load the topics of `pydoc_data.topics`, split by topic, with no passage on both sides.

    Many topics quote each other. Those that share a paragraph of at least 60 characters stay
    together. The groups are visited in the order of a hash of their first topic's name, and each
    that still fits into a tenth of all bytes goes to validation. The same interpreter version
    always gives the same texts; another has a few topics more or fewer (460 to 500 kB).

    Returns:
        Training and validation text: topics in alphabetical order, separated by a blank line.

    Raises:
        ImportError: if the interpreter was installed without `pydoc_data`.

    Example:
        >>> split = embedded_prose()
        >>> 0.08 < len(split.validation) / len(split.train) < 0.12
        True
    """
    from pydoc_data.topics import topics

    limit = _VALIDATION_SHARE * sum(len(text.encode()) for text in topics.values())
    held_out: set[str] = set()
    size = 0
    for group in sorted(_groups(topics), key=lambda g: hashlib.sha256(g[0].encode()).digest()):
        group_size = sum(len(topics[name].encode()) for name in group)
        if size + group_size <= limit:
            held_out.update(group)
            size += group_size

    def joined(names: set[str], part: str) -> Corpus:
        text = "\n\n".join(topics[name].strip("\n") for name in sorted(names)) + "\n"
        return Corpus.from_text(text, f"embedded prose ({part})")

    return TextSplit(joined(set(topics) - held_out, "training"), joined(held_out, "validation"))


def _groups(topics: Mapping[str, str]) -> list[list[str]]:
    """Partition topic names, sorted, so that no long paragraph stands in two groups."""
    group_of = {name: [name] for name in topics}
    seen: dict[str, str] = {}
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            words = " ".join(paragraph.split())
            if len(words) < _QUOTABLE:
                continue
            first, second = group_of[seen.setdefault(words, name)], group_of[name]
            if first is not second:
                first.extend(second)
                group_of.update(dict.fromkeys(second, first))
    return [sorted(group) for group in {id(g): g for g in group_of.values()}.values()]
