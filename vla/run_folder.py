"""The folder of a long run: whose it is, and whether a run may begin in it or go on."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from volar.robots.errors import VolarError
from volar.robots.output_folder import contents


def check_output(
    output: Path,
    record: str,
    kind: str,
    settings: Mapping[str, str],
    resume: bool,
    overwrite: bool,
    *,
    defaults: Mapping[str, object] = MappingProxyType({}),
) -> bool:
    """Whether a run goes on here; else one begins, also with `resume` where nothing is there.

    `record`: name of the file with the `settings` of the run in the folder; `kind`: what such a run is called.
    `defaults`: of settings that are None where they are left away, what runs of before wrote there. Raises `VolarError`
    for an output that holds something else, or another run than the one to resume.
    """
    if output.exists() and not output.is_dir():
        raise VolarError(f"output {output} is a file; give a folder")
    path = output / record
    if not path.is_file():
        if contents(output):  # overwrite=true or not: a wrong path must not cost a folder
            raise VolarError(f"output {output} holds something else than a {kind}; give another")
        return False
    if not resume:
        if not overwrite:
            raise VolarError(f"output {output} holds a {kind}; resume=true continues it, overwrite=true replaces it")
        return False
    # A setting that came later was left away.
    try:
        before = dict.fromkeys(settings, str(None)) | json.loads(path.read_text())
    except ValueError as error:
        raise VolarError(f"{path} is broken ({error}); start again with overwrite=true") from error
    changed = [
        f"{key}: was {before[key]}, is {value}"
        for key, value in settings.items()
        if before[key] not in (value, str(defaults.get(key)) if value == str(None) else value)
    ]
    if changed:
        raise VolarError(f"{output} was trained with other settings ({'; '.join(changed)})")
    return True
