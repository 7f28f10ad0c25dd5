"""What pandas and TensorBoard read of a run is what the run wrote: one finished at once, one killed and resumed.

    python tests/parity/tensorboard.py [PATH/TO/fewvit]

Trains both on made-up pictures, then holds results.csv (pandas) and the event files (EventAccumulator)
against metrics.jsonl. Needs numpy, pandas, Pillow and tensorboard.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

sys.path.pop(0)  # Python would take this file for the package of its name.
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PROGRAM = Path(sys.argv[1] if len(sys.argv) > 1 else "target/release/fewvit").resolve()
SETTINGS = ["--recipe", "quick", "--model", "deit_micro_patch8_96", "--img-size", "32", "-b", "8", "--pretrain-epochs", "6", "--epochs", "4"]
SETTINGS += ["--crops", "2x16@0.3-1", "--set", "pretrain.probe_every=1", "--set", "checkpoint.every_minutes=0.0", "--set", "finetune.optim.ema=per-step"]
NAMED_OTHERWISE = {"loss": "epoch_loss"}


def pictures(folder):
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for name in "ab":
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / split / name / f"{i}.png")


def check(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    table = pd.read_csv(run / "results.csv")
    assert list(table.columns) == list(rows[0]) and len(table) == len(rows) == 11
    assert table.groupby("stage").size().to_dict() == {"pretrain": 6, "finetune": 4, "test": 1}
    trained = table[table.stage != "test"]
    assert trained[["images_per_second", "loss", "lr", "grad_norm"]].notna().all().all()
    assert table.seconds.is_monotonic_increasing and table.step.is_monotonic_increasing
    assert table[table.stage == "pretrain"][["knn_top1", "alignment"]].notna().all().all()
    report = json.loads((run / "report.json").read_text())
    assert table.top1.iloc[-1] == report["metrics"]["top1"] and table.stage.iloc[-1] == "test"

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    tags, compared = set(events.Tags()["scalars"]), 0
    for row in rows:
        for name, value in row.items():
            if name in ("stage", "epoch", "step", "warning") or value is None:
                continue
            tag = f"{row['stage']}/{NAMED_OTHERWISE.get(name, name)}"
            assert tag in tags, tag
            found = [e.value for e in events.Scalars(tag) if e.step == row["step"]]
            assert found == [np.float32(value)], (tag, row["step"], found, value)
            compared += 1
    for stage, first, last in (("pretrain", 1, 18), ("finetune", 19, 30)):
        steps = [e.step for e in events.Scalars(f"{stage}/loss")]
        assert steps == list(range(first, last + 1)), (stage, steps)
    print(f"{run.name}: {compared} values of metrics.jsonl and every step are in TensorBoard")


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        pictures(folder / "data")
        train = [PROGRAM, "train", folder / "data", *SETTINGS, "--output"]
        subprocess.run([*train, folder / "whole"], check=True, capture_output=True)
        check(folder / "whole")
        resumed = folder / "resumed"
        child = subprocess.Popen([*train, resumed], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        log = resumed / "metrics.jsonl"
        while not (log.exists() and log.read_text().count("\n") >= 3) and child.poll() is None:
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert not (resumed / "report.html").exists(), "it was killed in the middle"
        subprocess.run([PROGRAM, "resume", resumed], check=True, capture_output=True)
        check(resumed)


main()
