"""The make commands as the tests need them: what a recipe says, and the server of `make lab` for a while."""

import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def make(*arguments):
    """What make prints, as if it had not itself been started by a `make test`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip


def build_site(folder):
    """The site, built in `folder` by the very command of `make site`. RuntimeError with whatever Sphinx had to say."""
    (line,) = (line for line in make("-n", "site", f"BUILD={folder}").splitlines() if " -m sphinx " in line)
    command = [sys.executable, *shlex.split(line)[1:]]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if (done.returncode, done.stdout, done.stderr) != (0, "", ""):
        raise RuntimeError(f"the site was not built without a word:\n{done.stdout}{done.stderr}")
    return Path(command[-1])


@contextmanager
def lab_server(folder, log_path, **environment):
    """The server of `make lab`, which serves `folder` on a port of its own: its address, without the token."""
    with socket.create_server(("localhost", 0)) as probe:
        port = probe.getsockname()[1]
    recipe = make("-n", "lab", f"PORT={port}").replace("\\\n", " ").partition("exec ")[2]
    command = [sys.executable, *shlex.split(recipe)[1:], "--no-browser"]
    with (
        open(log_path, "w") as log,
        subprocess.Popen(command, cwd=folder, env={**os.environ, **environment}, stdout=log, stderr=log) as server,
    ):
        try:
            if status(f"http://localhost:{port}/api", server) != 200:
                raise RuntimeError(f"the server of `make lab` did not come up:\n{Path(log_path).read_text()}")
            yield f"http://localhost:{port}"
        finally:
            server.terminate()  # and with it its kernels
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


def status(url, server, seconds=120):
    """The HTTP status of `url`, once `server` has come up; 0 when it does not."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            return urllib.request.urlopen(url).status
        except urllib.error.HTTPError as refusal:
            return refusal.code
        except urllib.error.URLError:  # not up yet
            time.sleep(0.2)
    return 0
