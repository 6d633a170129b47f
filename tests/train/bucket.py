# SPDX-License-Identifier: Apache-2.0
"""A Cloud Storage that lives in this process: the part of its JSON API that gcsfs and TensorStore use."""

import base64
import contextlib
import hashlib
import http.server
import itertools
import json
import re
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

_PARTS = "/upload/parts"
NOW = "2026-01-01T00:00:00.000000Z"


class Bucket(http.server.ThreadingHTTPServer):
    """Objects by name, of whatever bucket: name -> (generation, content)."""

    def __init__(self):
        super().__init__(("localhost", 0), _Handler)
        self.objects: dict[str, tuple[int, bytes]] = {}
        self.uploads: dict[str, bytearray] = {}
        self.lock, self.count = threading.Lock(), itertools.count(1)

    def handle_error(self, request, client_address):
        """Clients may leave before an answer is whole."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://localhost:{self.server_port}"

    def put(self, name: str, content: bytes, wanted: str | None = None) -> dict | None:
        """Writes an object; None if its generation is not the `wanted` one ("0": no such object)."""
        with self.lock:
            if wanted is not None and int(wanted) != self.objects.get(name, (0, b""))[0]:
                return None
            self.objects[name] = (next(self.count), bytes(content))
            return self.describe(name)

    def describe(self, name: str) -> dict[str, Any]:
        generation, content = self.objects[name]
        return {
            "kind": "storage#object",
            "bucket": "runs",
            "name": name,
            "generation": str(generation),
            "metageneration": "1",
            "size": str(len(content)),
            "updated": NOW,
            "timeCreated": NOW,
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
        }

    def list(self, query: dict[str, str]) -> dict[str, Any]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, folders = [], set()
        for name in sorted(self.objects):
            late = query.get("endOffset") and name >= query["endOffset"]
            if not name.startswith(prefix) or name < query.get("startOffset", "") or late:
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                items.append(self.describe(name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Bucket
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        url, query = self._parse()
        name = re.fullmatch(r"(?:/download)?/storage/v1/b/[^/]+/o/(.+)", url)
        if not name:
            return self._answer(200, self.server.list(query) if url.endswith("/o") else {"name": "runs"})
        name = urllib.parse.unquote(name[1])
        with self.server.lock:
            generation, content = self.server.objects.get(name, (0, b""))
            found = self.server.describe(name) if generation else None
        if not found:
            return self._answer(404, {"error": {"code": 404, "message": "no such object"}})
        if query.get("ifGenerationNotMatch") == str(generation):
            return self._answer(304, b"")
        if query.get("alt") != "media":
            return self._answer(200, found)
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers = {"x-goog-generation": str(generation)}
        if not part:
            return self._answer(200, content, headers)
        first, last = int(part[1]), min(int(part[2] or len(content) - 1), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._answer(206, content[first : last + 1], headers)

    def do_POST(self):
        url, query = self._parse()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if url.startswith("/batch"):
            return self._batch(body)
        if url == _PARTS:
            return self._part(query["name"], body)
        if copied := re.fullmatch(r".*/o/(.+?)/(?:rewriteTo|copyTo)/b/[^/]+/o/(.+)", url):
            source, target = map(urllib.parse.unquote, copied.groups())
            made = self.server.put(target, self.server.objects[source][1])
            return self._answer(200, {"done": True, "resource": made})
        kind, name = query["uploadType"], query.get("name", "")
        if kind == "resumable":
            name = name or json.loads(body)["name"]
            self.server.uploads[name] = bytearray()
            where = f"{self.server.url}{_PARTS}?name={urllib.parse.quote(name, safe='')}"
            return self._answer(200, {}, {"Location": where})
        if kind == "multipart":
            name = json.loads(body.split(b"\n\n", 2)[1].partition(b"\n--")[0])["name"]
            body = body.split(b"\n\n", 2)[2].rpartition(b"\n--")[0]
        made = self.server.put(name, body, query.get("ifGenerationMatch"))
        self._answer(200 if made else 412, made or {})

    def _part(self, name: str, body: bytes) -> None:
        """The next part of a large upload; the header says `bytes 0-262143/*`, with a total at the end."""
        upload = self.server.uploads[name]
        upload += body
        if self.headers["Content-Range"].endswith("/*"):
            return self._answer(308, b"", {"Range": f"bytes=0-{len(upload) - 1}"})
        self._answer(200, self.server.put(name, upload) or {})

    def do_DELETE(self):
        url, _ = self._parse()
        found = self.server.objects.pop(urllib.parse.unquote(url.rpartition("/o/")[2]), None)
        self._answer(204 if found else 404, b"")

    def _batch(self, body: bytes) -> None:
        mark, answer = "batch_answer", b""
        for name in re.findall(rb"DELETE /storage/v1/b/[^/]+/o/([^ ?]+)", body):
            found = self.server.objects.pop(urllib.parse.unquote(name.decode()), None)
            code = b"204 No Content" if found else b"404 Not Found"
            answer += f"--{mark}\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 ".encode() + code
            answer += b"\r\n\r\n{}\r\n"
        answer += f"--{mark}--".encode()
        self._answer(200, answer, {"Content-Type": f"multipart/mixed; boundary={mark}"})

    def _parse(self) -> tuple[str, dict[str, str]]:
        url = urllib.parse.urlsplit(self.path)
        return url.path, dict(urllib.parse.parse_qsl(url.query))

    def _answer(self, code: int, body: bytes | dict, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        if code not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if code not in (204, 304):
            self.wfile.write(content)


@contextlib.contextmanager
def bucket() -> Iterator[Bucket]:
    """Serves for the time of a `with` block."""
    with Bucket() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def environment(server: Bucket) -> dict[str, str]:
    """Variables with which gs:// means this server; for a new process, as both libraries read them once."""
    return {
        "STORAGE_EMULATOR_HOST": server.url,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks for the kind of a bucket over gRPC
        "FSSPEC_GCS": json.dumps({"token": "anon"}),
        "TENSORSTORE_GCS_HTTP_URL": server.url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
    }
