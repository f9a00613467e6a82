"""A lock on a run folder, so that only one process writes into it."""
import fcntl
import json
import os
import socket
import sys
import time

PATIENCE, PAUSE = 180, 5  # seconds


class FolderLock:
    """The lock of the process that writes into a run folder. The system releases it when the process ends in any way.

    It is a POSIX record lock: it holds between the machines that share a file system such as NFS, and loading
    processes do not inherit it. On a file system without locks nothing is locked.

    A file server keeps the locks of a machine that has failed for a while, 90 seconds in the case of NFS 4. So where the
    owner is on another machine, this waits for PATIENCE seconds, and says so.

    Raises ValueError, which names the owner, if another process holds it.
    """

    def __init__(self, folder):
        path = folder / 'run.lock'
        self.file = open(path, 'a+')  # noqa: SIM115  (It stays open as long as the lock is held.)
        try:
            self.acquire(path)
        except BlockingIOError:
            self.file.close()
            raise ValueError(f'{folder} is in use by {described(read_owner(path))}: wait for it or end it, or give this run '
                             'another name') from None
        except OSError:  # The file system has no locks.
            self.file.close()
            return
        self.file.truncate(0)
        since = time.strftime('%Y-%m-%d %H:%M')
        self.file.write(json.dumps({'host': socket.gethostname(), 'pid': os.getpid(), 'since': since}))
        self.file.flush()

    def acquire(self, path):
        """Take the lock. Raises BlockingIOError if another process keeps it, OSError if there are no locks."""
        for attempt in range(PATIENCE // PAUSE + 1):
            if attempt:
                time.sleep(PAUSE)
            try:
                return fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = read_owner(path)
                if owner is None or owner['host'] == socket.gethostname():
                    raise
                if not attempt:
                    sys.stderr.write(f'{path.parent} is in use by {described(owner)}. Waiting for up to {PATIENCE} s, in case '
                                     'that machine has failed\n')
        raise BlockingIOError

    def release(self):
        self.file.close()


def read_owner(path):
    """The host, pid and start of the process that holds the lock file at `path`, a dict; None if they are not known."""
    try:
        content = json.loads(path.read_text())
        return {key: content[key] for key in ('host', 'pid', 'since')}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def described(owner):
    """The process of `read_owner`, as a text."""
    return 'another process' if owner is None else f'process {owner["pid"]} on {owner["host"]}, since {owner["since"]}'
