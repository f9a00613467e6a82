"""Which parts of a network are its blocks, and what each of them makes of the images, as maps (B, C, h, w).

The blocks of a network are, in falling order (`block_names`):

1. the submodules whose names match a pattern that somebody gives;
2. what stands in the lists that the network calls `blocks`, as most of timm's networks have them;
3. the numbered submodules that timm's `group_matcher` counts as layers of their own;
4. the submodules that the network repeats (common/training/compilation.py: `repeated_blocks`);
5. nothing of that: the levels of its feature pyramid stand for blocks.

What is looked at (`each_map`): what the first block gets (the stem's output, or the embedded patches), and
the output of every block. In a block with an attention (or another mixer of tokens) and an MLP, what stands
between the two residual branches is looked at too. Class tokens are dropped, and tokens are laid out on their grid.
"""
import fnmatch
import math
import re
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from common.feature_maps import feature_maps
from common.networks.convolutions import safe_convolutions
from common.training.compilation import repeated_blocks

LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
ALIKE = 0.1  # the most by which the logarithm of a grid's ratio of sides may differ from the image's


@dataclass(frozen=True)
class Place:
    """Where in a network a map is taken. name: of a submodule. kind: stem, attention, block or level."""
    name: str
    kind: str

    def __str__(self):
        if self.kind == 'stem':
            return f'in front of {self.name}'
        return f'{self.name}, attention' if self.kind == 'attention' else self.name


def block_names(cnn, pattern=None):
    """Return the names of the blocks of a network; empty if it has none.

    pattern: of names, with * for any part, such as 'layer*.*'. Raises ValueError if no submodule is called so.
    """
    if pattern is not None:
        names = [name for name, _ in cnn.named_modules() if name and fnmatch.fnmatchcase(name, pattern)]
        if not names:
            top = ', '.join(name for name, _ in cnn.named_children())
            raise ValueError(f'--blocks={pattern}: no submodule of {type(cnn).__name__} is called so; at its '
                             f'top are {top}')
        return names
    return in_lists_called_blocks(cnn) or declared(cnn) or repeated(cnn)


def in_lists_called_blocks(cnn):
    """The items of the lists called `blocks`; of lists inside these, their items."""
    lists = [name for name, module in cnn.named_modules()
             if name.rpartition('.')[2] == 'blocks' and isinstance(module, LISTS)]
    return innermost([item for name in lists for item in items(cnn.get_submodule(name), name)])


def innermost(names):
    """Those of some names of submodules that have none of the others inside."""
    return [name for name in names if not any(other.startswith(f'{name}.') for other in names)]


def items(module, name):
    """The names of the modules in a list, and in lists inside it, that hold other modules with parameters."""
    found = []
    for inner, child in module.named_children():
        if isinstance(child, LISTS):
            found += items(child, f'{name}.{inner}')
        elif holds_layers(child):
            found.append(f'{name}.{inner}')
    return found


def holds_layers(module):
    return any(next(child.parameters(), None) is not None for child in module.children())


def declared(cnn):
    """The innermost numbered submodules that timm's `group_matcher` counts as layers of their own."""
    try:
        patterns = cnn.group_matcher(coarse=False)['blocks']
    except (AttributeError, KeyError, TypeError):  # it has none, or says it in another way
        return []
    if isinstance(patterns, str):
        patterns = [patterns]
    patterns = [each if isinstance(each, str) else each[0] for each in patterns]

    def is_layer(name, module):
        matches = (re.match(pattern, name) for pattern in patterns)
        return name[-1:].isdigit() and not isinstance(module, LISTS) and holds_layers(module) and \
            any(match and match.end() == len(name) for match in matches)

    return innermost([name for name, module in cnn.named_modules() if is_layer(name, module)])


def repeated(cnn):
    names = {module: name for name, module in cnn.named_modules()}
    return [names[block] for block in repeated_blocks(cnn)]


@torch.no_grad()
def each_map(cnn, images, names, take):
    """Run a network on images (B, C, H, W), and hand its maps over, one after the other, so that none is kept.

    names: of its blocks; if empty, the levels of its pyramid are taken. take: called with (Place, map (B, C,
    h, w)) in the order in which they are computed.

    Returns the names of the blocks whose outputs are no maps of the images with more than one position.
    Raises ValueError if there is no map at all.
    """
    watched = Watched(cnn, images, take)
    with safe_convolutions(images.device):
        if not names:
            for number, level in enumerate(feature_maps(cnn, images)):
                watched.see(Place(f'level {number + 1}', 'level'), level)
        else:
            with ExitStack() as hooks:
                for name in names:
                    watched.hook(name, hooks)
                cnn(images)
    if not watched.number:
        raise ValueError(f'{type(cnn).__name__} has no block whose output is a map of the image: name its '
                         'blocks with --blocks=PATTERN, such as --blocks=layer*.*')
    return list(dict.fromkeys(watched.others))


