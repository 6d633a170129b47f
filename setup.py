# SPDX-License-Identifier: Apache-2.0
"""Packaging. Lint, type-check and pytest settings live in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    name="vllm2-jax",
    version="0.1.0",
    description="VisionLLM v2 on JAX and TPU: a generalist multimodal model with super links",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(
        include=["vllm2_jax*", "data_pipelines*", "configs*", "launch*"],
    ),
    package_data={"data_pipelines": ["assets/**/*"]},
    install_requires=[
        "jax>=0.10,<0.13",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11",
        "grain>=0.2.15",
        "tensorflow-datasets>=4.9.10",
        "diffusers>=0.35",
        "transformers>=5.0",
        "ml-collections>=1.1",
        "clu>=0.0.12",
        "huggingface-hub>=0.34",
        "jaxtyping>=0.3",
        "numpy>=2.0",
        "pillow>=10.0",
        "protobuf>=4.21",
        "pyarrow>=15",
        "pycocotools>=2.0.8",
        "safetensors>=0.4",
        "scipy>=1.11",
        "sentencepiece>=0.2",
        "tokenizers>=0.21",
        "tqdm>=4.60",
    ],
    extras_require={
        "tpu": ["jax[tpu]", "gcsfs"],  # the second for workdirs in buckets
        "cuda": ["jax[cuda12]"],
        "tensorboard": ["tensorflow"],
        "benchmark": ["torch"],
        "tfds": ["tensorflow", "importlib_resources"],  # to build TFDS datasets; 4.9.10 forgets the second
        "dev": [
            "beartype>=0.19",
            "mypy",
            "pre-commit",
            "pre-commit-hooks",
            "pytest>=8",
            "pytest-xdist",
            "ruff",
        ],
    },
)
