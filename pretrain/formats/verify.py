"""Whether what was written, read back by whom it is for, is the given network.

Two comparisons: the entries with those of the given file, bit by bit, and the output with the network's own.
"""
import subprocess
import sys
from pathlib import Path

import torch

from common.words import number_and_first_of
from pretrain.formats import contents
from pretrain.sparse.compare import relative_error

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-4  # relative difference of features in fp32 that another order of summation brings about


def sample_images(saved):
    """Return two random images of the network's size, always the same: (2, C, H, W)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, saved.options.in_chans, *saved.network.encoder.input_size, generator=generator)


def require_given(saved, written, reader, classifier=True):
    """Raise a ValueError unless entries that were read back are those of the given file, bit by bit.

    written: {key: tensor} under timm's names. reader: who read them, for the message. classifier: whether the
    format has a place for one.
    """
    given = contents.entries_of(saved, classifier)
    differing = [key for key in given.keys() | written.keys() if key not in given or key not in written
                 or not torch.equal(written[key], given[key].to(written[key].dtype))]
    if differing:
        raise ValueError(f'{reader} does not give the network\'s own entries from what was written: '
                         f'{number_and_first_of(sorted(differing))} are not as in {saved.path}')


@torch.no_grad()
def require_same(ours, theirs, reader):
    """Raise a ValueError unless two lists of tensors are equal up to rounding.

    reader: who made the second one, for the message.
    """
    difference = relative_error(theirs, ours)
    if not difference <= TOLERANCE:  # NaN is refused too
        raise ValueError(f'{reader} does not give the network\'s own output from what was written (relative '
                         f'difference {difference:.1e})')


@torch.no_grad()
def require_same_network(saved, theirs, reader):
    """Raise a ValueError unless a timm network has the given one's features, and logits if it classifies."""
    encoder = saved.network.encoder
    images = sample_images(saved)
    require_same(encoder.pyramid(images), encoder.pyramid(images, cnn=theirs.eval()), reader)
    if saved.has_classifier:
        require_same([encoder.cnn(images)], [theirs(images)], reader)


def what_is_same(saved):
    """Return what `require_same_network` compared, for the sentence on how a file was checked."""
    return 'the same output' if saved.has_classifier else 'the same features'


def run_reader(*command):
    """Run a program of a downstream folder, which shares files with this one and no code.

    Returns what it printed. Raises ValueError with its error.
    """
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ValueError((done.stderr or done.stdout).strip().removeprefix('error: '))
    return done.stdout.strip()
