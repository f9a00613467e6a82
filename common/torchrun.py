"""torchrun, which says in one sentence how processes failed, or that the nodes cannot meet, in place of a traceback.

common/launch.sh starts it. Its command line and its exit codes are those of torchrun.
"""
import signal
import sys

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.run import main as torchrun

from common.reliability.stopping import STOPPED
from common.words import first_line


def failure(error):
    """What is to be said of a ChildFailedError, a text; None of processes that were asked to stop, and have said so.

    Named is the process of this node that failed first: torchrun has ended the others.
    """
    rank, first = error.get_first_failure()
    if first.exitcode == STOPPED:
        return None
    if first.exitcode >= 0:
        return f'rank {rank} (process {first.pid}) ended with the code {first.exitcode}, for the reason that stands above'
    name = signal.Signals(-first.exitcode).name
    reason = ', which the system does too when memory runs out' if name == 'SIGKILL' else ''
    return f'rank {rank} (process {first.pid}) was ended by {name}{reason}'


def main():
    try:
        torchrun()
    except ChildFailedError as error:
        said = failure(error)
        sys.exit(1 if said is None else f'error: {said}')
    except (DistError, RendezvousError) as error:
        sys.exit(f'error: the nodes cannot meet: {first_line(error)}. --master_address must be the host of node 0, and '
                 '--master_port a port that is free there, which the others can reach; each node has another --node_rank')


if __name__ == '__main__':
    main()
