"""The log of a pretraining run, read back."""
import json
from dataclasses import dataclass
from pathlib import Path

# Entries of an epoch that are numbers, or None.
NUMBERS = ('epoch', 'step', 'loss', 'val_loss', 'lr', 'gradient_norm', 'images_per_second', 'data_wait',
           'seconds', 'gpu_kwh')


@dataclass(frozen=True)
class Log:
    """What the log of a run says.

    runs: what was written at each start of the run. epochs: what was written after each epoch. before: the
    same, measured before the training (epoch 0), or None.
    """
    folder: Path
    runs: list
    epochs: list
    before: dict | None

    @property
    def name(self):
        return self.runs[-1]['run'] or self.folder.name

    @property
    def config(self):
        """The options of the last start."""
        return self.runs[-1]['config']


def pictures_of(folder):
    """Return the pictures of reconstructions in a run folder, in the order of the epochs."""
    paths = Path(folder, 'reconstructions').glob('epoch_*.png')
    found = [path for path in paths if path.stem.removeprefix('epoch_').isdecimal()]
    return sorted(found, key=epoch_of)


def epoch_of(picture):
    """Return the epoch after which a picture was drawn, by its name."""
    return int(Path(picture).stem.removeprefix('epoch_'))


def read_log(folder):
    """Read the log of a run folder. Raises ValueError if there is none, or none of pretraining."""
    path = Path(folder, 'pretrain_log.txt')
    if not path.is_file():
        raise ValueError(f'{folder} is no folder of a pretraining run: there is no pretrain_log.txt in it')
    try:
        lines = path.read_text(encoding='utf-8').splitlines(keepends=True)
        # The last line is left out while a run is writing it.
        entries = [json.loads(line) for line in lines if line.endswith('\n')]
        runs = [entry for entry in entries if 'run' in entry]
        epochs = [entry for entry in entries if 'epoch' in entry]
        is_valid = bool(runs) and all(map(is_start, runs)) and all(map(is_epoch, epochs))
    except (ValueError, TypeError, KeyError, AttributeError):  # another kind of file can hold anything
        is_valid = False
    if not is_valid:
        raise ValueError(f'{path} is not the log of a pretraining run of this program')
    before = next((entry for entry in epochs if entry['epoch'] == 0), None)
    return Log(Path(folder), runs, [entry for entry in epochs if entry['epoch'] > 0], before)


def is_start(entry):
    """Whether an entry is what a pretraining run writes when it starts."""
    is_pretraining = entry['config'].keys() >= {'model', 'epochs', 'mask_ratio'}
    return is_pretraining and isinstance(entry['run'], str | None)


def is_epoch(entry):
    """Whether an entry is what a pretraining run writes after an epoch."""
    numbers = [value for name, value in entry.items() if name in NUMBERS]
    return isinstance(entry['epoch'], int) and all(isinstance(value, int | float | None) for value in numbers)
