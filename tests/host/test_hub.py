"""Where models are found: folders, `$PADLESS_MODELS`, and a hub that runs here and notes everything it is asked for."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest

from padless.engine.errors import ModelNotFoundError
from padless.engine.hub import resolve_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "vocab.txt": b"[PAD]\n",
    "spiece.model": b"\x0a\x0e",
    "model.safetensors": b"weights",
    "1_Pooling/config.json": b"{}",
    "modeling_evil.py": b"raise SystemExit('this must never run')",
    "pytorch_model.bin": b"cos\nsystem\n",
    "training_args.bin": b"cos\nsystem\n",
    "onnx/config.json": b"{}",
    "openvino/openvino_model.bin": b"model",
    "README.md": b"# Words",
}
WANTED = ["1_Pooling/config.json", "config.json", "model.safetensors", "spiece.model", "vocab.txt"]

RESOLVE = """
import json, sys
from padless.engine.errors import ModelNotFoundError
from padless.engine.hub import resolve_folder

answers = []
for model_id, options in json.loads(sys.argv[1]):
    try:
        folder = resolve_folder(model_id, **options)
        found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        answers.append([str(folder), found])
    except ModelNotFoundError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


class Hub(ThreadingHTTPServer):
    """The few addresses of the hub that a download needs, for one model, `org/name`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[str] = []


class Answer(BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        cast(Hub, self.server).asked.append(path)
        name = path.removeprefix(f"/org/name/resolve/{COMMIT}/")
        if path in ("/api/models/org/name", "/api/models/org/name/revision/main", "/api/models/org/name/revision/v2"):
            siblings = [{"rfilename": name} for name in FILES]
            content = json.dumps({"id": "org/name", "sha": COMMIT, "siblings": siblings}).encode()
        elif path == f"/api/models/org/name/tree/{COMMIT}":
            tree = [{"type": "file", "path": name, "size": len(held), "oid": "0" * 40} for name, held in FILES.items()]
            content = json.dumps(tree).encode()
        elif name in FILES:
            content = FILES[name]
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{abs(hash(content)):x}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def resolve(hub: Hub, home: Path, *questions: tuple[str, Mapping[str, object]], **variables: str) -> list[Any]:
    """What `resolve_folder` answers in a process whose hub this is; huggingface_hub reads its settings at import."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PADLESS_"))},
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(home),
        "no_proxy": "127.0.0.1",
        **variables,
    }
    command = [sys.executable, "-c", RESOLVE, json.dumps(questions)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_only_data_is_fetched_and_then_found_without_a_network(hub: Hub, tmp_path: Path) -> None:
    fetched, again, offline, other = resolve(
        hub,
        tmp_path,
        ("org/name", {}),
        ("org/name", {"revision": "v2"}),
        ("org/name", {"local_files_only": True}),
        ("org/other", {}),
    )
    assert fetched[1] == again[1] == offline[1] == WANTED
    assert Path(fetched[0]).is_relative_to(tmp_path)
    assert "org/other" in other
    assert "the Hugging Face hub (RepositoryNotFoundError" in other
    assert not [path for path in hub.asked if path.endswith((".py", ".bin", ".md")) or "onnx" in path]
    assert [path for path in hub.asked if path.endswith("model.safetensors")]


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_offline_asks_nothing(hub: Hub, tmp_path: Path, how: str) -> None:
    options = {"local_files_only": True} if how == "argument" else {}
    (answer,) = resolve(hub, tmp_path, ("org/name", options), **({} if options else {"HF_HUB_OFFLINE": "1"}))
    assert answer.startswith("model 'org/name': no such folder; looked at ")
    assert "the Hugging Face hub (LocalEntryNotFoundError" in answer
    assert len(answer.splitlines()) == 1
    assert hub.asked == []


def test_the_models_folder_comes_before_the_hub(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "models" / "org" / "name").mkdir(parents=True)
    (answer,) = resolve(hub, tmp_path, ("org/name", {}), PADLESS_MODELS=str(tmp_path / "models"))
    assert answer == [str(tmp_path / "models" / "org" / "name"), []]
    assert hub.asked == []


@pytest.mark.parametrize("name", ["../outside", "org/../../outside", "/abs/olute", "a/b/c", "", "a\0b", "http://x/y"])
def test_what_is_no_id_is_not_asked_for(hub: Hub, tmp_path: Path, name: str) -> None:
    (answer,) = resolve(hub, tmp_path, (name, {}))
    assert isinstance(answer, str)
    assert "hub" not in answer
    assert hub.asked == []


def refusal(name: str, **options: Any) -> str:
    with pytest.raises(ModelNotFoundError) as error:
        resolve_folder(name, **options)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize("revision", ["../main", "", "a\nb", "-x", "refs/../../x", "a" * 300])
def test_a_revision_is_a_name(tmp_path: Path, revision: str) -> None:
    assert "revision: expected a branch, tag or commit" in refusal("org/name", revision=revision)


def test_a_missing_model_says_all_that_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In these tests HF_HUB_OFFLINE is set, so the hub is its cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PADLESS_MODELS", "/no/such/place")
    message = refusal("org/name")
    looked = f"{tmp_path}/org/name, /no/such/place/org/name, the Hugging Face hub (LocalEntryNotFoundError: "
    assert message.startswith(f"model 'org/name': no such folder; looked at {looked}")
    monkeypatch.delenv("PADLESS_MODELS")
    assert "PADLESS_MODELS is not set" in refusal("org/name")


def test_without_the_package_the_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "needs the package huggingface_hub, which is not installed" in refusal("org/name")


def test_a_revision_of_a_folder_that_is_here_is_mentioned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "models" / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PADLESS_MODELS", str(tmp_path / "models"))
    with caplog.at_level(logging.INFO):
        assert resolve_folder("org/name", revision="v2") == tmp_path / "models" / "org" / "name"
    assert "whatever its revision; 'v2' was asked for" in caplog.text
