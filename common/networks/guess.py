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
# (blocks, channels) -> the name of A2MIM's ViT
VITS = {(8, 768): 'beit_abs_small_patch16_224', (12, 768): 'beit_abs_base_patch16_224',
        (24, 1024): 'beit_abs_large_patch16_224'}
# (blocks, channels, pixels of a patch's side) -> timm's name of the ViTs of MAE
PLAIN_VITS = {(12, 768, 16): 'vit_base_patch16_224', (24, 1024, 16): 'vit_large_patch16_224',
              (32, 1280, 14): 'vit_huge_patch14_224'}
# (channels of the first stage, blocks and channels of the third) -> the name of ConvMAE's network
CONVVITS = {(128, 11, 384): 'convvit_small', (256, 11, 768): 'convvit_base', (384, 23, 1024): 'convvit_large',
            (768, 31, 1280): 'convvit_huge'}
CONVNEXT_CONV = r'(?:0\.dwconv|0\.depthwise_conv|blocks\.0\.conv_dw)'
FIRST_BLOCK = re.compile(rf'layer1\.0\.conv1\.weight|stages\.0\.{CONVNEXT_CONV}\.weight|'
                         r'(?:layers|blocks)\.0\.attn\.relative_position_bias_table|'
                         r'(?<!\w)patch_embed1?\.proj\.weight')


def guess_model(state):
    """Return the name of the plain ResNet, ConvNeXt, ViT of A2MIM or MAE, or ConvViT whose tensors a flat dictionary
    holds.

    None for other networks. The keys may be timm's, OpenMMLab's or the ConvNeXt authors', after any prefix.
    It is a guess by the numbers of blocks and channels, which the strict load that follows confirms or refuses.
    """
    first = next((key for key in state if FIRST_BLOCK.search(key)), None)
    if first is None:
        return None
    prefix = first[:FIRST_BLOCK.search(first).start()]
    entries = below(state, prefix)
    return guess_resnet(entries) or guess_convnext(entries) or guess_vit(entries) or guess_plain_vit(entries) \
        or guess_convvit(entries)


def guess_resnet(entries):
    blocks = tuple(len({key.split('.')[1] for key in entries if key.startswith(f'layer{stage}.')})
                   for stage in (1, 2, 3, 4))
    is_bottleneck = 'layer1.0.conv3.weight' in entries
    return RESNETS.get((blocks, is_bottleneck))


def guess_convnext(entries):
    first = next((key for key in entries if re.fullmatch(rf'stages\.0\.{CONVNEXT_CONV}\.weight', key)), None)
    if first is None:
        return None
    matches = (re.match(r'stages\.2\.(?:blocks\.)?(\d+)\.(?:dwconv|depthwise_conv|conv_dw)\.', key)
               for key in entries)
    third_stage = {match[1] for match in matches if match}
    return CONVNEXTS.get((len(third_stage), len(entries[first])))


def guess_vit(entries):
    positions = entries.get('pos_embed')
    matches = (re.match(r'(?:layers|blocks)\.(\d+)\.attn\.relative_position_bias_table', key) for key in entries)
    blocks = {match[1] for match in matches if match}
    return VITS.get((len(blocks), positions.shape[-1])) if positions is not None else None


def guess_plain_vit(entries):
    first = entries.get('patch_embed.proj.weight')
    if first is None or first.ndim != 4 or any('relative_position_bias_table' in key for key in entries):
        return None
    return PLAIN_VITS.get((number_of_blocks(entries, 'blocks'), len(first), first.shape[2]))


def guess_convvit(entries):
    """Heads cannot be seen: they are those of the network that has these channels and blocks."""
    first, qkv = entries.get('patch_embed1.proj.weight'), entries.get('blocks3.0.attn.qkv.weight')
    if first is None or qkv is None:
        return None
    return CONVVITS.get((len(first), number_of_blocks(entries, 'blocks3'), qkv.shape[-1]))


def number_of_blocks(entries, name):
    return len({key.split('.')[1] for key in entries if key.startswith(f'{name}.')})
