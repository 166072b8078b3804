"""What a report says of how it was made."""

from collections.abc import Mapping
from typing import Any

from volar.sim.report_page import card, e, section

Results = Mapping[str, Any]


def made_section(made: Results, *, more: Mapping[str, str] | None = None) -> str:
    """The command, the date and the machine, with `more` facts between them; nothing where none are known."""
    if not made:
        return ""
    facts = {"command": made["command"], "date": made["date"], **(more or {}), "machine": machine_line(made["machine"])}
    return section("How it was made", facts_card(facts))


def facts_card(facts: Mapping[str, str]) -> str:
    """Names and what they are, verbatim."""
    lines = "".join(
        f"<tr><td>{e(name)}</td><td class=v><code>{e(value)}</code></td></tr>" for name, value in facts.items()
    )
    return card(f"<table>{lines}</table>")


def machine_line(machine: Results) -> str:
    """`AMD EPYC, 16 CPUs, no GPU`."""
    cpus = machine["cpus"]
    return f"{machine['cpu']}, {cpus} CPU{'s' if cpus != 1 else ''}, {machine['gpu'] or 'no GPU'}"


def time_line(taken: Results) -> str:
    """What `volar.sim.episode_times.time_taken` found, in words."""
    timed, episodes = taken["timed"], taken["episodes"]
    of = (
        f"{timed} of {episodes} episodes; of the others it is not known" if timed < episodes else f"{episodes} episodes"
    )
    return f"{duration(taken['seconds'])} by the wall clock for {of}" if timed else "not known"


def duration(seconds: float) -> str:
    """`9.3 s`, `12 min 3 s`, `2 h 5 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
