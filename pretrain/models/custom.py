"""A template for your own CNN: copy this file, change the network, import the copy in pretrain/models/__init__.py.

A network needs two things: a name, given by timm's `register_model`, and `forward_intermediates`, which returns the
feature maps from large to small. The total stride and the channels are measured, so nothing is declared. Try it with

    bash pretrain/main.sh my_run --data_path=DIR --model=your_convnet --input_size=64 --decoder_width=64 --bs=32 --lr=3e-2
"""
from timm.models import register_model
from torch import nn


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, cin, H, W) -> (B, cout, H/2, W/2)."""

    def __init__(self, cin, cout):
        super().__init__()
        # Pooled, not strided: torch 2.15's backward of a strided 1x1 convolution of 3 channels corrupts memory on the CPU.
        pool = nn.AvgPool2d(2, ceil_mode=True)
        self.shortcut = nn.Sequential(pool, nn.Conv2d(cin, cout, 1, bias=False), nn.BatchNorm2d(cout))
        self.conv1 = nn.Conv2d(cin, cout, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        return self.act(y + self.shortcut(x))


class YourConvNet(nn.Module):
    """A small residual network of total stride 2 ** len(channels), the encoder of a UNet.

    channels: the width of each stage. num_classes: outputs of the classifier, which pretraining leaves alone; 0
    for pooled features instead.
    """

    def __init__(self, in_chans=3, num_classes=1000, channels=(32, 64, 128)):
        super().__init__()
        self.num_classes = num_classes
        self.stages = nn.ModuleList(Block(cin, cout) for cin, cout in zip((in_chans, *channels), channels))
        self.head = nn.Linear(channels[-1], num_classes) if num_classes else nn.Identity()

    def forward_intermediates(self, x, intermediates_only=False, **_):
        """The feature maps, one a stage, stride 2 first; with the last one in front, unless only they are wanted."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps if intermediates_only else (x, maps)

    def forward_features(self, x):
        return self.forward_intermediates(x)[0]

    def forward(self, x):
        return self.head(self.forward_features(x).mean(dim=(2, 3)))


@register_model
def your_convnet(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **kwargs):
    """`--model=your_convnet`. timm passes the named arguments to every network; this one has no weights to load."""
    if pretrained:
        raise RuntimeError('your_convnet has no pretrained weights')
    return YourConvNet(**kwargs)
