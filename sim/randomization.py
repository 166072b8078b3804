"""What varies from episode to episode beyond the layout, declared as terms and checked before anything runs.

A term says when (`mode`), what (`field`, see `randomization_axes.AXES`), by how much (`distribution`), how the drawn
value acts on the scene's own (`operation`) and on which elements (`scope`). Presets are files in
`configs/randomization`; a file of your own has the same form:

    include: [dynamics]
    terms:
      - {field: friction, scope: object/*, operation: scale, distribution: {log_uniform: [0.7, 1.4]}}
"""

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from volar.robots.errors import Unknown, UsageError
from volar.sim.distributions import Choice, Distribution, Value, parse_distribution
from volar.sim.randomization_axes import AXES, Axis, Mode, Operation

PRESETS = ("none", "visual", "dynamics", "full", "unseen")
INTERVAL_DRAWS = 32  # values of an interval term, drawn at reset; a longer episode meets them again in order
_FOLDER = Path(__file__).parent / "configs" / "randomization"
_KEYS = ("mode", "field", "distribution", "operation", "scope", "shared", "interval_s")

Draws = Mapping[str, Any]


@dataclass(frozen=True)
class Term:
    """One thing that varies.

    `mode`: `startup`, once for a world; `reset`, for each episode; `interval`, every `interval_s` [s] in it.
    `operation`: the drawn value is `set`, is added to (`add`) or multiplies (`scale`) what the scene has.
    `scope`: patterns (`object/*`, `robot/*`, `table`) of the elements it acts on; each has a draw of its own
    unless `shared`. Raises `Unknown` or `UsageError` where the field does not allow it.
    """

    field: str
    distribution: Distribution
    mode: Mode = "reset"
    operation: Operation = "set"
    scope: tuple[str, ...] = ("*",)
    shared: bool = False
    interval_s: float = 0.0

    def __post_init__(self) -> None:
        if self.field not in AXES:
            raise Unknown("field", self.field, AXES)
        for kind, value, choices, allowed in (
            ("mode", self.mode, get_args(Mode), self.axis.modes),
            ("operation", self.operation, get_args(Operation), self.axis.operations),
        ):
            if value not in choices:
                raise Unknown(kind, str(value), choices)
            if value not in allowed:
                raise UsageError(f"{self.field}: {kind} {value} makes no sense here (choices: {', '.join(allowed)})")
        if (self.mode == "interval") != (self.interval_s > 0):
            raise UsageError(f"{self.field}: interval_s is for mode interval, which needs one; is {self.interval_s}")
        if not self.scope or (self.axis.elements is None and self.scope != ("*",)):
            raise UsageError(f"{self.field}: scope {list(self.scope)} names nothing; there is only one of it")
        self._check_values()

    @property
    def axis(self) -> Axis:
        return AXES[self.field]

    @property
    def key(self) -> str:
        """Its name among the draws: the field, with its scope and mode where these are not the usual ones."""
        scope = "" if self.scope == ("*",) else "@" + ",".join(self.scope)
        return self.field + scope + {"reset": "", "startup": "", "interval": "#interval"}[self.mode]

    def draw(self, seed: int, elements: Iterable[str]) -> Any:
        """The values of one seed: {element: value}, or one value where all share it; for mode interval a list.

        Each term has its own generator, so that another term changes none of its draws.
        """
        rng = np.random.default_rng([seed, zlib.crc32(b"randomization"), zlib.crc32(self.key.encode())])
        names, size = list(elements), self.axis.size
        alone = self.shared or self.axis.elements is None
        rows: list[Any] = []
        for _ in range(INTERVAL_DRAWS if self.mode == "interval" else 1):
            values: list[Value] = self.distribution.sample(rng, 1 if alone else len(names), size)
            rows.append(values[0] if alone else dict(zip(names, values, strict=True)))
        return rows if self.mode == "interval" else rows[0]

    def _check_values(self) -> None:
        axis, support = self.axis, self.distribution.support
        if axis.choices:
            values = self.distribution.values if isinstance(self.distribution, Choice) else ("",)
            for value in values:
                if value not in axis.choices:
                    raise Unknown(self.field, str(value), axis.choices)
            return
        if (support is None) != axis.boolean:
            raise UsageError(f"{self.field}: {type(self.distribution).__name__} does not fit {axis.doc}")
        if support is None:
            return
        for bound in support:
            if np.size(bound) not in (1, axis.size):
                raise UsageError(f"{self.field}: {bound} must have one or {axis.size} components")
        low, high = np.min(support[0]), np.max(support[1])
        if self.operation == "set" and not (axis.low <= low and high <= axis.high):
            raise UsageError(f"{self.field}: [{low}, {high}] is outside [{axis.low}, {axis.high}] {axis.unit}")
        if self.operation == "scale" and low <= 0:
            raise UsageError(f"{self.field}: a factor must be positive, {low} is not")


