"""A kill while a folder is replaced costs neither the old one nor the new one's place."""

import os
from pathlib import Path

import pytest

from volar.rl.replaced_folder import put_back, replace_folder


def folder(path: Path, text: str) -> Path:
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "weights").write_text(text)
    return path


@pytest.mark.parametrize("killed_at", [1, 2, None])
def test_the_old_or_the_new_is_there(killed_at: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best, rename, calls = folder(tmp_path / "best", "old"), os.rename, []

    def killed(*paths: str) -> None:
        calls.append(paths)
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        rename(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        try:
            replace_folder(best, folder(tmp_path / ".best", "new"))
        except KeyboardInterrupt:
            put = {path.name for path in tmp_path.iterdir()}
            assert put & {"best", "best.old"}
    put_back(best)
    assert (best / "inner" / "weights").read_text() == ("old" if killed_at else "new")
    assert not (tmp_path / "best.old").exists()


def test_the_first_needs_no_other(tmp_path: Path) -> None:
    put_back(tmp_path / "best")
    replace_folder(tmp_path / "best", folder(tmp_path / ".best", "new"))
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