class Watched:
    """One forward of a network whose blocks hand over what they compute. The arguments are those of `each_map`."""

    def __init__(self, cnn, images, take):
        self.cnn = cnn
        self.images = images
        self.take = take
        self.number = 0  # of maps that were handed over
        self.others = []  # names of the blocks that gave no map
        self.began = False  # whether a block has run
        self.mixed = set()  # names of the blocks whose mixer has run, and whose MLP has not

    def hook(self, name, hooks):
        """Watch the block of a name until the ExitStack `hooks` is left."""
        block = self.cnn.get_submodule(name)
        hooks.enter_context(block.register_forward_pre_hook(lambda _, inputs: self.enter(name, inputs)))
        hooks.enter_context(block.register_forward_hook(
            lambda _, inputs, output: self.see(Place(name, 'block'), output)))
        children = dict(block.named_children())
        mixer = children.get('attn', children.get('token_mixer'))
        if mixer is None or 'mlp' not in children:
            return
        hooks.enter_context(mixer.register_forward_hook(lambda *_: self.mixed.add(name)))
        # The MLP's branch begins with its norm, or with the MLP where the norm comes after it.
        for word in {'norm2', 'mlp'} & children.keys():
            hooks.enter_context(children[word].register_forward_pre_hook(
                lambda _, inputs: self.between(name, inputs)))

    def enter(self, name, inputs):
        if not self.began:
            self.began = True
            if first_tensor(inputs) is not self.images:  # else there is no stem
                self.see(Place(name, 'stem'), inputs)

    def between(self, name, inputs):
        if name in self.mixed:
            self.mixed.remove(name)
            self.see(Place(name, 'attention'), inputs)

    def see(self, place, output):
        prefix = getattr(self.cnn, 'num_prefix_tokens', 0)
        maps = as_maps(first_tensor(output), tuple(self.images.shape[2:]), prefix)
        if maps is None:
            self.others.append(str(place))
            return
        self.number += 1
        self.take(place, maps)


def first_tensor(value):
    """A tensor, or the first one of a tuple or a list, as of blocks with a size beside their tokens; else None."""
    while isinstance(value, (tuple, list)) and value:
        value = value[0]
    return value if torch.is_tensor(value) else None


def as_maps(tensor, size, prefix=0):
    """Return the output of a block as (B, C, h, w); None if it is no map with more than one position.

    It may be (B, C, h, w), (B, h, w, C), or tokens (B, n, C). size: (height, width) of the images, whose
    ratio tells which sides are the grid's. prefix: how many tokens the network has that are no patches; they come first.
    """
    if tensor is None or tensor.ndim not in (3, 4):
        return None
    if tensor.ndim == 4:
        b, c, d, e = tensor.shape
        is_channels_last = unlikeness((c, d), size) < unlikeness((d, e), size)
        maps = tensor.permute(0, 3, 1, 2) if is_channels_last else tensor
        is_map = math.prod(maps.shape[2:]) > 1 and unlikeness(maps.shape[2:], size) <= 2 * ALIKE
        return maps if is_map else None
    for dropped in dict.fromkeys((prefix, 0, 1, 2)):
        grid = grid_of(tensor.shape[1] - dropped, size)
        if grid is not None:
            return tensor[:, dropped:].transpose(1, 2).unflatten(2, grid)
    return None


def unlikeness(grid, size):
    """By how much the ratio of a grid's sides differs from the image's: |difference of the logarithms|."""
    return abs(math.log(grid[0] / grid[1]) - math.log(size[0] / size[1]))


def grid_of(number, size):
    """The (h, w) of so many positions that is most like an image of a size; None if there is none like it, or for one."""
    grids = [(h, number // h) for h in range(1, number + 1) if number % h == 0] if number > 1 else []
    best = min(grids, key=lambda grid: unlikeness(grid, size), default=None)
    return best if best is not None and unlikeness(best, size) <= ALIKE else None
