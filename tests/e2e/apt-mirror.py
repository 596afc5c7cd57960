#!/usr/bin/env python3
"""A mirror of a package archive on loopback, with TLS by a CA of its own: what a site puts between its hosts and the world.

    apt-mirror.py UPSTREAM CERTIFICATE KEY LOG

Serves what UPSTREAM (the address of a Debian archive, without a slash at its end) has below /site/debian, prints its port, and
writes a line for each request to LOG. Ends when its standard input is closed.
"""

import http.server
import os
import ssl
import sys
import threading
import urllib.error
import urllib.request

PREFIX = "/site/debian/"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream, log = "", None

    def do_GET(self):
        self.log.write(f"{self.path}\n")
        self.log.flush()
        if not self.path.startswith(PREFIX):
            self.send_error(404)
            return
        request = urllib.request.Request(f"{self.upstream}/{self.path.removeprefix(PREFIX)}")
        for name in ("If-Modified-Since", "Range", "If-Range"):
            if self.headers[name]:
                request.add_header(name, self.headers[name])
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                body = answer.read()
                self.send_response(answer.status)
                for name in ("Content-Type", "Last-Modified", "Content-Range"):
                    if answer.headers[name]:
                        self.send_header(name, answer.headers[name])
        except urllib.error.HTTPError as refusal:
            body = b""
            self.send_response(refusal.code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def main():
    upstream, certificate, key, log = sys.argv[1:]
    Handler.upstream = upstream
    Handler.log = open(log, "w", encoding="utf-8")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    os.read(0, 1)


main()
