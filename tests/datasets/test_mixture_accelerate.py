"""The loader under a real `accelerate launch` of two processes: each sample once, and an exact continuation."""

import json
import os
import subprocess
import sys
from pathlib import Path

from volar.datasets.frame_cache import FrameCache

# What each rank runs, first whole, then as a run that stopped after five batches and one that goes on from its state.
SCRIPT = """
import json, sys
from itertools import islice
from pathlib import Path
import torch
from accelerate import Accelerator
from volar.datasets.frame_cache import FrameCache
from volar.datasets.lerobot_format import load_contract
from volar.datasets.mixture import Mixture, MixtureLoader, sources_of
from volar.datasets.mixture_contract import MixtureRules

root, out, resume = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "resume"
accelerator = Accelerator(cpu=True)
sources = sources_of({"only": 1.0}, [FrameCache.build(root)], [load_contract(root)], MixtureRules())
rank, ranks = accelerator.process_index, accelerator.num_processes
mixture = Mixture(sources, batch_size=3, seed=5, rank=rank, ranks=ranks)

def taken(loader, count):
    found = []
    for batch in islice(loader, count):
        everyone = accelerator.gather(torch.cat([batch["observation.state"], batch["action"].flatten(1)], 1))
        found.append(everyone.tolist())
    return found

loader = MixtureLoader(mixture, workers=1 if resume else 2)
if resume:
    loader.load_state_dict(json.loads((out / "state.json").read_text()))
    rest = taken(loader, 9 - 5)
    result = {"rest": rest}
else:
    whole = taken(loader, 9)
    stopped = MixtureLoader(mixture, workers=1)
    taken(stopped, 5)
    result = {"whole": whole}
    states = accelerator.gather(torch.tensor([stopped.state_dict()["batches"]])).tolist()
    assert states == [10, 10], states
if accelerator.is_main_process:
    if not resume:
        (out / "state.json").write_text(json.dumps(stopped.state_dict()))
    result |= {"ranks": ranks, "type": accelerator.distributed_type}
    (out / f"{sys.argv[3]}.json").write_text(json.dumps(result))
accelerator.wait_for_everyone()
accelerator.end_training()
"""


def launched(root: Path, out: Path, what: str) -> dict[str, object]:
    script = out / "script.py"
    script.write_text(SCRIPT)
    # `--cpu` starts one process; what starts two is called --multi_gpu, and the script says that it is of the CPU.
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--main_process_port", "0"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, str(script), str(root), str(out), what]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, object] = json.loads((out / f"{what}.json").read_text())
    return found


def test_two_ranks_take_each_sample_once_and_go_on_exactly(dataset: Path, tmp_path: Path) -> None:
    frames = FrameCache.build(dataset)  # before two processes want it at once
    first = launched(dataset, tmp_path, "whole")
    assert (first["ranks"], first["type"]) == (2, "MULTI_CPU")
    whole = first["whole"]
    assert isinstance(whole, list)
    samples = [tuple(sample) for step in whole for sample in step]
    assert len(samples) == 54 == 9 * 2 * 3
    epoch = samples[: len(frames)]  # ranks hand in their batches in order, so the stream is in order
    assert len(set(epoch)) == len(epoch) == len(frames)
    resumed = launched(dataset, tmp_path, "resume")
    assert resumed["rest"] == whole[5:]
