"""Language models without fixed token embeddings.

`models.DecoderLM` reads its token table as an argument: with a random one drawn anew for every
sequence (`RandomTable`, arXiv 2305.16349), a symbol means only what its context says.
`next_token_loss` trains such a model, an ordinary one, and two more: ids renamed anew in each
sequence (`"relabel"`) and some rows random (`"mixed"`).

How to choose: `"relabel"` with `relabelling_schedule` learns most in a small budget, is exactly
lexinvariant once ``p = 1`` and costs nothing at any vocabulary; `"lexinvariant"` is the paper's
model, with no parameters for tokens; ``p = 0.2`` is the paper's regulariser. For large
vocabularies set `chunk_size`. A lexinvariant model needs relative positions (T5, the default, or
ALiBi) and `recency_heads=True`; with rotary positions it stays at the statistics of single
symbols. To judge one: `adaptive_ngram_losses` is what counting achieves without training;
`bayes_lexinvariant` is the optimum where the language is a known chain of at most 9 symbols;
`train_probe` and `decipher` read ciphers, `climb_key` and `beam_search_key` are the classical way.
Sharp edges: derive the keys of the tables with `sequence_keys` from global indices, never one key
for a batch; under `jit` a token id out of range is clamped, so check with `models.validate_tokens`
before; the loss of one draw is an upper bound, `lexinvariant_log_prob` averages several; the width
must be large against the vocabulary, or the rows' overlaps drown the signal.
"""

from jaxkit.lexinvariant.bayes import bayes_lexinvariant
from jaxkit.lexinvariant.cipher_solvers import (
    backoff_table,
    beam_search_key,
    climb_key,
    match_frequencies,
)
from jaxkit.lexinvariant.ciphers import (
    cipher_key_assignment,
    cipher_key_vote,
    key_precision,
    random_cipher,
)
from jaxkit.lexinvariant.counting import adaptive_ngram_losses
from jaxkit.lexinvariant.deciphering import (
    Decipherment,
    DecipherProbe,
    decipher,
    decipher_log_probs,
    train_probe,
)
from jaxkit.lexinvariant.embeddings import RandomTable, draw_embedding, mix_embedding, sequence_keys
from jaxkit.lexinvariant.markov import MarkovLanguage, markov_losses, sample_markov
from jaxkit.lexinvariant.objective import Method, anonymised, next_token_loss, token_losses
from jaxkit.lexinvariant.perplexity import lexinvariant_log_prob, smoothed_perplexity
from jaxkit.lexinvariant.regret import expected_l1_bound, regret_bound
from jaxkit.lexinvariant.relabelling import permute_tokens, relabelling_schedule

__all__ = [
    "DecipherProbe",
    "Decipherment",
    "MarkovLanguage",
    "Method",
    "RandomTable",
    "adaptive_ngram_losses",
    "anonymised",
    "backoff_table",
    "bayes_lexinvariant",
    "beam_search_key",
    "cipher_key_assignment",
    "cipher_key_vote",
    "climb_key",
    "decipher",
    "decipher_log_probs",
    "draw_embedding",
    "expected_l1_bound",
    "key_precision",
    "lexinvariant_log_prob",
    "markov_losses",
    "match_frequencies",
    "mix_embedding",
    "next_token_loss",
    "permute_tokens",
    "random_cipher",
    "regret_bound",
    "relabelling_schedule",
    "sample_markov",
    "sequence_keys",
    "smoothed_perplexity",
    "token_losses",
    "train_probe",
]
