"""The options of a detection run."""
from dataclasses import dataclass
from pathlib import Path

from common.about import About
from common.cli import numbers, option, parse
from common.config import EpochOptions, fill_in, require
from common.networks.users import USERS_NETWORKS
from common.paths import require_file, require_weights
from downstream_coco.layout import open_annotations, require_folder

# What options are if they are not given; with --eval, those of the file are taken instead (checkpoints.py).
NOT_GIVEN = {'input_size': 800, 'long_side': 1333, 'detections': 100}


@dataclass(frozen=True)
class Options(EpochOptions):
    """What a user decides, besides what every program has. Raises ValueError."""

    resume: str = option(None, 'go on from this <model>_coco_last.pth; the one in the run folder if not '
                         'given', 'run', ('resume_from',), str, may_change=True)
    finetune_from: str = option(None, "weights of the CNN to start from: ours, official, timm's or "
                                "torchvision's files, or 'timm' for timm's own; random if not given", 'run',
                                ('weights',), str, may_change=True)
    eval: str = option(None, 'measure the average precision of this file on the validation images, and stop',
                       'run', parse=str, may_change=True)

    data_path: str = option(None, "a folder in COCO's layout: train2017/, val2017/ and "
                            "annotations/instances_*2017.json", 'data', parse=str, may_change=True)
    train_images: str = option(None, 'folder of the training images, where the layout is another', 'data',
                               parse=str, may_change=True)
    train_annotations: str = option(None, "their annotations, a file in COCO's format", 'data', parse=str,
                                    may_change=True)
    val_images: str = option(None, 'folder of the validation images', 'data', parse=str, may_change=True)
    val_annotations: str = option(None, 'their annotations', 'data', parse=str, may_change=True)
    keep_empty: bool = option(False, 'train on images without objects too', 'data')
    input_size: int = option(None, 'short side of an image, in evaluation; 800 if not given', 'data', ('img_size',), int)
    long_side: int = option(None, 'the most of the long side; where it would be more, the short one is less; 1333 if not '
                            'given', 'data', parse=int)
    scales: tuple = option((0.6, 1.0), 'short side in training, from,to, as a share of input_size', 'data',
                           parse=numbers)
    crop_scale: tuple = option((1.0, 1.0), 'area of a random crop, from,to; 1,1 for none', 'data',
                               parse=numbers)

    register: str = option(USERS_NETWORKS, 'module in which your own networks are registered with timm',
                           'method', parse=str, may_change=True)
    heads: str = option(None, 'mask (Mask R-CNN) or box (Faster R-CNN); mask if most objects have one, if '
                        'not given', 'method', parse=str, choices=('mask', 'box'))
    fpn_channels: int = option(256, 'channels of the feature pyramid and of the mask head', 'method')
    head_channels: int = option(1024, 'width of the box head', 'method')
    mask_layers: int = option(4, 'convolutions of the mask head', 'method')
    rois: int = option(512, 'proposals of an image that the heads are trained on', 'method')
    detections: int = option(None, 'objects that are found in an image, at most; 100 if not given', 'method', parse=int,
                             may_change=True)
    drop_path: float = option(None, "stochastic depth; the network's own, mostly none, if not given", 'method', ('dp',), float)
    freeze: bool = option(False, 'do not train the CNN, only what is on it', 'method')
    frozen_bn: bool = option(False, "keep the CNN's BatchNorms as they were loaded, statistics and all",
                             'method')
    ema: float = option(0.0, 'decay of an average of the weights; 0 for none', 'method')

    warmup_epochs: float = option(None, 'epochs of rising learning rate; 500 steps if not given, or a tenth '
                                  'of all where that is less', 'optimisation', ('wp_ep',), float)
    base_lr: float = option(None, 'peak learning rate for a batch of 16; it grows with the batch; by --recipe '
                            'if not given', 'optimisation', parse=float, may_change=True)
    lr: float = option(None, 'peak learning rate, instead of base_lr * batch_size / 16; by --recipe if not given',
                       'optimisation', parse=float, may_change=True)
    opt: str = option('adamw', 'optimiser', 'optimisation', choices=('adamw', 'lamb', 'sgd'))
    layer_decay: float = option(None, "a layer's learning rate as a share of the next one's; 0.7 if not "
                                "given, or more such that the stem of a deep network has a ResNet-50's share",
                                'optimisation', ('lr_scale',), float)
    weight_decay: float = option(0.05, 'constant', 'optimisation', ('wd',))
    clip_grad: float = option(1.0, 'largest norm of the whole gradient; inf for no clipping', 'optimisation',
                              ('clip',), may_change=True)

    stall_minutes: float = option(120.0, 'minutes without progress, such as in waiting for a rank that is '
                                  'gone or for the main one to compare what all have found, after which the '
                                  'run ends; 0 for never', 'machine', may_change=True)

    val_every: int = option(1, 'epochs between evaluations', 'log', may_change=True)

    def __post_init__(self):
        super().__post_init__()
        if self.eval is None:
            fill_in(self, NOT_GIVEN)
        for field in ('val_every', 'fpn_channels', 'head_channels', 'mask_layers', 'rois', 'detections', 'input_size'):
            value = getattr(self, field)
            require(value is None or value >= 1, f'{field} must be 1 or more, not {value}')
        require(None in (self.long_side, self.input_size) or self.long_side >= self.input_size,
                f'long_side {self.long_side} must be input_size {self.input_size} or more')
        require(len(self.scales) == 2 and 0 < self.scales[0] <= self.scales[1],
                f'scales is from,to with 0 < from <= to, not {self.scales}')
        for field in ('ema', 'drop_path'):
            value = getattr(self, field)
            require(value is None or 0 <= value < 1,
                    f'{field} must be 0 or more and less than 1, not {value}')
        require(self.layer_decay is None or 0 < self.layer_decay <= 1,
                f'layer_decay must be more than 0 and at most 1, not {self.layer_decay}')
        require(self.weight_decay >= 0, f'weight_decay must be 0 or more, not {self.weight_decay}')
        require(self.clip_grad > 0, f'clip_grad must be more than 0, not {self.clip_grad}; inf means no '
                                    'clipping')
        require(not (self.freeze and self.frozen_bn),
                '--freeze keeps the BatchNorms too: leave --frozen_bn out')
        require(not (self.fresh and self.resume),
                '--fresh starts over and --resume goes on: give one of them')
        require(self.dataset is None, "--dataset is for classes; objects come from a file in COCO's format")

    @property
    def needs_folder(self):
        return self.eval is None

    @property
    def peak_lr(self):
        return self.base_lr * self.batch_size / 16 if self.lr is None else self.lr

    @property
    def short_sides(self):
        """(least, most) pixels of the short side in training."""
        return tuple(max(1, round(scale * self.input_size)) for scale in self.scales)

    def require_paths(self):
        super().require_paths()
        if self.eval is not None:
            require_file(self.eval)
        splits = ('val',) if self.eval is not None else ('train', 'val')
        for split in splits if self.val_fraction is None else ('train',):
            images, annotations = self.files(split)
            open_annotations(annotations).close()
            require_folder(images)
        if self.eval is None and self.begins:
            require_weights(self.finetune_from)

    def files(self, split):
        """(folder of images, annotation file) of 'train' or 'val'. Raises ValueError if they are not given."""
        images = getattr(self, f'{split}_images')
        annotations = getattr(self, f'{split}_annotations')
        if self.data_path is not None:
            images = images or Path(self.data_path, f'{split}2017')
            annotations = annotations or Path(self.data_path, 'annotations', f'instances_{split}2017.json')
        if images is None or annotations is None:
            raise ValueError("say where the images are: --data_path=DIR in COCO's layout, or "
                             f"--{split}_images=DIR and "
                             f'--{split}_annotations=FILE')
        return images, annotations


ABOUT = About(
    "Train an object detector on images in COCO's format.",
    (('bash downstream_coco/main.sh my_detector --data_path=DIR --model=resnet50 --finetune_from=FILE',
      "train on a folder in COCO's layout; the same command again goes on where it stopped"),
     ('bash downstream_coco/main.sh my_detector --model=resnet50 --train_images=DIR --train_annotations=FILE '
      '--val_images=DIR --val_annotations=FILE',
      'train on images in another layout')),
    ('name', 'data_path', 'model', 'finetune_from', 'eval', 'input_size', 'recipe', 'batch_size', 'epochs', 'lr'))


def parse_options(argv=None):
    return parse(Options, 'downstream_coco.main', ABOUT, argv)