@dataclass(frozen=True)
class Randomization:
    """A named set of terms. Raises `UsageError` when two of them are the same thing."""

    name: str
    terms: tuple[Term, ...] = ()

    def __post_init__(self) -> None:
        keys = [term.key for term in self.terms]
        for key in keys:
            if keys.count(key) > 1:
                raise UsageError(f"randomization {self.name}: {key} is there {keys.count(key)} times")

    @property
    def needs(self) -> frozenset[str]:
        """What the scene must have beyond its own: see `scene_variation.Feature`."""
        return frozenset(term.axis.needs for term in self.terms if term.axis.needs)

    @staticmethod
    def of(value: "str | Path | Randomization") -> "Randomization":
        """A preset's name, a file's path, or itself. Raises `Unknown`, `UsageError`."""
        return value if isinstance(value, Randomization) else _load(_file(value))


def fingerprint(value: str) -> str:
    """What tells it from others in a record of settings: a preset's name, or a file's path and content."""
    path = _file(value)
    return value if value in PRESETS else f"{value} {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


def _file(value: "str | Path") -> Path:
    text = str(value)
    if text in PRESETS:
        return _FOLDER / f"{text}.yaml"
    if not text.endswith((".yaml", ".yml")):
        raise Unknown("randomization", text, (*PRESETS, "PATH.yaml"))
    if not Path(text).is_file():
        raise UsageError(f"randomization {text}: no such file (choices: {', '.join(PRESETS)}, or a file that exists)")
    return Path(text)


def _load(path: Path) -> Randomization:
    import yaml

    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"randomization {path}: {' '.join(str(error).split())}") from error
    if not isinstance(raw, Mapping) or not {"include", "terms"} >= raw.keys():
        raise UsageError(f"randomization {path}: must hold `terms:` and may hold `include:`, nothing else")
    included: list[Term] = []
    for name in raw.get("include") or []:
        if name not in PRESETS:
            raise Unknown("preset to include", str(name), PRESETS)
        included += _load(_FOLDER / f"{name}.yaml").terms
    own = [_term(path, item) for item in raw.get("terms") or []]
    replaced = {term.key for term in own}
    terms = (*(term for term in included if term.key not in replaced), *own)
    return Randomization(path.stem if path.parent == _FOLDER else str(path), terms)


def _term(path: Path, raw: Any) -> Term:
    if not isinstance(raw, Mapping) or not {"field", "distribution"} <= raw.keys():
        raise UsageError(f"randomization {path}: a term needs a field and a distribution: {raw!r}")
    for key in raw:
        if key not in _KEYS:
            raise Unknown("key of a term", str(key), _KEYS)
    scope = raw.get("scope", "*")
    for key, kind, value in (
        (
            "scope",
            "a pattern or a list of them",
            all(isinstance(s, str) for s in scope) if isinstance(scope, list) else isinstance(scope, str),
        ),
        ("interval_s", "a number", isinstance(raw.get("interval_s", 0.0), int | float)),
        ("shared", "true or false", isinstance(raw.get("shared", False), bool)),
        ("field", "a name", isinstance(raw["field"], str)),
    ):
        if not value:
            raise UsageError(f"randomization {path}: {key} must be {kind}, is {raw[key]!r}")
    settings = {key: raw[key] for key in ("field", "mode", "operation", "shared", "interval_s") if key in raw}
    patterns = (scope,) if isinstance(scope, str) else tuple(scope)
    try:
        return Term(distribution=parse_distribution(raw["distribution"]), scope=patterns, **settings)
    except UsageError as error:
        raise UsageError(f"randomization {path}: {error}") from error
