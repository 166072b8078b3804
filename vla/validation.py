"""How good the policy is on what it was not trained on: actions of held-out episodes, answers to held-out questions.

The policy is the averaged weights, in the precision in which they are deployed, and its actions are those it would
send: decoded greedily, in physical units.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from volar.datasets.action_chunks import Batch
from volar.datasets.mixture import Mixture, Source
from volar.datasets.normalizer import Normalizer
from volar.robots.action_space import ActionSpec
from volar.robots.contract import PolicyContract
from volar.vla.action_tokenizers.action_tokenizer import DecodeError
from volar.vla.action_tokenizers.uniform_bins import BINS, UniformBins
from volar.vla.processor_volar import InferenceGraph
from volar.vla.training_data import Data, Part, make_part

if TYPE_CHECKING:
    from volar.vla.training_run import TrainingRun

FRAMES = 1024  # of each held-out dataset, at most: enough for three digits, in seconds


class Validation:
    """Every measurement is of the same frames, which the processes share out."""

    def __init__(self, training: "TrainingRun") -> None:
        self._training = training
        self._actions = [HeldOut(training, source) for source in training.data.held_out]
        held = training.data.held_questions
        self._questions = None if held is None else HeldOut(training, held, training.data.answers)
        self._chance = guessing(training.data)
        bins = isinstance(training.bare.tokenizer, UniformBins) and training.bare.config.decoder != "flow"
        self._accuracy = "token_accuracy" if bins else "bin_accuracy"

    @staticmethod
    def of(training: "TrainingRun") -> "Validation | None":
        """None where nothing is held out."""
        data = training.data
        return Validation(training) if data.held_out or data.held_questions is not None else None

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """`validation/..`: of chunks `l1_m`, `l1_rad`, `l1_gripper` and how many numbers lie in the right one of 255
        bins, called `token_accuracy` where these are the policy's tokens and `bin_accuracy` where it has others (FAST)
        or none (flow); `no_chunk`, how often there was none (tokenizer=fast); of answers `answer_accuracy`, of all and
        of each kind, and `answer_chance`, what guessing by the question alone would give. Called in all processes.
        """
        training, sums = self._training, defaultdict[str, float](float)
        training.bare.eval()
        with training.average.in_place(training.bare):
            for held in self._actions:
                self._measure_actions(held, sums)
            if self._questions is not None:
                self._measure_answers(self._questions, sums)
        training.bare.train()
        names = self._names()
        values = training.processes.sum(torch.tensor([sums[name] for name in names], dtype=torch.float64)).tolist()
        found = dict(zip(names, values, strict=True))
        rates = {
            f"validation/{name}": round(value / found[f"{name}#"], 5)
            for name, value in found.items()
            if not name.endswith("#") and found[f"{name}#"]
        }
        return rates | ({"validation/answer_chance": round(self._chance, 5)} if self._questions is not None else {})

    def _names(self) -> list[str]:
        """All that a process may have something to say about, so that they add up alike."""
        names = [self._accuracy, "no_chunk", *(f"l1_{group}" for group in groups_of(self._training.contract.action))]
        if not self._actions:
            names = []
        if self._questions is not None:
            names += ["answer_accuracy", *(f"answer_accuracy/{kind}" for kind in set(self._training.data.kinds))]
        return sorted([*names, *(f"{name}#" for name in names)])

    def _measure_actions(self, held: "HeldOut", sums: dict[str, float]) -> None:
        contract = held.contract
        normalizer = Normalizer.of_contract(contract, "action")
        for batch in held.batches():
            decoded, is_chunk = held.decode(batch)  # (B, H, A), physical; (B,)
            mask = batch.action_mask & is_chunk[:, None]  # (B, H)
            _add(sums, "no_chunk", ~is_chunk)
            # The id of exactly 1 is decoded as its neighbour, the last of the 255 bins.
            bins = [np.maximum(UniformBins(BINS).encode(normalizer.normalize(a)), 1) for a in (decoded, batch.actions)]
            _add(sums, self._accuracy, (bins[0] == bins[1])[mask])
            for group, columns in groups_of(contract.action).items():
                _add(sums, f"l1_{group}", np.abs(decoded - batch.actions)[mask][:, columns])

    def _measure_answers(self, held: "HeldOut", sums: dict[str, float]) -> None:
        training = self._training
        for batch in held.batches():
            sample = training.on_device(training.tensors(held.part, batch))
            said = training.look(sample, training.bare).answer_logits
            assert said is not None
            right = (said.argmax(-1) == sample["answers"]).cpu().numpy()
            kinds = np.array([training.data.kinds[i] for i in batch.instruction_id])
            _add(sums, "answer_accuracy", right)
            for kind in np.unique(kinds).tolist():
                _add(sums, f"answer_accuracy/{kind}", right[kinds == kind])


class HeldOut:
    """Held-out frames of one dataset, in batches of this process's own."""

    def __init__(self, training: "TrainingRun", source: Source, answers: tuple[str, ...] = ()) -> None:
        self._training = training
        contract, processes = training.contract, training.processes
        frames = min(source.size, FRAMES)
        at_once = max(1, training.config.batch_size // training.config.accumulate)  # as many as training has room for
        batches = -(-frames // at_once) * processes.count
        size = max(1, frames // batches)
        # The policy's cameras, and the statistics that the network was shown these frames with.
        self.contract: PolicyContract = replace(contract, statistics=source.contract.statistics)
        source = replace(source, contract=self.contract)
        mixture = Mixture([source], batch_size=size, seed=0, chunk_length=contract.chunk_length)
        self._numbers = range(processes.index, batches, processes.count)
        self.part: Part = make_part(mixture, contract, training.tokenizer, answers)
        self._graph = InferenceGraph(training.bare, self.contract).to(processes.device) if not answers else None

    def batches(self) -> Iterator[Batch]:
        """Each frame once, but for fewer than there are batches; as many batches in every process."""
        for number in self._numbers:
            yield self.part.mixture.batch(number)

    def decode(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The chunks (B, H, A) that the deployed policy would send, and whether (B,) it would send one: tokens of
        varying length may be none."""
        ids = self.part.token_ids[batch.instruction_id]
        cameras = self.contract.cameras
        there = np.stack([batch.camera_mask[c.name] for c in cameras], axis=1)  # (B, C)
        inputs = [_moved(batch.images[c.name], self._training) for c in cameras]
        inputs += [_moved(x, self._training) for x in (batch.state, ids, there)]
        try:
            return self._decode(inputs), np.ones(len(ids), dtype=bool)
        except DecodeError:
            return self._decode_each(inputs, np.zeros_like(batch.actions))

    def _decode(self, inputs: list[Tensor]) -> NDArray[np.float32]:
        assert self._graph is not None
        *images, state, ids, there = inputs
        shown = {c.name: image for c, image in zip(self.contract.cameras, images, strict=True)}
        mask = None if there.all() else there
        found: NDArray[np.float32] = self._graph(shown, state, ids, camera_mask=mask)[0].cpu().numpy()
        return found

    def _decode_each(
        self, inputs: list[Tensor], actions: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        is_chunk = np.zeros(len(actions), dtype=bool)
        for i in range(len(actions)):
            try:
                actions[i] = self._decode([value[i : i + 1] for value in inputs])[0]
                is_chunk[i] = True
            except DecodeError:  # one of those that are told apart
                continue
        return actions, is_chunk


def groups_of(spec: ActionSpec) -> dict[str, list[int]]:
    """The numbers of an action that share a unit: `m`, `rad`, and the gripper by itself."""
    groups = defaultdict[str, list[int]](list)
    for i, unit in enumerate(spec.units):
        last = spec.gripper != "none" and i == spec.size - 1
        groups["gripper" if last else unit].append(i)
    return dict(groups)


def guessing(data: Data) -> float:
    """How often the most frequent answer to the same question, without a look at the picture, is right."""
    if data.questions is None or data.held_questions is None:
        return 0.0
    texts = data.questions.frames.instructions
    answers = defaultdict[str, Counter[str]](Counter)
    for i in _drawn(data.questions):
        answers[texts[i]][data.answers[i]] += 1
    best = {text: found.most_common(1)[0][0] for text, found in answers.items()}
    return float(np.mean([best.get(texts[i]) == data.answers[i] for i in _drawn(data.held_questions)]))


def _drawn(source: Source) -> list[int]:
    """The instruction of each frame that is drawn from."""
    ids = source.frames.instruction_id
    found: list[int] = (ids if source.rows is None else ids[source.rows]).tolist()
    return found


def _moved(array: NDArray[np.generic], training: "TrainingRun") -> Tensor:
    return torch.tensor(array, device=training.processes.device)


def _add(sums: dict[str, float], name: str, values: NDArray[np.generic]) -> None:
    sums[name] += float(values.astype(np.float64).sum())
    sums[f"{name}#"] += values.size
