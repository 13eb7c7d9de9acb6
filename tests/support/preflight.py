"""Configs for the tests of star_jax.preflight."""

from star_jax import config


def gptj_config(**changes) -> config.Config:
    """The arithmetic task with GPT-J-6B's sizes and no base; `group__option=value` changes an option."""
    values = config.at_gptj_6b(config.default("arithmetic"))
    values.base.path = "none"
    for key, value in changes.items():
        group, _, option = key.partition("__")
        values[group][option] = value
    return config.from_dict(values)
