"""Options of small runs, and what runs leave."""
import json

import torch

SMALL = {'model': 'your_convnet', 'input_size': 64, 'head_channels': 16, 'batch_size': 4, 'iterations': 6,
         'val_every': 3, 'warmup_iterations': 1, 'workers': 0, 'opt': 'adamw', 'lr': 1e-3, 'log_every': 2}


def saved(folder):
    return torch.load(folder / 'your_convnet_ade20k_last.pth', weights_only=True)


def log_of(folder):
    return [json.loads(line) for line in (folder / 'ade20k_log.txt').read_text().splitlines()]


def evaluations(folder):
    """The lines of the log with the figures of an evaluation."""
    return [line for line in log_of(folder) if 'mIoU' in line]
