"""Partners that take every message, but refuse for good the topics they are told to."""

import http.server
import threading


class Partners:
    """An HTTP server of its own thread. `refuse`: topics that are answered 422, and so end as dead letters."""

    def __init__(self) -> None:
        self.refuse: set[str] = set()
        self.taken: list[tuple[str, bytes]] = []  # topic, body
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                topic = self.path.rsplit("/", 1)[-1]
                status, answer = (422, b'{"error":"no such shelf"}') if topic in outer.refuse else (200, b"{}")
                if status == 200:
                    outer.taken.append((topic, body))
                self.send_response(status)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                """Nothing: the tests look at what was taken."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
