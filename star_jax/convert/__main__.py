"""Weights in and out.

    python -m star_jax.convert --source=DIR --source_format=hf|mesh_transformer|orbax \\
                               --target=DIR --target_format=hf|orbax
        [--source_config=FILE]   mesh_transformer: the original's JSON config; --source is the step_N directory
        [--tokenizer=DIR|NAME]   GPT-2's tokenizer files or a hub name, where none lies beside the weights
        [--dtype=float32|bfloat16|float16]   of the target; default: the source's
        [--moments]              mesh_transformer -> orbax: Adam's moments too, for --config.replication.base_moments

orbax is star_jax's own directory: a run's base/ or iter_NNN/params/, or what this command wrote. Any of them,
and a Hugging Face directory too, serves as --config.base.path.
"""

import argparse
from pathlib import Path
from typing import NoReturn

import numpy as np

from star_jax import tokenizers
from star_jax.cli.parser import exit_on_bad_input
from star_jax.config import MeshConfig
from star_jax.distributed import sharding
from star_jax.errors import InputError
from star_jax.tokenizers import byte_level_bpe
from star_jax.tokenizers.base import Tokenizer
from star_jax.weights import checkpoint
from star_jax.weights.sources import hf, loader
from star_jax.weights.sources.mesh_transformer import MeshTransformerSource

DTYPES = ("float32", "bfloat16", "float16")


class _Parser(argparse.ArgumentParser):
    """Answers wrong arguments with one line, as the rest of the program does."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see python -m star_jax.convert --help")


def main() -> None:
    """The command line at the head of this file."""
    args = _parse()
    source, target = Path(args.source), Path(args.target)
    _check_target(target)
    mesh = sharding.make_mesh(MeshConfig(data=1))
    given = tokenizers.make(args.tokenizer) if args.tokenizer else None
    if args.source_format == "orbax":
        stored = checkpoint.stored_dtype(source)
        if stored not in DTYPES:
            raise InputError(f"{source}/model.json: dtype is {stored!r}, not one of {', '.join(DTYPES)}")
        model, params = checkpoint.load_model(source, mesh, dtype=args.dtype or stored)
        loader.check_finite(source, params)
        words = given or checkpoint.find_tokenizer(source)
    else:
        opened = _open(args, source)
        words = given or opened.tokenizer()
        model, params = loader.load(opened, mesh, args.dtype or opened.dtype)
    if words is not None and words.vocab_size > model.config.vocab_size:
        raise InputError(
            f"{args.tokenizer or source}: the tokenizer has {words.vocab_size} ids and the model "
            f"{model.config.vocab_size} rows for them; they do not belong together"
        )
    moments = ("first", "second") if args.moments else ()
    of = {n: MeshTransformerSource(source, Path(args.source_config), f"{n}_moments") for n in moments}
    if args.target_format == "orbax":
        checkpoint.save_model(target, model, params, words)
        for which, opened in of.items():
            checkpoint.save_moments(target, which, loader.load(opened, mesh, "float32")[1], opened.steps)
    else:
        dtype = np.dtype(params["embedding"]["embedding"].dtype)
        hf.save(target, model.config, params, words, dtype)
    sizes = sum(leaf.size for leaf in loader.leaves(model).values())
    print(f"{target}: {model.config.architecture}, {sizes:,} parameters, {_tokenizer_line(args, words)}")


def _parse() -> argparse.Namespace:
    description, _, usage = __doc__.partition("\n")
    parser = _Parser(
        prog="python -m star_jax.convert", description=description, epilog=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--source", required=True)
    parser.add_argument("--source_format", required=True, choices=("hf", "mesh_transformer", "orbax"))
    parser.add_argument("--source_config", default="")
    parser.add_argument("--target", required=True)
    parser.add_argument("--target_format", required=True, choices=("hf", "orbax"))
    parser.add_argument("--tokenizer", default="")
    parser.add_argument("--dtype", default="", choices=("", *DTYPES))
    parser.add_argument("--moments", action="store_true")
    args = parser.parse_args()
    if (args.source_format == "mesh_transformer") != bool(args.source_config):
        raise InputError("--source_config=FILE goes with --source_format=mesh_transformer, and only with it")
    if args.moments and (args.source_format, args.target_format) != ("mesh_transformer", "orbax"):
        raise InputError("--moments: only mesh_transformer checkpoints hold them, and only orbax takes them")
    if not Path(args.source).is_dir():
        raise InputError(f"--source={args.source}: there is no such directory")
    return args


def _check_target(target: Path) -> None:
    """What is at the target is replaced: that must be nothing. Its place can be written to."""
    try:
        if target.is_dir() and (name := next((file.name for file in sorted(target.iterdir())), "")):
            kind = "a model" if checkpoint.exists(target) else f"files ({name})"
            raise InputError(f"--target={target}: holds {kind} already; delete it or give another directory")
        target.mkdir(parents=True, exist_ok=True)
        target.rmdir()
    except OSError as error:
        raise InputError(f"--target={target}: cannot be made ({error.strerror}); give another directory") from error


def _open(args: argparse.Namespace, source: Path) -> loader.Source:
    if args.source_format == "hf":
        return hf.HfSource(source)
    return MeshTransformerSource(source, Path(args.source_config))


def _tokenizer_line(args: argparse.Namespace, words: Tokenizer | None) -> str:
    if words is None:
        return "no tokenizer: set --config.tokenizer"
    if args.target_format == "hf" and not isinstance(words, byte_level_bpe.Gpt2Tokenizer):
        return "its tokenizer has no Hugging Face form and was not written"
    return f"a tokenizer of {words.vocab_size:,} ids"


if __name__ == "__main__":
    exit_on_bad_input(main)
