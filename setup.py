"""The package kdlib: `pip install -e .`; the recipes under egs/ are run from the checkout."""

from setuptools import find_packages, setup

# tools/check_env.py reads this list too. Lower bounds: torch 1.13.1 with numpy 1.26 (requirements-k2.txt) up to
# torch 2.11 with numpy 2.4 (requirements.txt) are what the tests run with. lhotse was tried at 1.33.0 only.
REQUIRES = [
    "torch>=1.13.1",
    "numpy>=1.26",
    "scipy>=1.15",
    "numba>=0.68",  # compiles the loops of kdlib.rnnt for the CPU
    "lhotse>=1.33",
    "lilcom>=1.8",  # how Lhotse compresses features
    "urllib3",  # lhotse imports it without asking for it
    "sentencepiece>=0.2",
    "kaldialign>=0.12",
    "omegaconf>=2.4",
    "PyYAML>=6",
    "soundfile>=0.14",
    "tensorboard>=2.21",
    "matplotlib>=3.10",
    "tqdm>=4.70",
    "espeakng-loader>=0.2.4",
    "onnx>=1.22",
    "onnxruntime>=1.23",
    "sherpa-onnx>=2.0",
]

EXTRAS = {
    # To be there before: pip cannot tell apart the wheels of k2 on the package index (requirements-k2-wheel.txt says
    # why), so use tools/install.sh --k2, or the wheel that the k2 authors publish for your torch.
    "k2": ["k2>=1.23.4"],
    "cluster": ["distributed", "smart_open"],  # Dask, and object stores of Shar
    "dev": ["pytest>=9", "pytest-xdist>=3.8", "hypothesis>=6.168", "jiwer>=4", "torchaudio"],
}

setup(
    name="kdlib",
    version="0.1.0",
    description="Streaming Conformer transducers, compressed by multi-stage knowledge distillation",
    license="Apache-2.0",
    packages=find_packages(include=["kdlib", "kdlib.*"]),
    python_requires=">=3.10",
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)
