"""What a network is, found out by running it densely once: its pyramid, its norms, and whether strips suit it.

Nothing is taken from declared numbers (timm's `feature_info` is wrong for some networks) or from names. What the
probe does not understand it refuses, by the module's path: a leak between cells would be silent otherwise.
"""
import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

# Operators of a forward that act on each position alone or only change the view, besides all that torch tags as
# pointwise; and reductions, safe when they run over the whole image plane or not over it at all, with the place
# of their `dim` argument. (A norm over a strip runs over exactly the visible positions of the image.)
NORMS = frozenset('''
    native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_with_update
    cudnn_batch_norm miopen_batch_norm native_group_norm
'''.split())
SAFE = NORMS | frozenset('''
    native_layer_norm native_dropout bernoulli_ addmm mm view _unsafe_view permute transpose t expand squeeze
    unsqueeze detach alias clone _to_copy lift_fresh hardswish hardswish_ mish mish_ _prelu_kernel log_sigmoid_forward
    fill_ zeros_like ones_like empty_like new_empty new_zeros new_ones new_full
'''.split())
REDUCTIONS = {'mean': 1, 'sum': 1, 'amax': 1, 'var': 1, 'var_mean': 1, 'linalg_vector_norm': 2}
CUTS = {'cat': 1, 'split': 2, 'split_with_sizes': 2, 'slice': 1, 'select': 1, 'unbind': 1}  # safe along other axes


@dataclass(frozen=True)
class Found:
    """The facts that a probe returns; see SparseEncoder."""
    stride: int
    cell_size: int
    grid: tuple
    levels: tuple
    reductions: tuple
    channels: tuple
    norm: str
    unused: tuple
    image: torch.Tensor  # two random ones, to try things on


