# The commands of everyday work; `just` lists them.

default:
    @just --list

# Everything that continuous integration runs.
check:
    bash .ci/run

# The tests.
test:
    cargo test --release --workspace

# Speed of the kernels against the machine's limit.
limits:
    cargo run --release -p fewvit-kernels --example limits

# Parity of whole models with timm (needs Python with torch and timm).
parity:
    cargo build --release
    python tests/parity/deit.py
    python tests/parity/backbones.py
    python tests/parity/views.py
    python tests/parity/tensorboard.py

# Golden files from PyTorch, torchvision, PIL and timm.
goldens:
    for script in tests/golden/*.py; do python "$script"; done
