"""The main job in a few minutes on two CPU cores: pretrain a small network without labels, and see what that is worth.

    make demo          or          python -m pretrain.demo [FOLDER] [--method=a2mim]

1. It draws 3,000 fabrics of twelve patterns (common/fabrics.py), and 600 others to hold out.
2. It pretrains `your_convnet` on them through main.sh.
3. FOLDER/demo.png shows some held-out fabrics: masked, and reconstructed before and after.
4. k-NN and a linear probe (downstream_imagenet) tell the held-out fabrics apart, by the features of that network, and by those
   of the same network before it was trained.

The same command again goes on where it stopped. Once all is done, it says the result again. docs/drawn_images.md, "The demo",
has the results of five seeds, and says why the images are fabrics.
"""
import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from common.cli import errors_in_one_sentence
from common.fabrics import PATTERNS, write_fabrics
from common.pictures import labelled_rows
from common.reliability.checkpoint import write_atomically
from common.reliability.stopping import STOPPED
from common.seeds import seed_for
from pretrain.methods import DEFAULT, METHODS, method_of
from pretrain.results.pictures import hidden_cells, views, write_picture
from pretrain.results.read_log import read_log
from pretrain.saved import read_saved

MODEL = ('--model=your_convnet', '--input_size=64')
TRAINING = (*MODEL, '--bs=32', '--val_every=1000', '--picture_every=5', '--ngpu_per_node=1')
# Options for so small a network, of the methods that take one without attention.
OF_METHODS = {'spark': ('--decoder_width=64', '--lr=3e-2'), 'a2mim': ('--cell_size=8', '--lr=3e-3')}
ROOT = Path(__file__).resolve().parents[1]
SHOWN = 6  # held-out images in the picture
TILE = 160  # pixels, the side of an image in the picture
SIDES = ('untrained', 'pretrained')


@dataclass(frozen=True)
class Probe:
    """A program of downstream_imagenet. prints: what it says in front of the accuracy in percent."""
    title: str
    prints: str
    options: tuple = ()


PROBES = {'knn': Probe('k-NN, k = 20', 'k-NN, k = 20: top-1 '),
          'linear': Probe('linear probe, 10 % of the labels', 'linear probe: top-1 ', ('--label_fraction=0.1',))}


@dataclass(frozen=True)
class Demo:
    """What is drawn and trained, and where. seed: of the network, the masks and the order of the images."""
    folder: Path
    train: int
    val: int
    epochs: int
    seed: int
    method: str = DEFAULT

    @property
    def world(self):
        return self.folder / 'fabrics'

    @property
    def run(self):
        return self.folder / 'output_fabrics'

    @property
    def weights(self):
        return self.run / 'your_convnet_1kpretrained.pth'

    @property
    def picture(self):
        return self.folder / 'demo.png'

    @property
    def results(self):
        return self.folder / 'comparison.json'

    def claim_folder(self):
        """Note what the folder is for. Raises ValueError if it holds a demo with other options."""
        options = {name: value for name, value in dataclasses.asdict(self).items() if name != 'folder'}
        note = self.folder / 'demo.json'
        if note.exists() and {'method': DEFAULT, **json.loads(note.read_text())} != options:
            raise ValueError(f'{self.folder} holds a demo with other options: give another folder')
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(note, json.dumps(options))


def write_text(path, text):
    write_atomically(path, lambda file: file.write(text.encode()))


def draw(demo):
    """Draw the fabrics, unless they are there."""
    complete = demo.world / 'complete'
    if not complete.exists():
        print(f'Drawing {demo.train:,} fabrics, and {demo.val:,} others to hold out, into {demo.world} ...', flush=True)
        write_fabrics(demo.world, demo.train, demo.val, side=64, seed=1)
        complete.touch()


def train(demo):
    """Pretrain, or go on; exits with the code of a run that was stopped, also if Ctrl-C came at its very end."""
    command = ['bash', str(ROOT / 'pretrain' / 'main.sh'), 'fabrics', f'--data_path={demo.world}', *TRAINING,
               f'--method={demo.method}', *OF_METHODS[demo.method],
               f'--epochs={demo.epochs}', f'--warmup_epochs={demo.epochs / 10}', f'--seed={demo.seed}']
    print(' '.join(command), flush=True)
    process = subprocess.Popen(command, cwd=demo.folder, env={**os.environ, 'PYTHON': sys.executable})
    code = None
    was_interrupted = False
    while code is None:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # The run was interrupted too: it saves what it has, and then ends.
            was_interrupted = True
    if code or was_interrupted:
        sys.exit(code or STOPPED)


