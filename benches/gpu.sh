#!/usr/bin/env bash
# What there is to measure on a machine with an NVIDIA card, in a quarter of an hour.
#
#     benches/gpu.sh build           here or elsewhere: puts the programs into target/gpu/
#     benches/gpu.sh [DATA]          on the card: all parts, those with DATA if it is given
#     ONLY="check feed" benches/gpu.sh DATA    some of them: check, feed, run, steps, pytorch, sanitizer, profile
#     BUDGET=560 benches/gpu.sh DATA seconds for all of it (840); a step that does not fit any more is left out
#     SMALL=1 benches/gpu.sh         the same on tiny models and made-up images: with the stand-in of the tests in
#                                    LD_LIBRARY_PATH it shows that this script works
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
    strip $programs/*
    exit
fi

parts=${ONLY:-check feed run steps pytorch sanitizer profile} budget=${BUDGET:-840} failed=0
wanted() { [[ " $parts " == *" $1 "* ]]; }
say() { printf '\n== %s (after %d s)\n' "$1" $SECONDS; }
# Runs a command for `LIMIT` seconds (120) at most, and no longer than the budget lasts.
step() {
    local left=$((budget - SECONDS)) limit=${LIMIT:-120} code=0
    [ $left -ge 10 ] || { echo "LEFT OUT, no time: $*"; return; }
    timeout $((limit < left ? limit : left)) "$@" || { code=$? failed=$((failed + 1)) && echo "FAILED with $code: $*"; }
}
fewvit=$programs/fewvit data=${1:-}
if [ -n "${SMALL:-}" ]; then
    models=("deit_micro_patch8_96 16 8" "pvt_v2_b0_small 32 2") seconds=0.1 dtypes="f32 tf32 bf16"
    pipeline=(--model deit_micro_patch8_96 --crops "2x16@0.3-1" -b 4)
    whole=(--model deit_micro_patch8_96 --crops "2x16@0.3-1" --img-size 16 --pretrain-epochs 2 --epochs 2)
else
    models=("deit_tiny_patch16_224 112 1024" "deit_tiny_patch16_224 112 256" "deit_tiny_patch16_224 112 1536"
        "pvt_v2_b0 112 256" "t2t_vit_7 112 256" "deit_base_patch16_224 224 64") seconds=5 dtypes="bf16 tf32 f32"
    pipeline=(--model deit_tiny_patch16_224 --crops "2x112@0.14-1" -b 512) whole=(--recipe paper)
fi
if [ -z "$data" ]; then
    data=$(mktemp -d)/flowers
    step $fewvit data synth "$data" --train 3 --test 1 --img-size 64
fi

say "the machine"
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv,noheader
step $fewvit doctor

if wanted check; then
    say "correctness: every operation, crop, family and method against the CPU"
    export STANDIN_INSIDE=1
    step $programs/cuda --test-threads 1 operations optimisers models bf16 feed:: crops
    [ -n "${SMALL:-}" ] || LIMIT=240 step $programs/oracle --nocapture on_cuda
    unset STANDIN_INSIDE
fi

if wanted feed; then
    say "an epoch from JPEG to update, against the bare step: crops a second of the two"
    read -r name size batch <<<"${models[0]}"
    for dtype in bf16 f32; do
        step $fewvit bench epoch "$data" --device cuda "${pipeline[@]}" --amp-dtype $dtype --seconds $seconds
        step $fewvit bench step --device cuda --model "$name" --img-size "$size" -b "$batch" --amp-dtype $dtype --seconds $seconds
    done
    echo "the loader of the CPU by itself:"
    step $fewvit bench data "$data" "${pipeline[@]}" --seconds $seconds
fi

if wanted run; then
    say "the paper's run on $data"
    LIMIT=420 step $fewvit train "$data" --device cuda --amp-dtype bf16 "${whole[@]}" --output "runs/gpu-$(date +%s)-$$" --yes
fi

if wanted steps || wanted pytorch; then
    say "training steps"
    for model in "${models[@]}"; do
        read -r name size batch <<<"$model"
        for dtype in $dtypes; do
            wanted steps || continue
            echo "fewvit $name $size px, batch $batch, $dtype:"
            step $fewvit bench step --device cuda --model "$name" --img-size "$size" -b "$batch" --amp-dtype "$dtype" --seconds $seconds
        done
        if wanted pytorch && [ -z "${SMALL:-}" ]; then
            step python3 benches/gpu_pytorch.py "$name" "$size" "$batch"
        fi
    done
fi

if wanted sanitizer && command -v compute-sanitizer >/dev/null; then
    say "whether memory is used as it should, and whether threads race"
    for tool in memcheck racecheck; do
        step compute-sanitizer --tool $tool $fewvit bench step --device cuda --model pvt_v2_b0_small --img-size 32 -b 2 --seconds 0.1
        step compute-sanitizer --tool $tool $fewvit bench epoch "$data" --device cuda --model deit_micro_patch8_96 --crops "2x16@0.3-1" -b 4 --seconds 0.1
    done
fi

if wanted profile && command -v nsys >/dev/null; then
    say "where the time goes"
    read -r name size batch <<<"${models[0]}"
    step nsys profile --stats=true --force-overwrite true -o $programs/profile $fewvit bench step --device cuda --model "$name" --img-size "$size" -b "$batch" --amp-dtype bf16 --seconds 0.1
fi
say "end, $failed failed"
[ $failed = 0 ]
