"""Converts models between Hugging Face, GGUF, mesh-transformer-jax and star_jax's own format.

    python -m star_jax.convert --source=MODEL --source_format=hf|gguf|mesh_transformer|orbax \\
                               --target=DIR --target_format=hf|orbax
        [--source_config=FILE]   mesh_transformer: its JSON config; --source is the step_N directory
        [--tokenizer=DIR|NAME]   tokenizer files or a hub name, if the source has no tokenizer
        [--dtype=float32|bfloat16|float16]   of the target; default: the source's
        [--moments]              mesh_transformer -> orbax: also Adam's moments, for --config.replication.base_moments

MODEL is a directory, for gguf a file. Like --config.base.path it may also be a name on the Hugging Face hub (hf) or
pip:NAME (gguf). orbax is star_jax's own directory: a run's base/ or iter_NNN/params/, or what this command wrote.
"""

import argparse
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from star_jax import terminal, tokenizers
from star_jax.cli.parser import Parser, exit_on_bad_input
from star_jax.config import MeshConfig
from star_jax.distributed import sharding
from star_jax.errors import InputError
from star_jax.json_reader import is_present
from star_jax.models import decoder
from star_jax.tokenizers import JsonTokenizer, Tokenizer
from star_jax.weights import checkpoint
from star_jax.weights.sources import gguf, hf, loader, location
from star_jax.weights.sources.mesh_transformer import MeshTransformerSource


def main() -> None:
    """The command."""
    args = _parse()
    _check_target(args.target)
    mesh = sharding.make_mesh(MeshConfig(data=1))
    model, params, tokenizer = _load(args, mesh)
    if tokenizer is not None and tokenizer.vocab_size > model.spec.vocab_size:
        raise InputError(
            f"{args.tokenizer or args.source}: the tokenizer has {tokenizer.vocab_size} ids and the model's embedding "
            f"{model.spec.vocab_size} rows; give the model's own tokenizer"
        )
    moments = _open_moments(args)
    if args.target_format == "orbax":
        checkpoint.save_model(args.target, model, params, tokenizer)
        for which, source in moments.items():
            checkpoint.save_moments(args.target, which, loader.load(source, mesh, "float32")[1], source.steps)
    else:
        special_ids = hf.special_ids(args.source) if args.source_format == "hf" and tokenizer is None else {}
        dtype = np.dtype(params["embedding"]["embedding"].dtype)
        hf.save(args.target, model.spec, params, tokenizer, dtype, special_ids=special_ids)
    n_params = sum(leaf.size for leaf in loader.leaves(model).values())
    about_tokenizer = _tokenizer_line(args.target_format, tokenizer)
    terminal.say(f"{args.target}: {model.spec.family}, {n_params:,} parameters, {about_tokenizer}")


def _parse() -> argparse.Namespace:
    parser = Parser("convert", __doc__)
    parser.add_path("--source", required=True, metavar="MODEL")
    parser.add_argument("--source_format", required=True, choices=("hf", "gguf", "mesh_transformer", "orbax"))
    parser.add_path("--source_config", metavar="FILE")
    parser.add_path("--target", required=True)
    parser.add_argument("--target_format", required=True, choices=("hf", "orbax"))
    parser.add_path("--tokenizer", metavar="DIR")
    parser.add_argument("--dtype", default="", choices=("", *checkpoint.DTYPES))
    parser.add_argument("--moments", action="store_true")
    args = parser.parse_args()
    if (args.source_format == "mesh_transformer") != bool(args.source_config):
        raise InputError("--source_config=FILE goes with --source_format=mesh_transformer, and only with it")
    if args.moments and (args.source_format, args.target_format) != ("mesh_transformer", "orbax"):
        raise InputError("--moments: needs --source_format=mesh_transformer and --target_format=orbax")
    given, form = args.source, args.source_format
    args.source = location.resolve(given).path if form in ("hf", "gguf") else given
    is_present(args.source)  # raises InputError for a folder that may not be entered
    if (actual := _format_of(args.source)) not in ("", form):
        raise InputError(f"--source={given}: holds a model in another format; give --source_format={actual}")
    if form == "gguf" and not args.source.is_file():
        raise InputError(f"--source={given}: there is no such file")
    if form != "gguf" and not args.source.is_dir():
        raise InputError(f"--source={given}: there is no such directory")
    return args


def _format_of(source: Path) -> str:
    """The format of a model by its files; "" where they do not tell."""
    if gguf.is_file(source):
        return "gguf" if source.suffix == ".gguf" else ""
    if is_present(source / "model.json"):
        return "orbax"
    return "hf" if hf.is_model(source) else ""


def _check_target(target: Path) -> None:
    """Raises InputError unless the target is missing or an empty directory, and can be written."""
    try:
        if target.is_dir() and (name := next((file.name for file in sorted(target.iterdir())), "")):
            content = "a model" if checkpoint.exists(target) else f"files ({name})"
            raise InputError(f"--target={target}: holds {content} already; delete it or give another directory")
        target.mkdir(parents=True, exist_ok=True)
        target.rmdir()
    except OSError as error:
        raise InputError(f"--target={target}: cannot be made ({error.strerror}); give another directory") from error


def _load(args: argparse.Namespace, mesh: Mesh) -> tuple[decoder.Decoder, decoder.Params, Tokenizer | None]:
    """The source's model in the target's dtype, and the tokenizer given by flag or stored with the source."""
    given = tokenizers.make(str(args.tokenizer)) if args.tokenizer else None
    if args.source_format == "orbax":
        dtype = args.dtype or checkpoint.stored_dtype(args.source)
        model, params = checkpoint.load_model(args.source, mesh, dtype)
        return model, params, given or checkpoint.find_tokenizer(args.source)
    source: loader.WeightSource
    if args.source_format == "hf":
        source = hf.HfSource(args.source)
    elif args.source_format == "gguf":
        source = gguf.GgufSource(args.source)
    else:
        source = MeshTransformerSource(args.source, args.source_config)
    tokenizer = given or source.tokenizer()
    return *loader.load(source, mesh, args.dtype or source.dtype), tokenizer


def _open_moments(args: argparse.Namespace) -> dict[str, MeshTransformerSource]:
    """The sources of the "first" and "second" moments; empty without --moments."""
    names = ("first", "second") if args.moments else ()
    return {name: MeshTransformerSource(args.source, args.source_config, f"{name}_moments") for name in names}


def _tokenizer_line(target_format: str, tokenizer: Tokenizer | None) -> str:
    if tokenizer is None:
        return "no tokenizer: set --config.tokenizer"
    if target_format == "hf" and not isinstance(tokenizer, JsonTokenizer):
        return "its tokenizer has no Hugging Face form and was not written"
    return f"a tokenizer of {tokenizer.vocab_size:,} ids"


if __name__ == "__main__":
    exit_on_bad_input(main)
