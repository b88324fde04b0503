"""Fetching from a model hub: which files are chosen, what errors say, and the download itself from a local server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nextscale.export.fetch import choose
from nextscale.plan.errors import InputError
from nextscale.plan.recipes import recipe

pytest.importorskip("huggingface_hub")

D16 = recipe("var-d16")
PUBLISHED = ["README.md", "vae_ch160v4096z32.pth", *(f"var_d{d}.pth" for d in (16, 20, 24, 30, 36))]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"var_d16.safetensors": b"transformer", "vae_ch160v4096z32.pth": b"tokenizer", "config.json": b"{}"}


@pytest.mark.parametrize("depth", [16, 20, 24, 30, 36])
def test_the_published_names(depth: int) -> None:
    chosen = recipe(f"var-d{depth}-fastvar")
    names = choose("FoundationVision/var", PUBLISHED, chosen.model, chosen.tokenizer).files
    assert names == [f"var_d{depth}.pth", "vae_ch160v4096z32.pth"]


def test_safetensors_and_folders_and_a_config() -> None:
    files = [*PUBLISHED, "fine/var_d16.safetensors", "fine/config.json", "config.json"]
    names = choose("me/mine", files, D16.model, D16.tokenizer).files
    assert names == ["fine/var_d16.safetensors", "vae_ch160v4096z32.pth", "fine/config.json"]


INFINITY = [
    *("infinity_2b_reg.pth", "infinity_vae_d32reg.pth", "infinity_vae_d32.pth", "infinity_vae_d56_f8_14_patchify.pth"),
    *(f"infinity_8b_weights/model-0000{i}-of-00002.safetensors" for i in (1, 2)),
    *("infinity_8b_weights/model.safetensors.index.json", "infinity_8b_weights/config.json", "README.md"),
]
HART = [
    *("llm/config.json", "llm/ema_model.bin", "llm/model.safetensors", "README.md"),
    *("tokenizer/config.json", "tokenizer/pytorch_model.bin"),
]


@pytest.mark.parametrize(
    ("name", "there", "model", "vae", "files"),
    [
        (
            "infinity-8b-0.25m",
            [name.replace("8b_weights", "8b_512x512_weights") for name in INFINITY],
            "infinity_8b_512x512_weights",
            INFINITY[3],
            [n.replace("8b_weights", "8b_512x512_weights") for n in (INFINITY[7], *INFINITY[4:7], INFINITY[3])],
        ),
        ("infinity-2b-1m", INFINITY, INFINITY[0], INFINITY[1], INFINITY[:2]),
        ("infinity-8b-1m", INFINITY, "infinity_8b_weights", INFINITY[3], [INFINITY[7], *INFINITY[4:7], INFINITY[3]]),
        ("hart-1024", HART, "llm", "tokenizer", [*HART[:2], *HART[4:]]),
    ],
)
def test_folders_of_shards_and_averaged_weights(
    name: str, there: list[str], model: str, vae: str, files: list[str]
) -> None:
    chosen = recipe(name)
    found = choose("me/mine", there, chosen.model, chosen.tokenizer, chosen.schedule)
    assert (found.model, found.vae, found.files) == (model, vae, files)
    with pytest.raises(InputError, match="me/mine has no "):
        choose("me/mine", ["README.md"], chosen.model, chosen.tokenizer)


def test_a_file_that_is_missing_or_there_twice() -> None:
    with pytest.raises(InputError, match=r"me/mine has no var_d16.safetensors or var_d16.pth, .* \(it has other.pth\)"):
        choose("me/mine", ["other.pth", "README.md"], D16.model, D16.tokenizer)
    with pytest.raises(InputError, match=r"several files var_d16.pth \(a/var_d16.pth, b/var_d16.pth\)"):
        choose("me/mine", ["b/var_d16.pth", "a/var_d16.pth"], D16.model, D16.tokenizer)


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as its client asks for."""

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        if self.path.startswith("/api/models/me/mine"):
            known = self.path.endswith(("/mine", "/revision/main", COMMIT))
            content = json.dumps({"id": "me/mine", "sha": COMMIT, "siblings": [{"rfilename": f} for f in FILES]})
            self.reply(
                200 if known else 404, content.encode(), body, {} if known else {"X-Error-Code": "RevisionNotFound"}
            )
        elif self.path.startswith(f"/me/mine/resolve/{COMMIT}/"):
            content = FILES[self.path.rsplit("/", 1)[1]]
            self.reply(200, content, body, {"ETag": f'"{len(content)}"', "X-Repo-Commit": COMMIT})
        else:
            self.reply(404, b"", body, {"X-Error-Code": "RepoNotFound"})

    def reply(self, status: int, content: bytes, body: bool, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def fetched(folder: Path, repo: str, revision: str | None = None, **environment: str) -> str:
    """What a fresh interpreter prints: the client reads its environment when it is imported."""
    code = """
import sys
from pathlib import Path
from nextscale.export.fetch import fetch
from nextscale.plan.errors import NextscaleError
from nextscale.plan.recipes import recipe
r = recipe("var-d16")
try:
    print(fetch(sys.argv[1], sys.argv[2] or None, r.model, r.tokenizer, Path(sys.argv[3])).revision)
except NextscaleError as error:
    print(error.exit_status, error)
"""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    run = subprocess.run(
        [sys.executable, "-c", code, repo, revision or "", str(folder)],
        env={**clean, "HF_HOME": str(folder.parent / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.strip()


def test_files_are_plain_ones_in_the_folder_and_the_commit_is_told(endpoint: str, tmp_path: Path) -> None:
    assert fetched(tmp_path / "files", "me/mine", HF_ENDPOINT=endpoint) == COMMIT
    for name, content in FILES.items():
        path = tmp_path / "files" / name
        assert path.read_bytes() == content
        assert not path.is_symlink()


def test_what_does_not_exist_is_a_sentence(endpoint: str, tmp_path: Path) -> None:
    assert fetched(tmp_path / "f", "me/mine", "v9", HF_ENDPOINT=endpoint) == (
        "2 me/mine has no revision 'v9': give a branch, a tag or a commit of it"
    )
    assert fetched(tmp_path / "f", "you/yours", HF_ENDPOINT=endpoint).startswith("2 you/yours does not exist, or is")
    assert fetched(tmp_path / "f", "a/b/c").startswith("2 'a/b/c' names no repository: give it as OWNER/NAME")


def test_without_a_network_it_names_what_is_there(tmp_path: Path) -> None:
    offline = "3 FoundationVision/var cannot be fetched (HF_HUB_OFFLINE is set): go online, or give "
    assert fetched(tmp_path / "f", "FoundationVision/var", HF_HUB_OFFLINE="1").startswith(offline + "local files")
    nowhere = fetched(tmp_path / "f", "FoundationVision/var", HF_ENDPOINT="http://127.0.0.1:9")
    assert nowhere.startswith("3 FoundationVision/var cannot be fetched (")
    (tmp_path / "f").mkdir()
    for name in ("var_d16.pth", "vae_ch160v4096z32.pth"):
        (tmp_path / "f" / name).write_bytes(b"")
    assert f"{tmp_path / 'f' / 'var_d16.pth'} and " in fetched(tmp_path / "f", "a/b", HF_HUB_OFFLINE="1")