def probe(cnn, input_size, in_chans, cell_size, ruled_classes):
    """Measure a network and refuse what strips would get wrong. Raises ValueError; returns Found."""
    name, (height, width) = type(cnn).__name__, input_size
    deep, flat = (any(isinstance(module, cls) for module in cnn.modules()) for cls in (nn.Conv3d, nn.Conv2d))
    if deep or not flat:
        raise ValueError(f'{name} is no two-dimensional convolutional network: it has '
                         f'{"Conv3d layers" if deep else "no Conv2d layer"}. Only CNNs on images (B, C, H, W) fit')
    if not hasattr(cnn, 'forward_intermediates'):
        raise ValueError(f"{name} has no forward_intermediates(x, intermediates_only=True), timm's way of returning "
                         'the feature pyramid: add one, as in pretrain/models/custom.py')
    like = next(cnn.parameters())
    image = torch.randn(2, in_chans, height, width, generator=torch.Generator().manual_seed(0)).to(like)
    maps = run(cnn, image)

    sizes = [tuple(out.shape[2:]) for out in maps]
    stride = total_stride(name, (height, width), sizes[-1])
    cell = stride if cell_size is None else cell_size
    check_sizes(name, (height, width), stride, cell)
    strides = [height / h if height / h == width / w else None for h, w in sizes]
    wanted = [stride // 2 ** i for i in reversed(range(min(4, stride.bit_length() - 1)))]
    missing = [s for s in wanted if s not in strides]
    if missing:
        raise ValueError(f'{name} has no feature map of stride {missing[0]} at {height}x{width}: its maps are {sizes}')
    levels = tuple(max(i for i, s in enumerate(strides) if s == want) for want in wanted)

    watch = _Watch(cnn, (height // cell, width // cell), ruled_classes)
    with watch:
        maps = run(cnn, image)
    trained = copy.deepcopy(cnn)  # whose running statistics may change
    with _Watch(trained, watch.grid, ruled_classes):
        run(trained, image, training=True)
    used = used_parameters([maps[level] for level in levels])
    unused = tuple(key for key, p in cnn.named_parameters() if p.requires_grad and id(p) not in used)
    norms = [m for m in watch.called if isinstance(m, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm))]
    batch_norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in norms)
    return Found(stride=stride, cell_size=cell, grid=(height // cell, width // cell), levels=levels,
                 reductions=tuple(wanted), channels=tuple(maps[level].shape[1] for level in levels),
                 norm='bn' if batch_norms > len(norms) / 2 else 'ln', unused=unused, image=image)


def total_stride(name, size, smallest):
    """The power of two that turns the image into its smallest map, rounded down or up where it does not divide."""
    for stride in (2 ** i for i in range(1, 12)):
        if all(side // stride == out for side, out in zip(size, smallest)) or \
                all(-(-side // stride) == out for side, out in zip(size, smallest)):
            return stride
    raise ValueError(f'{name} turns an image of {size[0]}x{size[1]} into a map of {smallest[0]}x{smallest[1]}: its total '
                     'stride is no power of two, which the decoder needs (it doubles)')


def check_sizes(name, size, stride, cell):
    """Refuse a cell or an image size that does not fit the network's total stride."""
    if cell < 1 or cell % stride or (cell // stride) & (cell // stride - 1):
        raise ValueError(f'cell_size {cell} does not fit {name}, whose total stride is {stride}: '
                         f'give {stride}, {2 * stride} or another {stride} times a power of two')
    for what, side in zip(('height', 'width'), size):
        if side % cell:
            nearest = sorted({max(side // cell, 1) * cell, (side // cell + 1) * cell})
            raise ValueError(f'input_size: the {what} {side} is no multiple of the cell, {cell} px: '
                             f'give {" or ".join(map(str, nearest))}')
    if size[0] * size[1] < 2 * cell * cell:
        raise ValueError(f'an image of {size[0]}x{size[1]} is a single cell of {cell} px, and one must be visible '
                         f'and one hidden: give input_size={2 * cell} or more')


def run(cnn, image, training=False):
    """The pyramid of a dense forward, with its graph; every module's mode is put back."""
    modes = {module: module.training for module in cnn.modules()}
    try:
        cnn.train(training)
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            return cnn.forward_intermediates(image, intermediates_only=True)
    except Exception as error:  # whatever a network of the user's can raise
        if isinstance(error, ValueError) and 'cannot be pretrained sparsely' in str(error):
            raise
        raise ValueError(f'{type(cnn).__name__} cannot run on an image {tuple(image.shape)}: '
                         f'{type(error).__name__} {error}') from error
    finally:
        for module, mode in modes.items():
            module.training = mode


def used_parameters(outputs):
    """Ids of the parameters that the outputs depend on, from the graph of the forward; no backward is run."""
    todo, seen, used = [out.grad_fn for out in outputs], set(), set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        used.add(id(getattr(node, 'variable', None)))
        todo += [parent for parent, _ in node.next_functions]
    return used


def overlaps(layer):
    """Whether the window of a convolution or a pool reaches into neighbouring cells."""
    kernel, stride, dilation = (pair(getattr(layer, field, 1)) for field in ('kernel_size', 'stride', 'dilation'))
    reach = [1 + (k - 1) * d for k, d in zip(kernel, dilation)]
    padded = layer.padding not in (0, (0, 0), 'valid') and (layer.padding != 'same' or reach != [1, 1])
    return padded or any(r > s for r, s in zip(reach, stride))


def pair(value):
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


class _Watch(TorchDispatchMode):
    """Sees every operator of a dense forward together with the module that called it."""

    def __init__(self, cnn, grid, ruled_classes):
        super().__init__()
        self.cnn, self.grid, self.ruled_classes = cnn, grid, ruled_classes
        self.stack, self.called = [('', cnn)], []

    def __enter__(self):
        self.handles = []
        for name, module in self.cnn.named_modules():
            self.handles += [module.register_forward_pre_hook(partial(self.enter, name)),
                             module.register_forward_hook(self.leave)]
        return super().__enter__()

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()
        return super().__exit__(*error)

    def enter(self, name, module, inputs):
        self.stack.append((name, module))
        self.called.append(module)
        if isinstance(module, self.ruled_classes) and self.planes(inputs[0]):
            wide = inputs[0].shape[3] // self.grid[1]
            if any(wide % stride for stride in pair(module.stride)):
                self.refuse(f'strides by {pair(module.stride)[0]} where a cell is {wide} positions wide',
                            'Give a larger cell_size.')
            if getattr(module, 'padding_mode', 'zeros') != 'zeros':
                self.refuse(f'pads by "{module.padding_mode}", which a hidden neighbour cannot imitate')

    def leave(self, module, inputs, output):
        self.stack.pop()

    def planes(self, x):
        """The pairs of axes of x that may be the image plane, told by their sizes: none, one, or two by coincidence."""
        h, w = self.grid
        return [(a, b) for a, b in ((2, 3), (1, 2)) if x.ndim == 4
                and x.shape[a] % h == x.shape[b] % w == 0 and x.shape[a] // h == x.shape[b] // w]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        known = torch.Tag.pointwise in func.tags or name in SAFE
        if any(isinstance(module, self.ruled_classes) for _, module in self.stack):  # on the canvas, hidden positions are there
            known = name not in NORMS
        if not known:
            flat = [t for arg in args for t in (arg if isinstance(arg, (tuple, list)) else [arg])]
            planes = [plane for t in flat if torch.is_tensor(t) for plane in self.planes(t)]
            if planes and name in REDUCTIONS:
                dims = args[REDUCTIONS[name]] if len(args) > REDUCTIONS[name] else None
                dims = {dim % 4 for dim in (dims or range(4))}
                if not any(dims >= set(plane) or not dims & set(plane) for plane in planes):
                    self.refuse(f'calls {name} along one side of the image only')
            elif planes and name in CUTS:
                dim = args[CUTS[name]] % 4 if len(args) > CUTS[name] else 0
                if all(dim in plane for plane in planes):
                    self.refuse(f'cuts or joins the image plane with {name}')
            elif planes or name in ('bmm', 'baddbmm') or 'attention' in name:
                self.refuse(f'calls {name}')
        return func(*args, **(kwargs or {}))

    def refuse(self, what, remedy=None):
        name, module = self.stack[-1]
        raise ValueError(
            f'{type(self.cnn).__name__} cannot be pretrained sparsely as it is: its module '
            f'"{name or "(top)"}" ({type(module).__name__}) {what}; visible cells would mix with others in a way that '
            'is not understood. '
            + (remedy or 'Use a network without it, or put it into a layer of its own with a rule in RULES of '
                         'pretrain/encoder.py.'))
