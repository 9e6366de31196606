"""Pushing, with huggingface_hub's two calls replaced: no test reaches a network."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled

from cctuning.serving.exporting import export
from tests.cli.world import done, refused
from tests.serving.world import make


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make(tmp_path_factory.mktemp("run"), tune="lora")


@pytest.fixture
def hub(monkeypatch):
    """The calls that reach the hub, in order."""
    calls = []

    def create_repo(self, repo_id, **options):
        calls.append(("create_repo", repo_id, options))
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, **options):
        calls.append(("upload_folder", repo_id, {path.name for path in Path(folder_path).iterdir()}))

    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return calls


@pytest.mark.parametrize("private", [True, False])
def test_the_whole_export_is_pushed(private, run, hub, tmp_path, capsys):
    flags = ["--private"] if private else []
    done("export", run, "--format", "lora", "--output", tmp_path / "out", "--push_to_hub", "me/sw", *flags)
    assert "pushed: https://huggingface.co/me/sw" in capsys.readouterr().out
    assert [call[:2] for call in hub] == [("create_repo", "me/sw"), ("upload_folder", "me/sw")]
    assert hub[0][2] == {"private": private, "exist_ok": True}
    assert hub[1][2] == {path.name for path in (tmp_path / "out").iterdir()} >= {"README.md", "adapter_config.json"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'name = "me/sw"' in card and "# sw\n" in card


def test_a_push_that_fails_is_one_line_and_the_export_stays(run, hub, tmp_path, capsys, monkeypatch):
    def fail(self, **options):
        raise OfflineModeIsEnabled("Cannot reach the hub: offline mode is enabled.\nMore.")

    monkeypatch.setattr(HfApi, "upload_folder", fail)
    out = tmp_path / "out"
    said = refused(capsys, "export", run, "--format", "merged", "--output", out, "--push_to_hub", "me/sw")
    assert re.search(
        rf"offline mode is enabled\. The export in {out} is complete; upload it with `hf upload me/sw", said
    )
    export(str(run), "merged", tmp_path / "again")
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "again").iterdir()}


def test_what_cannot_be_pushed_is_refused_before_the_work(run, hub, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    said = refused(capsys, "export", run, "--format", "merged", "--output", out, "--push_to_hub", "a/b/c")
    assert "--push_to_hub 'a/b/c'" in said
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("cctuning.serving.exporting.get_token", lambda: None)
    said = refused(capsys, "export", run, "--format", "merged", "--output", out, "--push_to_hub", "me/sw")
    assert "not logged in to the hub; run `hf auth login`, or set HF_TOKEN" in said
    assert not list(tmp_path.iterdir()) and not hub
