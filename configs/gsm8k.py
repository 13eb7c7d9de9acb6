"""GSM8K with any base model: the rows of the paper's Table 2.

Command:  launch/run.sh --config=configs/gsm8k.py[:no_rationalization|:direct|:few_shot|:few_shot_direct] \
              --config.base.path=MODEL --config.task.data_dir=DATA
          MODEL: a directory, a GGUF file, a hub name, pip:smollm2 (star_jax/weights/README.md); DATA: the folder of
          train.jsonl and test.jsonl; omit it to download them (needs `datasets`).
          A GPT-2 has 1,024 positions, enough for --config.prompt.shots=4.
Hardware: what the base model needs; configs/gsm8k_gptj.py is for GPT-J-6B.
Expect:   the paper, GPT-J-6B: 10.7 % with rationalization, 10.1 % :no_rationalization, 5.8 % :direct, 3.1 %
          :few_shot, 3.0 % :few_shot_direct. Not measured here: no weights were at hand.
"""

from ml_collections import ConfigDict

from star_jax.config import default


def get_config(variant: str = "") -> ConfigDict:
    """The config of a row: "" (36 iterations without and 10 with rationalization) or one of the variants above."""
    config = default("gsm8k")
    config.task.held_out = 500  # they select the iteration; the test file is only reported
    config.evaluation.report_split = "test"
    config.prompt.shots = 8
    config.train.checkpoint_every = 200
    config.star.update(dict(iterations=46, rationalize_from=37, max_steps=7912, keep_weights=1))
    if variant == "no_rationalization":
        config.star.update(dict(iterations=36, rationalize="none"))
    elif variant == "direct":
        # The paper gives no number of steps for this row.
        config.star.update(
            dict(direct=True, iterations=1, prompt_after_first_iteration=False, schedule="epochs", epochs=5.0)
        )
    elif variant in ("few_shot", "few_shot_direct"):
        config.star.update(dict(iterations=0, direct=variant == "few_shot_direct"))
    elif variant:
        raise ValueError(f"no variant {variant!r}: no_rationalization, direct, few_shot, few_shot_direct")
    return config
