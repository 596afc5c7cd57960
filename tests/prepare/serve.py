#!/usr/bin/env python3
"""A web server on loopback for a folder, with TLS when a certificate is named: what a site has.

    serve.py FOLDER LOG [CERTIFICATE KEY]

Prints its port, writes a line for each request to LOG, and ends when its standard input is closed. What is below /private/ is the
same folder for those who log in as `me` with the password `p4ssw0rd`.
"""

import base64
import functools
import http.server
import os
import ssl
import sys
import threading

LOGIN = "Basic " + base64.b64encode(b"me:p4ssw0rd").decode()


class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    log = None

    def do_GET(self):
        if self.path.startswith("/private/"):
            if self.headers["Authorization"] != LOGIN:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="site"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.path = self.path.removeprefix("/private")
        super().do_GET()

    def log_message(self, form, *arguments):
        self.log.write(f"{form % arguments}\n")
        self.log.flush()


def main():
    folder, log, *tls = sys.argv[1:]
    Handler.log = open(log, "w", encoding="utf-8")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    server.daemon_threads = True
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    os.read(0, 1)


main()
