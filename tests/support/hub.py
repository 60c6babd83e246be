"""A hub of one's own: a folder served on this machine's loopback, with the headers that
huggingface_hub asks for."""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c" * 40


@contextmanager
def serving(folder: Path):
    """Serve folder/OWNER/NAME/... as the repository OWNER/NAME -> (address, list of requests)."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            asked.append((self.command, self.path))
            repository, _, name = self.path.lstrip("/").partition("/resolve/main/")
            file = folder / repository / name
            if self.path == "/":
                return self.reply(200, {}, b"")
            if not (folder / repository).is_dir():
                return self.reply(
                    401,
                    {"X-Error-Code": "RepoNotFound", "X-Error-Message": "no such repository"},
                    b"",
                )
            if not file.is_file():
                return self.reply(
                    404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
                )
            data = file.read_bytes()
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            self.reply(200, {"ETag": etag, "X-Repo-Commit": COMMIT}, data, body)

        def reply(self, code, headers, data, body=True):
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
