#!/usr/bin/env bash
# What there is to measure on a machine with an NVIDIA card, in one call of about ten minutes.
#
#     benches/gpu.sh build           here or elsewhere: puts the programs into target/gpu/
#     benches/gpu.sh [DATA]          on the card: correctness, speed beside PyTorch, then a whole run on DATA
#     SMALL=1 benches/gpu.sh         the same on tiny models: with the stand-in of the tests in LD_LIBRARY_PATH it
#                                    shows that this script works
#
# It needs the driver, libnvrtc and libcublasLt (`fewvit doctor` says what is missing), and python3 with torch and timm
# for PyTorch's side. A step that fails is said so, and the next one begins.
set -uo pipefail
cd "$(dirname "$0")/.."
programs=target/gpu

if [ "${1:-}" = build ]; then
    set -e
    cargo build --release --features cuda
    mkdir -p $programs
    cp target/release/fewvit $programs/
    for test in oracle cuda; do
        path=$(cargo test --release --features cuda --test $test --no-run --message-format json |
            sed -n 's/.*"executable":"\([^"]*deps\/'$test'-[^"]*\)".*/\1/p' | tail -1)
        cp "$path" $programs/$test
    done
    exit
fi

say() { printf '\n== %s (after %d s)\n' "$1" $SECONDS; }
step() { timeout "${LIMIT:-120}" "$@" || echo "FAILED with $?: $*"; }
fewvit=$programs/fewvit
if [ -n "${SMALL:-}" ]; then
    models=("deit_micro_patch8_96 16 4" "pvt_v2_b0_small 32 2") seconds=0.1
else
    models=("deit_tiny_patch16_224 112 256" "deit_tiny_patch16_224 112 1536" "pvt_v2_b0 112 256" "t2t_vit_7 112 256"
        "deit_base_patch16_224 224 64") seconds=5
fi

say "the machine"
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv,noheader
step $fewvit doctor

say "correctness: every operation, family and method against the CPU"
export FEWVIT_TEST_CUDA=1
step $programs/cuda --test-threads 1 operations optimisers models bf16
[ -n "${SMALL:-}" ] || LIMIT=300 step $programs/oracle --nocapture on_cuda

say "training steps"
for model in "${models[@]}"; do
    read -r name size batch <<<"$model"
    for dtype in f32 bf16; do
        echo "fewvit $name $size px, batch $batch, $dtype:"
        step $fewvit bench step --device cuda --model "$name" --img-size "$size" -b "$batch" --amp-dtype $dtype --seconds $seconds
    done
    if [ -z "${SMALL:-}" ]; then
        step python3 benches/gpu_pytorch.py "$name" "$size" "$batch"
    fi
done

say "where the time goes, and whether memory is used as it should"
read -r name size batch <<<"${models[0]}"
short=(bench step --device cuda --model "$name" --img-size "$size" --seconds 0.1)
if command -v nsys >/dev/null; then
    step nsys profile --stats=true --force-overwrite true -o $programs/profile $fewvit "${short[@]}" -b "$batch"
fi
if command -v compute-sanitizer >/dev/null; then
    LIMIT=300 step compute-sanitizer --tool memcheck $fewvit bench step --device cuda --model deit_micro_patch8_96 --img-size 32 -b 2 --seconds 0.1
fi

if [ -n "${1:-}" ]; then
    say "the paper's run on $1"
    LIMIT=3600 step $fewvit train "$1" --device cuda --amp-dtype bf16 --output "runs/gpu-$(date +%s)" --yes
fi
say end
