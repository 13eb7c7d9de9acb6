"""A model directory's tokenizer as a seqio Vocabulary."""

import functools
from typing import Any

import numpy as np

from star_jax.tasks import seqio_task
from star_jax.weights import checkpoint


def vocabulary(base: str) -> Any:
    """The tokenizer of a model directory as a seqio Vocabulary: ids plus one, 0 is padding. Raises InputError."""
    return _vocabulary_class()(checkpoint.load_tokenizer(base))


@functools.cache
def _vocabulary_class() -> type:
    seqio = seqio_task.import_seqio()
    import tensorflow as tf

    class TokenizerVocabulary(seqio.Vocabulary):  # type: ignore[name-defined]
        """One of our tokenizers with all ids plus one."""

        unk_id = None

        def __init__(self, tokenizer: Any) -> None:
            super().__init__()
            self.tokenizer = tokenizer
            self._base_vocab_size = tokenizer.vocab_size + 1
            self.eos_id = self.bos_id = tokenizer.end_ids[0] + 1

        bos_id = eos_id = _base_vocab_size = None  # replaces abstract properties; __init__ sets them

        def _encode(self, s: str) -> list[int]:
            return [i + 1 for i in self.tokenizer.encode(s)]

        def _decode(self, ids: Any) -> str:
            return str(self.tokenizer.decode([int(i) - 1 for i in ids if i > 0]))

        def _encode_tf(self, s: Any) -> Any:
            ids = tf.numpy_function(lambda text: np.array(self._encode(text.decode()), np.int32), [s], tf.int32)
            return tf.ensure_shape(ids, [None])

        def _decode_tf(self, ids: Any) -> Any:
            def decode(rows: np.ndarray) -> np.ndarray:
                texts = [self._decode(row).encode() for row in rows.reshape(-1, rows.shape[-1])]
                return np.array(texts, object).reshape(rows.shape[:-1])

            return tf.numpy_function(decode, [ids], tf.string)

        def __eq__(self, other: object) -> bool:
            return isinstance(other, TokenizerVocabulary) and self.tokenizer.spec() == other.tokenizer.spec()

        __hash__ = seqio.Vocabulary.__hash__

    return TokenizerVocabulary
