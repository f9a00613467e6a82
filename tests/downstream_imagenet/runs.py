"""Options and states of small runs, and pictures to read."""
import numpy as np
import torch
from PIL import Image

from common.distributed import Ranks
from downstream_imagenet.config import parse_options

ALONE = Ranks(0, 1, torch.device('cpu'))


def parse(line):
    return parse_options(['--name=n', *line.split()])


def saved(folder, which='last', model='your_convnet'):
    return torch.load(folder / f'{model}_1kfinetuned_{which}.pth', weights_only=True)


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path)
