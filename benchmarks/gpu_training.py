"""What the parts of `benchmarks.gpu` train: networks, steps and batches."""
import copy
from contextlib import contextmanager
from functools import cache

import torch
from torch import nn

from benchmarks.convmae import Original
from common.convvit import ConvViT
from common.distributed import Ranks
from common.networks.convolutions import safe_convolutions
from common.networks.create import create_cnn
from common.reliability.checkpoint import copied
from common.training.device import to_device
from common.training.graph import CUDARecorder, GraphedStep
from common.training.optim import BufferGuard, build_optimizer, load_state, parameter_groups, set_schedule
from common.training.scaling import LossScaler
from common.training.trainer import train_step
from pretrain.convmae import build_convmae
from pretrain.spark import build_spark

CLASSES = 150  # of ADE20K
DTYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16}


def synchronise(device):
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def autocast(device, precision):
    """The context of a forward pass. On the CPU everything is computed in fp32."""
    return torch.autocast(device.type, DTYPES[precision], enabled=device.type == 'cuda')


class Training:
    """A network with all that trains it; `train` takes a step as the trainer does.

    network: forward(*batch) -> loss, on the device. batch_of(number): the batch of a step, on the device.
    With `is_graphed` the step is a CUDA graph after the first few; on the CPU it runs on static inputs.
    """

    def __init__(self, network, batch_of, device, is_graphed=False, optimizer='lamb', precision='bf16'):
        self.network = network.train()
        self.batch_of = batch_of
        self.device = device
        self.precision = precision
        self.lr = 0.1 if optimizer == 'sgd' else 1e-3
        self.optimizer = build_optimizer(optimizer, parameter_groups(network, 0.05), (0.9, 0.95))
        self.guard = BufferGuard(network)
        self.scaler = LossScaler(device) if precision == 'fp16' else None
        self.ranks = Ranks(0, 1, device)
        self.requests = torch.zeros(2, device=device)
        self.warnings = []
        self.step = self.eager_step
        if is_graphed:
            recorder = CUDARecorder(device) if device.type == 'cuda' else None
            self.step = GraphedStep(self.eager_step, 1, self.optimizer, self.ranks, self.warnings.append,
                                    lambda: None, recorder)

    def eager_step(self, batches, requests):
        return train_step(self.network, batches, 1, self.optimizer, self.guard, self.ranks,
                          lambda: autocast(self.device, self.precision), 5.0, requests, self.scaler)

    def train(self, number):
        """Take the step of that number. Returns its result, (5,), on the device."""
        torch.manual_seed(number)
        set_schedule(self.optimizer, self.lr, 0.05)
        return self.step(iter([self.batch_of(number)]), lambda: self.requests).clone()

    @property
    def is_captured(self):
        return isinstance(self.step, GraphedStep) and self.step.captured is True

    def state(self):
        """What a resume needs, in copies."""
        return {'network': copied(dict(self.network.state_dict())), 'optimizer': copied(self.optimizer.state_dict())}

    def load(self, state):
        self.network.load_state_dict(state['network'])
        load_state(self.optimizer, state['optimizer'])


class SupervisedTraining(Training):
    """The dense network's own training step, with nothing around it: no clipping, no verdict, no guard."""

    def eager_step(self, batches, requests):
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.precision), safe_convolutions(self.device):
            loss = self.network(*next(iter(batches)))
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class Supervised(nn.Module):
    """A classifier with its loss."""

    def __init__(self, model):
        super().__init__()
        self.cnn = create_cnn(model, num_classes=1000)

    def forward(self, images, labels):
        return nn.functional.cross_entropy(self.cnn(images), labels)


@cache  # a part trains several copies of it, and building one takes seconds
def built_spark(model, input_size, drop_path, decoder_width):
    """A SparK on the CPU."""
    return build_spark(model, input_size, drop_path=drop_path, decoder_width=decoder_width)


def pretraining_of(model, sizes, device, accelerated=False, recompute='none', batch=None, drop_path=None,
                   **options):
    """Training of a SparK around a network, on random images. The plain form is the one that GPUs run."""
    batch = batch or sizes.batch
    torch.manual_seed(0)
    spark = copy.deepcopy(built_spark(model, sizes.input_size, drop_path, sizes.decoder_width))
    spark.accelerated = accelerated
    spark.placed(device).recompute(recompute)
    torch.manual_seed(1)  # whether the network was built just now or before, the images are the same
    images = random_images(batch, sizes.input_size, device)

    @cache  # drawn and sent once: a run has its masks drawn beside the training
    def batch_of(number):
        return images, to_device(spark.draw_visible(batch, torch.Generator().manual_seed(number)), device)

    return Training(spark, batch_of, device, **options)


def convmae_of(sizes, device, is_original=False, recompute='none', **options):
    """Training of a ConvMAE around a ConvViT, in the plain form; is_original: in the original's way, over whole images."""
    torch.manual_seed(0)
    widths, depths, heads = sizes.convvit
    convmae = build_convmae(ConvViT(sizes.input_size, widths, depths, heads), sizes.input_size)
    convmae.accelerated = False
    convmae.placed(device).recompute(recompute)
    images = random_images(sizes.convmae_batch, sizes.input_size, device)

    @cache
    def batch_of(number):
        visible = convmae.draw_visible(len(images), torch.Generator().manual_seed(number))
        return images, to_device(visible, device)

    return Training(Original(convmae) if is_original else convmae, batch_of, device, **options)


def supervised_of(model, sizes, device, **options):
    torch.manual_seed(0)
    network = Supervised(model).to(device, memory_format=torch.channels_last)
    images = random_images(sizes.batch, sizes.input_size, device)
    labels = torch.randint(1000, (sizes.batch,), device=device)
    return SupervisedTraining(network, lambda number: (images, labels), device, **options)


def segmentation_of(model, sizes, device, **options):
    """Training of UperNet on a network, on random crops and masks of ADE20K's 150 classes, with AdamW."""
    # Imported here: it asks for segmentation_models_pytorch, which no other part needs.
    from downstream_ade20k.segmenter import Segmenter
    torch.manual_seed(0)
    batch, side, channels = sizes.segmentation
    network = Segmenter(create_cnn(model), CLASSES, head_channels=channels)
    network = network.to(device, memory_format=torch.channels_last)
    images = random_images(batch, side, device)
    masks = torch.randint(-1, CLASSES, (batch, side, side), dtype=torch.int16, device=device)  # -1: ignored
    return Training(network, lambda number: (images, masks), device, optimizer='adamw', **options)


def random_images(batch, side, device):
    images = torch.randn(batch, 3, side, side, device=device)
    return images.to(memory_format=torch.channels_last)


@contextmanager
def deterministic(device):
    """Context in which cuDNN chooses the same kernels each time, so that two trainings can be compared."""
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before
