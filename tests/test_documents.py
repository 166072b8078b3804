"""What the documents tell people to type is a command line that exists, and where they point there is something."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from volar.robots.command_line import leaf_hints, parse
from volar.robots.contract import PolicyContract
from volar.robots.errors import UsageError

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "docs/decisions/*.md", "launch/*.md", "rl/*.md", "vla/checkpoints/*/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)
# The words that begin a command -> module, settings, and what it takes without a name.
VERBS: dict[tuple[str, ...], tuple[str, str, tuple[str, ...]]] = {
    ("volar-collect",): ("sim.collect", "CollectConfig", ()),
    ("volar-control",): ("sim.control", "ControlConfig", ()),
    ("volar-convert",): ("datasets.convert", "ConvertConfig", ()),
    ("volar-convert", "inspect"): ("datasets.inspect_dataset", "InspectConfig", ("path",)),
    ("volar-convert", "source=openvla"): ("vla.openvla.convert", "ConvertOpenVLAConfig", ()),
    ("volar-doctor",): ("robots.doctor", "DoctorConfig", ("artifact",)),
    ("volar-evaluate",): ("sim.evaluate", "EvaluateConfig", ()),
    ("volar-evaluate", "compare"): ("sim.compare", "CompareConfig", ()),
    ("volar-evaluate", "replay"): ("sim.replay", "ReplayConfig", ("file",)),
    ("volar-export",): ("vla.export", "ExportConfig", ()),
    ("volar-finetune",): ("rl.finetune", "FinetuneConfig", ()),
    ("volar-serve",): ("robots.serve", "ServeConfig", ()),
    ("volar-sim-robot",): ("sim.ros2_robot", "SimRobotConfig", ()),
    ("volar-train",): ("vla.train", "TrainConfig", ()),
    ("volar-train", "inspect_tokenizer"): ("vla.inspect_tokenizer", "InspectTokenizerConfig", ()),
    ("volar.vla.train",): ("vla.train", "TrainConfig", ()),
    ("volar.rl.distill",): ("rl.distill", "DistillConfig", ()),
    ("volar.rl.state_baselines",): ("rl.state_baselines", "BaselineConfig", ()),
    ("volar.rl.success_classifier",): ("rl.success_classifier", "ClassifierConfig", ()),
    ("volar.robots.lerobot_facts",): ("robots.lerobot_facts", "FactsConfig", ()),
}
# Says what to fill in: ..., $VARIABLE, or nothing or capitals for the value of a setting.
FILL_IN = re.compile(r"^(\w[\w.]*=)?(\.\.\.|.*\$\w.*)$|^\w[\w.]*=[A-Z]*$")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def commands(text: str) -> Iterator[str]:
    """Those in fenced blocks without a language, with continued lines joined and comments gone."""
    for language, block in FENCED.findall(text):
        for line in () if language else block.replace("\\\n", " ").splitlines():
            yield from (part.strip() for part in re.split(r"\s&&\s|\s#\s", line.split("  #")[0]) if part.strip())


def mentions(text: str) -> Iterator[str]:
    """Those of this package between words, in backquotes, also over two lines. A verb alone is none."""
    for span in re.findall(r"`([^`]+)`", FENCED.sub("", text)):
        line = " ".join(span.split())
        if re.match(r"volar-\S+ \S|python (-P )?-m volar\.\S+ \S", line):
            yield line


def verb_of(words: list[str]) -> tuple[tuple[str, ...], list[str]] | None:
    """Which of `VERBS` a command is, and its settings; None for another program's."""
    if "-m" in words:
        words = words[words.index("-m") + 1 :]
    if words[0] == "volar-convert" and "source=openvla" in words:
        return ("volar-convert", "source=openvla"), words[1:]
    if words[1:2] == ["compare"]:  # takes any number of them without a name
        return ("volar-evaluate", "compare"), [f"evaluations=[{','.join(words[2:])}]"] if words[2:] else []
    for length in (2, 1):
        if tuple(words[:length]) in VERBS:
            return tuple(words[:length]), words[length:]
    return None


def known(document: str) -> list[tuple[str, tuple[str, ...], list[str]]]:
    found = [(line, verb_of(shlex.split(line))) for line in commands((ROOT / document).read_text())]
    return [(line, *verb) for line, verb in found if verb is not None]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_parse(document: str) -> None:
    for _, verb, settings in known(document):
        check(verb, settings, complete=True)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_between_words_parse(document: str) -> None:
    """Many name the setting that the sentence is about, and leave away what the verb needs besides."""
    for line in mentions((ROOT / document).read_text()):
        verb = verb_of(shlex.split(line))
        assert verb is not None, line
        check(*verb, complete=False)


def check(verb: tuple[str, ...], settings: list[str], complete: bool) -> None:
    """Names of settings always; values, too, unless one that the verb needs is left away or to be filled in."""
    module, name, positional = VERBS[verb]
    config: Any = getattr(importlib.import_module(f"volar.{module}"), name)
    folder = ROOT / "vla" / "configs" if name == "TrainConfig" else None
    to_fill_in = [word for word in settings if FILL_IN.match(word)]
    for word in to_fill_in:
        assert "=" not in word or word.partition("=")[0] in leaf_hints(config), word
    given = [word for word in settings if word not in to_fill_in]
    try:
        parse(config, given, config_dir=folder, positional=positional)
    except UsageError as error:
        if not str(error).startswith("missing ") or (complete and not to_fill_in):
            raise


def test_the_readme_s_commands_do_not_get_in_each_other_s_way() -> None:
    outputs = [word for _, _, settings in known("README.md") for word in settings if word.startswith("output=")]
    assert len(outputs) > 10
    assert sorted(outputs) == sorted(set(outputs))


def test_the_contract_to_copy_can_be_read() -> None:
    blocks = re.findall(r"^```json\n(.*?)^```$", (ROOT / "docs/lerobot.md").read_text(), re.DOTALL | re.MULTILINE)
    (shown,) = [block for block in blocks if "state_names" in block]
    assert PolicyContract.from_json(shown).robot == "my_arm"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert ((ROOT / document).parent / target).exists(), target
