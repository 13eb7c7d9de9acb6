"""Addition with GPT-J-6B: the paper's section 4.1 at its size.

Command:  launch/run.sh --config=configs/arithmetic_gptj.py[:no_rationalization|:direct|:more_digits] \
              --config.base.path=MODEL
          MODEL: a Hugging Face GPT-J directory, or what star_jax.convert wrote.
Hardware: the paper's was one TPU v3-8; see configs/gsm8k_gptj.py. Not run yet: no such machine was at hand.
Expect:   the paper: 89.5 % over 1 to 5 digits after 16 iterations; 76.3 % for :direct (answers only);
          :no_rationalization learns one length after the other (Figure 4); :more_digits adds sums of 6 to 8 digits in
          iteration 20 and also evaluates 9 and 10 digits (Figure 5).
"""

from ml_collections import ConfigDict

from star_jax.config import at_gptj_6b, default


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" (with rationalization) or one of the variants above."""
    config = at_gptj_6b(default("arithmetic"))
    config.evaluation.report_split = "test"
    config.prompt.shots = 10
    config.train.checkpoint_every = 200
    config.star.update(
        dict(
            iterations=16,
            problems_per_iteration=10_000,
            schedule="linear",
            steps=300,
            step_increment=20,
            keep_weights=1,
        )
    )
    if variant == "no_rationalization":
        config.star.update(dict(rationalize="none", schedule="exponential", steps=40))
    elif variant == "direct":
        config.star.update(dict(direct=True, iterations=1, steps=5000))
    elif variant == "more_digits":
        config.task.eval_digits = 10
        config.replication.update(dict(later_digits=8, later_from=20))
        config.star.iterations = 30
    elif variant:
        raise ValueError(f"no variant {variant!r}: no_rationalization, direct, more_digits")
    return config
