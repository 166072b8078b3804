"""The rest of the report: films, episodes that were lost, holds, and what the numbers depend on."""

import base64
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volar.robots.loop_state import LATCHING
from volar.sim.report_made import facts_card
from volar.sim.report_page import card, e, note, row, section, table
from volar.sim.report_success import label, randomized

if TYPE_CHECKING:
    from volar.robots.contract import PolicyContract

Results = Mapping[str, Any]
_LISTED = 40  # lost episodes; results.json has them all


def films_section(output: Path, videos: Iterable[Results]) -> str:
    """Failures first."""
    figures = []
    for video in sorted(videos, key=lambda video: bool(video["success"])):
        data = base64.b64encode((output / video["file"]).read_bytes()).decode()
        tag = '<span class="tag ok">success</span>' if video["success"] else '<span class="tag no">failure</span>'
        figures.append(
            f'<figure class="card"><video src="data:video/mp4;base64,{data}" controls autoplay muted loop playsinline>'
            f"</video><figcaption>{tag} · {e(video['task'])} · “{e(video['instruction'])}” · seed "
            f"{video['seed']}</figcaption></figure>"
        )
    grid = f'<div class="films">{"".join(figures)}</div>' if figures else ""
    return section("Films: front and wrist camera", grid)


def lost_section(output: Path, results: Results) -> str:
    """Episodes that broke, with the command that runs each again, and seeds that do not count."""
    episodes = [*results["episodes"], *(r for key in results["conditions"] for r in results[key]["episodes"])]
    broken = [episode for episode in episodes if episode["broken"]]
    # What was told changes no scene; what was drawn does.
    scenes = [*results["episodes"], *(r for key in randomized(results) for r in results[key]["episodes"])]
    invalid = [episode for episode in scenes if not episode["valid"]]
    parts = []
    if broken:
        heads = ("episode", "seed", "after", "reason")
        lines = [
            row(
                _name(r), str(r["seed"]), f"{r['steps']} steps", f"{e(r['reason'])}<br><code>{_again(output, r)}</code>"
            )
            for r in broken[:_LISTED]
        ]
        parts.append(card(table(heads, lines).replace("<td>", "<td class=v>"), _more(len(broken))))
        parts.append(note("Broke down: counted as failures. The command runs the episode again, bit for bit."))
    if invalid:
        lines = [row(_name(r), str(r["seed"]), e(r["reason"])) for r in invalid[:_LISTED]]
        parts.append(card(table(("episode", "seed", "why it does not count"), lines), _more(len(invalid))))
        parts.append(note("Invalid seeds: the scene is not what the task takes for granted, whatever the policy."))
    return section("Lost episodes", *parts)


def _name(episode: Results) -> str:
    told = "" if episode["condition"] == "standard" else f", {e(label(episode['condition']))}"
    return f"{e(episode['task'])} {episode['index']}{told}"


def _again(output: Path, episode: Results) -> str:
    return e(shlex.join(["volar-evaluate", "replay", str(output / episode["replay"])])) if episode["replay"] else ""


def _more(number: int) -> str:
    return note(f"and {number - _LISTED} more in results.json") if number > _LISTED else ""


def holds_section(episodes: Iterable[Results]) -> str:
    """By reason: control periods in which the arm braked or held, the episodes with such, and how many of them failed.

    A fault that latches ends an episode's motion, so that its failures are told from those of the policy's aim.
    """
    counts: dict[str, tuple[int, int, int]] = {}
    for episode in episodes:
        for reason, number in episode["holds"].items():
            periods, held, failed = counts.get(reason, (0, 0, 0))
            counts[reason] = (periods + number, held + 1, failed + (not episode["success"]))
    if not counts:
        return ""
    lines = [
        row(e(reason), *map(str, numbers), number=True)
        for reason, numbers in sorted(counts.items(), key=lambda item: -item[1][0])
    ]
    stopped = sorted(counts.keys() & LATCHING)
    said = f" {', '.join(map(e, stopped))}: the arm stopped, for the rest of the episode." if stopped else ""
    return section(
        "Holds",
        card(table(("reason", "control periods", "episodes", "of these failed"), lines)),
        note(f"When the arm braked or held instead of following the policy; a period is 10 ms.{said}"),
    )


def reproduction_section(results: Results, contract: "PolicyContract | None") -> str:
    """Contract, hashes and versions."""
    replay = results.get("replay", {"episodes": 0, "identical": 0})
    facts: dict[str, str] = {
        "policy SHA-256": results["policy_sha256"],
        "contract SHA-256": results["contract_sha256"],
        "filmed again": f"{replay['identical']} of {replay['episodes']} episodes gave the same bits",
        "versions": ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
    }
    if contract is not None:
        action = contract.action
        facts |= {
            "action": f"{action.kind} ({', '.join(action.names)}), {action.rate_hz:g} Hz, frame {action.frame}, "
            f"gripper {action.gripper}; chunks of {contract.chunk_length}, {contract.execute_steps} executed",
            "state": ", ".join(contract.state_names),
            "cameras": ", ".join(f"{c.name} {c.width}×{c.height}" for c in contract.cameras),
        }
    return section("Contract and versions", facts_card(facts))
