"""The command line: flags -> config -> one call.

python -m star_jax.main --config=configs/arithmetic.py [--workdir=DIR] [--config.star.iterations=3 ...]
"""

import logging
import os
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from star_jax.errors import InputError, exit_on_bad_input

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/, e.g. configs/arithmetic.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; default: runs/<config file>[_<variant>].")
_ALLOW_CHANGES = flags.DEFINE_boolean(
    "allow_changes", False, "Go on with a run whose settings, data, prompts or versions were others, and record that."
)


def main() -> None:
    """Parses the flags, starts or goes on with the run, and says where its report is."""
    values = read_config(sys.argv, __doc__)
    # Our own messages keep a descriptor of their own while native code is silenced (data.warm_up).
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("star_jax").setLevel(logging.INFO)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from star_jax import config
    from star_jax.distributed import processes

    typed = config.from_dict(values)
    file, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    name = "_".join(filter(None, [Path(file).stem, variant]))
    with processes.distributed_context():
        from star_jax.algorithms import star
        from star_jax.distributed import preemption

        preemption.listen()
        if not processes.is_leader():  # what concerns the run is said once
            logging.getLogger("star_jax").setLevel(logging.WARNING)
        path = star.run(typed, _WORKDIR.value or Path("runs") / name, _ALLOW_CHANGES.value)
        if processes.is_leader():
            print(path, flush=True)
    preemption.end()


def read_config(argv: list[str], about: str) -> ConfigDict:
    """The config that the flags ask for. Prints `about` and the flags for --help.

    Raises InputError for flags that absl or ml_collections would answer with a traceback.
    """
    if {"--help", "-h", "-help"} & set(argv[1:]):
        print(f"{about}\n  --workdir: {flags.FLAGS['workdir'].help}\n  --config: {flags.FLAGS['config'].help}")
        print(f"  --allow_changes: {flags.FLAGS['allow_changes'].help}")
        print("  --config.GROUP.OPTION=VALUE: any option of star_jax/config.py or of the task")
        sys.exit(0)
    given = [arg.partition("=")[2] for arg in argv if arg.startswith(("--config=", "-config="))]
    if not given:
        raise InputError("give --config=FILE, e.g. --config=configs/arithmetic.py")
    if not Path(given[-1].partition(":")[0]).is_file():
        raise InputError(f"--config={given[-1]}: there is no such file")
    try:
        rest = flags.FLAGS(argv)
    except (KeyError, AttributeError) as error:
        key = str(error.args[0]).strip("'\"")
        wrong = next((arg for arg in argv if arg.startswith("--config.") and key in arg), key)
        raise InputError(f"{wrong}: the config has no such option ({key}); see star_jax/config.py") from error
    except (flags.Error, TypeError, ValueError, OSError, SyntaxError, ImportError) as error:
        # A config file that raises comes with its whole traceback in the message: its last line is the reason.
        before, _, traceback = str(error).partition("Traceback (most recent call last):")
        raise InputError(" ".join([before, *traceback.strip().splitlines()[-1:]])) from error
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}; options are given as --name=value")
    return _CONFIG.value


if __name__ == "__main__":
    exit_on_bad_input(main)
