"""Ways to a hub that is not simply there: a private certificate authority, a proxy, a password. nginx stands before
the test hub; the hub's CDN is asked directly, as its redirects say."""
import contextlib
import http.server
import re
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import models
import pytest
from nexus import poll

REPO = "org/reached"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/sbin:/bin")

CONFIG = """
daemon off; worker_processes 1; user root; pid {work}/nginx.pid; error_log {work}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log {work}/access.log;
    client_body_temp_path {work}/body; proxy_temp_path {work}/proxy; fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;
    server {{
        listen 127.0.0.1:{port} {listen};
        {server}
        location / {{ proxy_pass http://127.0.0.1:{hub_port}; proxy_set_header Host 127.0.0.1:{hub_port};
                      proxy_set_header Authorization ""; }}
    }}
}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def front(work: Path, hub, listen: str = "", server: str = ""):
    """nginx before the hub; gives its port."""
    work.mkdir()
    port, hub_port = free_port(), hub.ports()[0]
    (work / "nginx.conf").write_text(CONFIG.format(work=work, port=port, hub_port=hub_port, listen=listen,
                                                   server=server))
    process = subprocess.Popen([NGINX, "-p", work, "-c", work / "nginx.conf"])
    try:
        poll(lambda: accepts(port), "nginx listens")
        yield port
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def layers(hub, repos):
    models.make_model(repos / REPO, layers=2)
    hub.add_root(str(repos))


def make_authority(directory: Path) -> tuple[Path, Path, Path]:
    """A certificate authority, and a certificate and key of localhost that it signed."""
    directory.mkdir()
    authority, key, request, certificate = (directory / name for name in ("ca.pem", "key.pem", "csr.pem", "cert.pem"))
    extensions = directory / "extensions"
    extensions.write_text("subjectAltName=DNS:localhost\n")

    def openssl(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=test authority",
            "-keyout", directory / "ca.key", "-out", authority)
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", key, "-out", request)
    openssl("x509", "-req", "-in", request, "-CA", authority, "-CAkey", directory / "ca.key", "-CAcreateserial",
            "-days", "30", "-extfile", extensions, "-out", certificate)
    return authority, certificate, key


def config_of(nexus) -> bytes:
    return (nexus / REPO / "config.json").read_bytes()


def test_a_private_authority_is_trusted_when_named_and_refused_when_not(hub, mount, tmp_path, layers, repos):
    authority, certificate, key = make_authority(tmp_path / "ca")
    server = f"ssl_certificate {certificate}; ssl_certificate_key {key};"
    with front(tmp_path / "tls", hub, "ssl http2", server) as port:
        endpoint = f"https://localhost:{port}"
        with mount(endpoint=endpoint, config={"ca_file": str(authority)}) as nexus:
            assert config_of(nexus) == (repos / REPO / "config.json").read_bytes()
            assert (nexus / REPO / "layer_1.pt").read_bytes()  # its bytes come from the CDN, over http
        with mount(endpoint=endpoint) as nexus:
            with pytest.raises(OSError):
                config_of(nexus)
            assert "certificate" in nexus.log_text()
        # Listings share a connection of HTTP/2; ranges of weights have one each, by HTTP/1.1.
        assert re.search(r'"GET /api/models/\S+ HTTP/2', (tmp_path / "tls/access.log").read_text())


def test_a_proxy_from_the_environment_is_used_and_no_proxy_is_kept_to(hub, mount, tmp_path, layers, repos):
    with front(tmp_path / "proxy", hub) as port:
        # No name server knows this host: only the proxy reaches it. The CDN is localhost.
        env = {"http_proxy": f"http://127.0.0.1:{port}", "no_proxy": "localhost"}
        with mount(endpoint="http://hub.invalid", env=env) as nexus:
            assert config_of(nexus) == (repos / REPO / "config.json").read_bytes()
            assert (nexus / REPO / "layer_1.pt").read_bytes()
        asked = (tmp_path / "proxy/access.log").read_text()
        assert "http://hub.invalid/api/models/" in asked
        assert "localhost" not in asked


class Tunnel(http.server.BaseHTTPRequestHandler):
    """A proxy that knows CONNECT alone."""
    asked: list[str] = []

    def do_CONNECT(self):
        self.asked.append(self.path)
        host, port = self.path.split(":")
        with socket.create_connection((host, int(port))) as target:
            self.send_response(200)
            self.end_headers()
            self.wfile.flush()
            pump = threading.Thread(target=self.copy, args=(target, self.connection), daemon=True)
            pump.start()
            self.copy(self.connection, target)
            pump.join()
        self.close_connection = True

    @staticmethod
    def copy(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the other side has gone

    def log_message(self, format, *args):
        """It keeps its own list."""


def test_https_goes_through_its_proxy_and_no_proxy_is_kept_to(hub, mount, tmp_path, layers, repos):
    authority, certificate, key = make_authority(tmp_path / "ca")
    server = f"ssl_certificate {certificate}; ssl_certificate_key {key};"
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Tunnel)
    proxy.daemon_threads, proxy.block_on_close = True, False
    threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
    try:
        with front(tmp_path / "tls", hub, "ssl", server) as port:
            way = {"HTTPS_PROXY": f"http://127.0.0.1:{proxy.server_address[1]}"}
            for env, asked in ((way | {"NO_PROXY": "localhost"}, set()), (way, {f"localhost:{port}"})):
                with mount(endpoint=f"https://localhost:{port}", config={"ca_file": str(authority)}, env=env) as nexus:
                    assert config_of(nexus) == (repos / REPO / "config.json").read_bytes()
                    assert (nexus / REPO / "layer_1.pt").read_bytes()  # its bytes come from the CDN, over http
                assert set(Tunnel.asked) == asked
    finally:
        proxy.shutdown()
        proxy.server_close()


def test_a_password_from_netrc_opens_the_door(hub, mount, tmp_path, layers, repos):
    passwords = tmp_path / "passwords"
    passwords.write_text("reader:{PLAIN}secret\n")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login reader password secret\n")
    netrc.chmod(0o600)
    server = f'auth_basic "models"; auth_basic_user_file {passwords};'
    with front(tmp_path / "auth", hub, server=server) as port:
        endpoint = f"http://127.0.0.1:{port}"
        with mount(endpoint=endpoint, config={"netrc_file": str(netrc)}) as nexus:
            assert config_of(nexus) == (repos / REPO / "config.json").read_bytes()
            assert "secret" not in nexus.log_text()
        with mount(endpoint=endpoint) as nexus:
            with pytest.raises(OSError):
                config_of(nexus)


def test_a_file_that_is_not_there_is_an_error_of_the_mount(hub, mount, tmp_path):
    with pytest.raises(RuntimeError, match="ca_file .*/missing.pem: No such file"):
        with mount(config={"ca_file": str(tmp_path / "missing.pem")}):
            pass
