"""Options of small runs, and what runs leave."""
import json

import torch

SMALL = {'model': 'your_convnet', 'input_size': 64, 'long_side': 64, 'fpn_channels': 16, 'head_channels': 32, 'mask_layers': 1,
         'rois': 16, 'batch_size': 4, 'epochs': 2, 'workers': 0, 'lr': 1e-3, 'log_every': 2}


def saved(folder):
    return torch.load(folder / 'your_convnet_coco_last.pth', weights_only=True)


def log_of(folder):
    return [json.loads(line) for line in (folder / 'coco_log.txt').read_text().splitlines()]
