"""A stand-in for the Hugging Face hub: answers what huggingface_hub asks for when it downloads files of a model."""

import hashlib
import http.server
import json
import threading
import urllib.parse
from pathlib import Path
from typing import ClassVar

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves the folders `root/owner/name` as models, all at one commit, on a local port.

    Attributes:
      url: what HF_ENDPOINT has to be.
      downloads: names of the files that were downloaded.
    """

    def __init__(self, root: Path) -> None:
        self.downloads: list[str] = []
        hub = self

        class Handler(_Handler):
            folder, downloads = root, hub.downloads

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    folder: ClassVar[Path]
    downloads: ClassVar[list[str]]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *args: object) -> None:
        """Prints nothing."""

    def _answer(self, body: bool) -> None:
        parts = [urllib.parse.unquote(part) for part in urllib.parse.urlparse(self.path).path.strip("/").split("/")]
        api = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if api else parts
        folder = self.folder / owner / name
        if not folder.is_dir():
            return self._send(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
        if (folder / "gated").exists():
            return self._send(403, b"{}", body, {"X-Error-Code": "GatedRepo"})
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in ("main", "v1", COMMIT):
            return self._send(404, b"{}", body, {"X-Error-Code": "RevisionNotFound"})
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        if api and rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": file, "size": path.stat().st_size, "oid": _etag(path)}
                for file, path in files.items()
            ]
            return self._send(200, json.dumps(tree).encode(), body)
        if api:
            about = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
            return self._send(200, json.dumps(about).encode(), body)
        file = "/".join(rest[2:])
        if file not in files:
            return self._send(404, b"", body, {"X-Error-Code": "EntryNotFound"})
        if body:
            self.downloads.append(file)
        self._send(200, files[file].read_bytes(), body, {"ETag": f'"{_etag(files[file])}"', "X-Repo-Commit": COMMIT})

    def _send(self, status: int, content: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


def _etag(path: Path) -> str:
    """The hash of git's blob."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
