"""Action tokenizers: one file each, and one line here."""

from volar.robots.errors import Unknown
from volar.vla.action_tokenizers.uniform_bins import UniformBins

TOKENIZERS = {"bins": UniformBins}


def action_tokenizer(name: str, vocabulary_size: int) -> UniformBins:
    """The tokenizer of that name, its ids at the end of a vocabulary of `vocabulary_size`."""
    if name not in TOKENIZERS:
        raise Unknown("tokenizer", name, TOKENIZERS)
    return TOKENIZERS[name](vocabulary_size)
