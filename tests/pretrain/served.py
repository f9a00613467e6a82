"""A playground in a process of its own."""
import socket
import time
import urllib.request


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def until_served(port, server, log):
    """Wait until a playground answers; fail with its log if it ends before."""
    while server.poll() is None:
        try:
            urllib.request.urlopen(f'http://127.0.0.1:{port}', timeout=600).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())
