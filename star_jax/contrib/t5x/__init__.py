"""t5x interoperability: t5x trains a run's model on its kept examples, and t5x.decoding decodes with it.

Two conventions differ. t5x uses id 0 for padding and, when decoding, for "not in the prompt", but id 0 of GPT-2 is "!":
our token i is t5x's i + 1. And t5x puts an id 0 before each text, while our models start with the text's first token:
that position is masked and positions count from the one after it, so weights that t5x has trained are ours unchanged.
"""
