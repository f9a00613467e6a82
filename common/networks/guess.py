"""Which network a file of weights is of, by its tensors."""
import re

from common.networks.keys import below

# (blocks of the four stages, whether the blocks are bottlenecks) -> timm's name
RESNETS = {((2, 2, 2, 2), False): 'resnet18', ((3, 4, 6, 3), False): 'resnet34',
           ((2, 2, 2, 2), True): 'resnet26', ((3, 4, 6, 3), True): 'resnet50',
           ((3, 4, 23, 3), True): 'resnet101', ((3, 8, 36, 3), True): 'resnet152',
           ((3, 24, 36, 3), True): 'resnet200'}
# (blocks of the third stage, channels of the first) -> timm's name
CONVNEXTS = {(9, 96): 'convnext_tiny', (27, 96): 'convnext_small', (27, 128): 'convnext_base',
             (27, 192): 'convnext_large'}
FIRST_BLOCK = re.compile(r'layer1\.0\.conv1\.weight|stages\.0\.(?:0\.dwconv|blocks\.0\.conv_dw)\.weight')


def guess_model(state):
    """Return timm's name of the plain ResNet or ConvNeXt whose tensors a flat dictionary holds.

    None for other networks. The keys may be timm's or the ConvNeXt authors', behind any prefix. It is a guess
    by the numbers of blocks and channels, which the strict load that follows confirms or refuses.
    """
    first = next((key for key in state if FIRST_BLOCK.search(key)), None)
    if first is None:
        return None
    prefix = first[:FIRST_BLOCK.search(first).start()]
    entries = below(state, prefix)
    return guess_resnet(entries) or guess_convnext(entries)


def guess_resnet(entries):
    blocks = tuple(len({key.split('.')[1] for key in entries if key.startswith(f'layer{stage}.')})
                   for stage in (1, 2, 3, 4))
    is_bottleneck = 'layer1.0.conv3.weight' in entries
    return RESNETS.get((blocks, is_bottleneck))


def guess_convnext(entries):
    first = entries.get('stages.0.0.dwconv.weight', entries.get('stages.0.blocks.0.conv_dw.weight'))
    if first is None:
        return None
    matches = (re.match(r'stages\.2\.(?:blocks\.)?(\d+)\.(?:dwconv|conv_dw)\.', key) for key in entries)
    third_stage = {match[1] for match in matches if match}
    return CONVNEXTS.get((len(third_stage), len(first)))
