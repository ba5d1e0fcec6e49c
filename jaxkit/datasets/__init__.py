"""Real data, embedded and the user's own, and batches of it.

How to choose: `embedded_prose` needs no file and no network; `load_text` maps files of any size:
plain, compressed, JSON lines, Parquet. `ByteTokenizer` knows every text and costs no memory;
`CharTokenizer` is for alphabets beyond ASCII that fit 255 characters; `JsonTokenizer` reads any
file of the `tokenizers` package. `tokenize` makes one array of a corpus, `token_batches` trains on
it, `evaluation_batches` scores it. For arrays: `load_digits`, `load_table`, then `array_batches`.
For pictures: `find_pictures` recognizes folders, CIFAR, STL-10, Tiny-ImageNet, IDX and NPZ;
`picture_recipe` names a published transform; `picture_batches` decodes when asked,
`decode_pictures` what is tested on. Sharp edges: a shuffled stream keeps a permutation of 4 bytes a
window in memory; a finite stream leaves out its last batch unless it is full; a batch `index` is
int64 on the host and becomes int32 on a device; `JsonTokenizer` is saved by path and SHA-256, so
keep the file; a tokenizer that marks the start of a text marks every 1 MiB piece of a corpus; the
embedded prose differs a little between Python versions.
"""

from jaxkit.datasets.batches import array_batches, token_batches
from jaxkit.datasets.encoding import tokenize
from jaxkit.datasets.packed import IdTokenizer, load_tokens
from jaxkit.datasets.picture_batches import decode_pictures, picture_batches
from jaxkit.datasets.picture_cache import keep_decoded
from jaxkit.datasets.picture_layouts import find_pictures
from jaxkit.datasets.pictures import PictureFiles, Pictures, PictureSplit
from jaxkit.datasets.prose import embedded_prose
from jaxkit.datasets.recipes import PictureRecipe, picture_recipe
from jaxkit.datasets.splits import ArraySplit
from jaxkit.datasets.tables import load_digits, load_table
from jaxkit.datasets.text import Corpus, TextSplit, load_text
from jaxkit.datasets.tokenizers import (
    AlphabetError,
    ByteTokenizer,
    CharTokenizer,
    JsonTokenizer,
    Tokenizer,
    Unknown,
    tokenizer_from_config,
)
from jaxkit.datasets.windows import evaluation_batches

__all__ = [
    "AlphabetError",
    "ArraySplit",
    "ByteTokenizer",
    "CharTokenizer",
    "Corpus",
    "IdTokenizer",
    "JsonTokenizer",
    "PictureFiles",
    "PictureRecipe",
    "PictureSplit",
    "Pictures",
    "TextSplit",
    "Tokenizer",
    "Unknown",
    "array_batches",
    "decode_pictures",
    "embedded_prose",
    "evaluation_batches",
    "find_pictures",
    "keep_decoded",
    "load_digits",
    "load_table",
    "load_text",
    "load_tokens",
    "picture_batches",
    "picture_recipe",
    "token_batches",
    "tokenize",
    "tokenizer_from_config",
]