def compare(demo):
    """Measure both sides, and note {probe: {side: top-1 accuracy in percent}}."""
    print(f'\nTelling {demo.val:,} held-out fabrics apart by frozen features ...', flush=True)
    accuracies = {probe: dict(zip(SIDES, measure(demo, probe))) for probe in PROBES}
    write_text(demo.results, json.dumps(accuracies))


def measure(demo, probe):
    """The accuracies of both sides by a probe, in percent. The sides are measured at the same time."""
    threads = str(max(1, (os.cpu_count() or 1) // len(SIDES)))
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': threads}
    sources = {'untrained': '--random', 'pretrained': f'--weights={demo.weights}'}
    command = [sys.executable, '-m', f'downstream_imagenet.{probe}', *MODEL, f'--data_path={demo.world}', f'--seed={demo.seed}',
               '--workers=0', *PROBES[probe].options]
    processes = [subprocess.Popen([*command, sources[side]], cwd=demo.folder, env=environment, stdout=subprocess.PIPE,
                                  text=True) for side in SIDES]
    texts = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise ValueError(f'downstream_imagenet.{probe} failed, as said above')
    return [float(re.search(re.escape(PROBES[probe].prints) + r'([\d.]+)', text)[1]) for text in texts]


def untrained(options):
    """The network that a run with these options starts from, in evaluation mode."""
    torch.manual_seed(seed_for('weights', options.seed))
    return METHODS[options.method].build(options).eval()


def show(demo):
    """Write the picture: held-out images, masked, and reconstructed by the network before and after the run."""
    saved = read_saved(demo.run)
    paths = sorted((demo.world / 'val').rglob('*.png'), key=lambda path: path.name)
    step = len(PATTERNS) // SHOWN  # Neighbours are of different patterns, and so many fabrics have all of them.
    images = torch.cat([image for _, _, image in saved.each(paths[:len(PATTERNS):step])])
    visible = saved.network.draw_visible(len(images), torch.Generator().manual_seed(seed_for('picture', 0)))
    before, after = (views(network, images, visible, saved.options.normalisation)
                     for network in (untrained(saved.options), saved.network))
    rows = {'image': after.image, 'what the network sees': after.masked,
            'reconstruction before pretraining': before.reconstruction,
            'reconstruction after pretraining': after.reconstruction}
    write_picture(demo.picture, labelled_rows([list(row) for row in rows.values()], list(rows), side=TILE))


def report(demo):
    """Say what came out of it."""
    log = read_log(demo.run)
    before, after = log.before['val_loss'], log.epochs[-1]['val_loss']
    meaning = method_of(log.config, demo.run).loss_meaning(log.config)
    shown = hidden_cells(meaning.target)
    print(f'''
{demo.val:,} held-out fabrics of {len(PATTERNS)} patterns, which no training saw:

                                    untrained   pretrained
  {meaning.of_cells + ' on hidden cells':32}  {before:9.3f}    {after:9.3f}     {meaning.of_nothing}'''.rstrip())
    for probe, accuracy in json.loads(demo.results.read_text()).items():
        print(f'  {PROBES[probe].title:32}  {accuracy["untrained"]:7.1f} %    {accuracy["pretrained"]:7.1f} %     '
              f'{100 / len(PATTERNS):.1f} % is chance')
    print(f'''
k-NN and the linear probe tell the patterns apart by frozen features. Labels were for them alone: pretraining had none.

Look at       {demo.picture}
              {shown}
Weights       {demo.weights}
Curves        tensorboard --logdir {demo.run / "tensorboard_log"}
Your images   bash pretrain/main.sh my_run --data_path=DIR --model=resnet50''')


def main(argv=None):
    parser = argparse.ArgumentParser('pretrain.demo', description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('folder', nargs='?', default='demo_output', help='where to write (default: demo_output)')
    parser.add_argument('--train', type=int, default=3000, help='images to pretrain on (default: 3000)')
    parser.add_argument('--val', type=int, default=600, help='held-out images (default: 600)')
    parser.add_argument('--epochs', type=int, default=6, help='(default: 6)')
    parser.add_argument('--seed', type=int, default=0, help='of the network, the masks and the order (default: 0)')
    parser.add_argument('--method', choices=OF_METHODS, default=DEFAULT, help='of pretraining; convmae and mae are '
                        f'left out, since they are for networks with attention (default: {DEFAULT})')
    options = vars(parser.parse_args(argv))
    demo = Demo(**{**options, 'folder': Path(options['folder']).resolve()})
    with errors_in_one_sentence():
        demo.claim_folder()
        if not demo.results.exists():  # It is written last.
            draw(demo)
            train(demo)
            show(demo)
            compare(demo)
        report(demo)


if __name__ == '__main__':
    main()
