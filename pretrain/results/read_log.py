"""The log of a run, read back."""
import json
from dataclasses import dataclass
from pathlib import Path

NUMBERS = ('epoch', 'step', 'loss', 'val_loss', 'lr', 'gradient_norm', 'images_per_second', 'data_wait', 'seconds',
           'gpu_kwh')


@dataclass(frozen=True)
class Log:
    """runs: what stands in the log of each start of the run. epochs: its epochs; number 0, before training, in `before`."""
    folder: Path
    runs: list
    epochs: list
    before: dict | None

    @property
    def name(self):
        return self.runs[-1]['run'] or self.folder.name

    @property
    def config(self):
        return self.runs[-1]['config']

    @property
    def target(self):
        """What the run predicts; runs from before there was a choice predict normalised cells."""
        return self.config.get('target', 'normalised')


def pictures_of(folder):
    """The pictures of reconstructions in a run folder, in the order of the epochs."""
    paths = Path(folder, 'reconstructions').glob('epoch_*.png')
    found = [path for path in paths if path.stem.removeprefix('epoch_').isdecimal()]
    return sorted(found, key=lambda path: int(path.stem.removeprefix('epoch_')))


def read_log(folder):
    """The log of a run folder. Raises ValueError if there is none, or none of pretraining."""
    path = Path(folder, 'pretrain_log.txt')
    if not path.is_file():
        raise ValueError(f'{folder} is no folder of a pretraining run: there is no pretrain_log.txt in it')
    try:
        lines = path.read_text(encoding='utf-8').splitlines(keepends=True)
        entries = [json.loads(line) for line in lines if line.endswith('\n')]  # a run may be writing its last line
        runs = [entry for entry in entries if 'run' in entry]
        epochs = [entry for entry in entries if 'epoch' in entry]
        if not runs or any(not run['config'].keys() >= {'model', 'epochs', 'mask_ratio'} for run in runs):
            raise ValueError
        if not all(isinstance(run['run'], str | None) for run in runs) or not all(
                isinstance(value, int | float | None) for entry in epochs for name, value in entry.items() if name in NUMBERS
        ) or not all(isinstance(entry['epoch'], int) for entry in epochs):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f'{path} is not the log of a pretraining run of this program') from None
    return Log(Path(folder), runs, [entry for entry in epochs if entry['epoch'] > 0],
               next((entry for entry in epochs if entry['epoch'] == 0), None))
