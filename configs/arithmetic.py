"""The demo: the paper's addition task (section 4.1) with a tiny GPT-J that pretrains its own base.

Command:  launch/run.sh --config=configs/arithmetic.py[:no_rationalization|:direct|:weak]
Hardware: two CPU cores; float32.
Expect:   the tables of README.md and configs/README.md: from 0.40 to 0.99 or 1.00, without rationalization 0.40.
          direct gets the answers of 30,000 problems and as many train steps: 0.97. The base of weak is never shown a
          sum of two digits: 0.88 from 0.18.
"""

from ml_collections import ConfigDict

from star_jax.config import default


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" (with rationalization), "no_rationalization", "direct" or "weak"."""
    config = default("arithmetic")
    config.tokenizer = "symbols"
    config.model.update(
        dict(
            n_layers=3, d_model=64, n_heads=4, d_mlp=256, rotary_dim=16, vocab_size=20, max_positions=256, scan_unroll=3
        )
    )
    config.sampling.max_new_tokens = 96  # the longest reference has 92 symbols, end-of-text included
    config.train.update(dict(batch_rows=8, row_tokens=128, log_every=50))
    config.optimizer.update(
        dict(
            learning_rate=5e-3,
            warmup_steps=50,
            decay="linear",
            decay_share=0.4,
            end_fraction=0.1,
            b2=0.95,
            weight_decay=0.1,
        )
    )
    config.base.stages = (dict(steps=6000, learning_rate=3e-3, gold=(0.25, 0.55)),)
    config.star.update(dict(iterations=3, problems_per_iteration=10_000, steps=800, step_growth=1.6))
    config.replication.hint_keep_probability = 0.1
    if variant == "no_rationalization":
        config.star.rationalize = "none"
    elif variant == "direct":
        # As many training tokens and fresh problems as the three iterations have together.
        config.star.update(dict(direct=True, iterations=1, problems_per_iteration=30_000, steps=4128))
    elif variant == "weak":
        config.base.stages = (dict(steps=6000, learning_rate=3e-3, gold=(0.8,)),)
    elif variant:
        raise ValueError(f"configs/arithmetic.py has no variant {variant!r}: no_rationalization, direct, weak")
    return config
