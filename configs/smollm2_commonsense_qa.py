"""CommonsenseQA with SmolLM2-135M-Instruct, a real pretrained model that pip installs, on two CPU cores.

Command:  launch/run.sh \
          --config=configs/smollm2_commonsense_qa.py[:no_rationalization|:direct|:few_shot|:few_shot_direct|:quick] \
          --config.task.data_dir=DATA
          DATA: the folder of train_rand_split.jsonl and dev_rand_split.jsonl; omit it to download them (needs
          `datasets`). The model is installed by pip: star_jax/weights/README.md.
Hardware: two CPU cores and 10 GB of memory; float32. 25 minutes for the first iteration, 7 for the test problems.
Expect:   on the 1,221 test problems 17.1 % after one iteration, 10.3 % :no_rationalization, 7.6 % :few_shot; chance is
          20 %. The model learns the form of an answer, not to reason: configs/README.md. :quick, seven minutes, from
          7 to 14 of 100 dev problems. direct and few_shot_direct are not measured.
"""

from ml_collections import ConfigDict

from star_jax.config import default


def get_config(variant: str = "") -> ConfigDict:
    """The config of an arm: "" (STaR with rationalization) or one of the variants above."""
    config = default("commonsense_qa")
    config.base.path = "pip:smollm2"
    # The hint is the sentence in which a right completion ends. The paper's "(CORRECT)" after a choice goes unnoticed.
    config.task.update(dict(held_out=300, max_tokens=64, hint_line=True))
    config.prompt.shots = 7
    # As many steps in every arm, as in the paper, however many examples it keeps.
    config.star.update(dict(iterations=1, problems_per_iteration=800, schedule="linear", steps=80, step_increment=0))
    config.star.keep_weights = 1
    config.train.update(dict(batch_rows=2, row_tokens=512, checkpoint_every=25))
    config.optimizer.update(dict(learning_rate=1e-4, warmup_steps=10, decay="linear", end_fraction=0.1))
    config.sampling.update(dict(slots=128, queue=512))
    if variant == "no_rationalization":
        config.star.rationalize = "none"
    elif variant == "direct":
        config.star.update(dict(direct=True, problems_per_iteration=0, schedule="epochs", epochs=1.0))
    elif variant in ("few_shot", "few_shot_direct"):
        config.star.update(dict(iterations=0, direct=variant == "few_shot_direct"))
    elif variant == "quick":
        config.task.held_out, config.star.problems_per_iteration, config.star.steps = 100, 200, 20
    elif variant:
        raise ValueError(f"no variant {variant!r}: no_rationalization, direct, few_shot, few_shot_direct, quick")
    return config
