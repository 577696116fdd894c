"""Package metadata; the exact tested versions stand in constraints.txt, tool settings in pyproject.toml."""

from setuptools import find_packages, setup

DEV = [
    *("hypothesis>=6.100", "mypy~=2.4", "pre-commit>=4", "pytest>=9", "pytest-xdist>=3.8", "ruff~=0.17"),
    *("httpx>=0.28", "openai>=3.54", "playwright>=1.65", "requests>=2.34", "schemathesis>=4.32"),  # clients
]
SERVE = ["fastapi>=0.165", "httpcore2>=2.16", "prometheus-client>=0.26", "pydantic-settings>=2.16", "uvicorn>=0.54"]
RAY = ["ray[serve]>=2.60,<3"]  # deploy/
DEMO = ["gradio>=6.31,<7", "httpx>=0.28", "scikit-image>=0.26"]
WANDB = ["wandb>=0.21"]  # --report_to_wandb
VIDEO = ["av>=15"]  # sources that are videos
QUICKSTART = ["gguf>=0.19", "matplotlib>=3.9", "scikit-learn>=1.5"]

setup(
    name="instruct-flamingo",
    version="3.0.0.dev0",
    description="Fine-tune and serve Flamingo-style multi-modal language models on your own instruction data",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(
        include=["open_flamingo", "open_flamingo.*", "instruction_dataset", "instruction_dataset.*"]
    ),
    package_data={
        "instruction_dataset": ["configs/*.json"],
        "open_flamingo.instruction_tuning": ["tuning_config/*.json"],
    },
    install_requires=[
        "einops>=0.8",
        "filelock>=3.16",
        "ijson>=3.3",  # JSON objects of many GB, streamed
        "numpy>=2.0",
        "open_clip_torch>=3.3,<4",
        "peft>=0.21,<0.22",
        "pillow>=11",
        "pyarrow>=24",  # the store: records and tokens on disk, memory-mapped
        "rouge-score>=0.1.2",
        "safetensors>=0.6",
        "sentencepiece>=0.2",  # tokenizer.model, all that LLaMA folders of 2023 hold
        "tensorboard>=2.19",
        "torch>=2.14",
        "torchvision>=0.29",
        "tqdm>=4.66",
        "transformers>=5.23,<5.24",
    ],
    extras_require={
        "quickstart": QUICKSTART,
        "serve": SERVE,
        "ray": SERVE + RAY,
        "demo": DEMO,
        "video": VIDEO,
        "wandb": WANDB,
        "dev": DEV,
        "all": QUICKSTART + SERVE + RAY + DEMO + VIDEO + WANDB + DEV,
    },
)
