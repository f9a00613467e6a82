"""One run folder, one writer."""
import fcntl
import json
import os
import socket
import time


class FolderLock:
    """Held by the process that writes into a run folder, until it ends in whatever way: the system lets go of it.

    A POSIX record lock: it works between the machines of a file system such as NFS, and loading processes do not inherit it.
    Raises ValueError, which names the owner, if another process holds it.
    """

    def __init__(self, folder):
        path = folder / 'run.lock'
        self.file = open(path, 'a+')  # noqa: SIM115  (open as long as it is held)
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.close()
            raise ValueError(f'{folder} is in use by {owner(path)}: wait for it or end it, or give this run another '
                             'name') from None
        except OSError:  # a file system without locks
            self.file.close()
            return
        self.file.truncate(0)
        since = time.strftime('%Y-%m-%d %H:%M')
        self.file.write(json.dumps({'host': socket.gethostname(), 'pid': os.getpid(), 'since': since}))
        self.file.flush()

    def release(self):
        self.file.close()


def owner(path):
    """Who holds a lock, for a person."""
    try:
        about = json.loads(path.read_text())
        return f'process {about["pid"]} on {about["host"]}, since {about["since"]}'
    except (OSError, ValueError, KeyError, TypeError):
        return 'another process'
