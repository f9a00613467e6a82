"""What a network is, found out by running it once: its pyramid, its norms, and whether strips suit it.

Nothing is taken from declared numbers (timm's `feature_info` is wrong for some networks) or from names. What the
probe does not understand it refuses, by the module's path: a leak between cells would be silent otherwise.
"""
import copy
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointError

from common.networks.convolutions import safe_convolutions
from common.networks.norms import NO_DEVIATION, values_of_channel
from pretrain.sparse.aligned import AlignedPadding
from pretrain.sparse.geometry import Geometry
from pretrain.sparse.plane import CellTooSmall, Plane
from pretrain.sparse.rules import rule_of

# Operators of a forward that act on each position alone or only change the view, besides all that torch tags as
# pointwise. (A norm over a strip runs over exactly the visible positions of the image; a product of batches of
# matrices is refused as attention before, unless it is a weighted mean over the image or a linear layer.)
NORMS = frozenset('''
    native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_with_update
    cudnn_batch_norm miopen_batch_norm native_group_norm
'''.split())
SAFE = NORMS | frozenset('''
    native_layer_norm native_dropout bernoulli bernoulli_ rand_like randn_like addmm mm view _unsafe_view permute transpose
    t expand squeeze unsqueeze detach alias clone _to_copy lift_fresh hardswish hardswish_ mish mish_ _prelu_kernel
    log_sigmoid_forward leaky_relu leaky_relu_ rsub masked_fill copy_ fill_ zeros_like ones_like empty_like new_empty
    new_zeros new_ones new_full stack bmm baddbmm pixel_shuffle pixel_unshuffle native_channel_shuffle channel_shuffle
'''.split())
# Reductions, safe when they run over the whole strip or not over it at all, and operators that run along an axis, safe when
# that is another one: with the place of their `dim` argument and its default.
REDUCTIONS = {'mean': 1, 'sum': 1, 'amax': 1, 'amin': 1, 'var': 1, 'var_mean': 1, 'std': 1, 'std_mean': 1, 'logsumexp': 1,
              'linalg_vector_norm': 2}
ALONG = {'cat': (1, 0), 'split': (2, 0), 'split_with_sizes': (2, 0), 'slice': (1, 0), 'select': (1, 0), 'unbind': (1, 0),
         '_softmax': (1, None), '_log_softmax': (1, None), 'max': (1, None), 'min': (1, None), 'argmax': (1, None),
         'argmin': (1, None), 'glu': (1, -1), 'flip': (1, None), 'roll': (2, None), 'topk': (2, -1), 'sort': (1, -1),
         'cumsum': (1, None), 'prod': (1, None), 'index_select': (1, None), 'gather': (1, None)}
NEAREST = ('upsample_nearest2d', '_upsample_nearest_exact2d')  # safe by whole factors
REMEDY = 'Use a network without it, or give it a rule: @on_plane, from pretrain.sparse, above the function or forward at fault.'


class Refused(ValueError):
    """A network that cannot run on strips."""


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
    taps: tuple
    aligned: bool
    stop: int  # feature maps before the levels that are left out, None if all are run
    notes: tuple
    uncompiled: bool  # whether torch.compile leaves the network alone
    image: torch.Tensor  # two random ones, to try things on
    twin: nn.Module  # a copy of the network, for the same


def feature_maps(cnn, x, taps=None, stop=None):
    """The feature maps of a forward, in a list. Raises ValueError if the network has no way of giving them.

    taps: names of submodules whose outputs are the maps; what comes after the last of them is not run. stop: run no further
    than that many maps. Without taps by timm's `forward_intermediates`, or what `forward` itself returns as a list or dict.
    """
    if taps is not None:
        return tapped(cnn, x, taps)
    if hasattr(cnn, 'forward_intermediates'):
        only = {} if stop is None else {'indices': list(range(stop)), 'stop_early': True}
        return cnn.forward_intermediates(x, intermediates_only=True, **only)
    maps = cnn(x)
    maps = list(maps.values()) if isinstance(maps, dict) else maps
    if not isinstance(maps, (list, tuple)) or not all(torch.is_tensor(out) and out.ndim == 4 for out in maps):
        top = ', '.join(name for name, _ in cnn.named_children())
        raise ValueError(f'{type(cnn).__name__} gives no feature pyramid: name the submodules whose outputs are its levels, '
                         f"large to small, build_spark(module, levels=[...]) (at its top are {top}), or give it timm's "
                         'forward_intermediates(x, intermediates_only=True), as in pretrain/models/custom.py (a newer timm may '
                         'have it)')
    return list(maps)


class _Enough(BaseException):  # no Exception, which a network may catch
    """All taps have given their maps."""


def tapped(cnn, x, taps):
    maps = {}

    def keep(name, module, inputs, output):
        if name in maps:
            raise ValueError(f'levels: {type(cnn).__name__} runs "{name}" more than once: name a submodule that it runs once')
        maps[name] = output
        if len(maps) == len(taps):
            raise _Enough

    handles = [cnn.get_submodule(name).register_forward_hook(partial(keep, name)) for name in taps]
    try:
        cnn(x)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if len(maps) < len(taps):
        raise ValueError(f'levels: the forward of {type(cnn).__name__} does not run {sorted(set(taps) - set(maps))}')
    wrong = [name for name in taps if not torch.is_tensor(maps[name]) or maps[name].ndim != 4]
    if wrong:
        raise ValueError(f'levels: {wrong[0]} of {type(cnn).__name__} gives no feature map (B, C, H, W)')
    return [maps[name] for name in taps]


def find_taps(cnn, levels):
    """Names of the submodules that give the levels, or None where the network gives them itself. Raises ValueError."""
    names = [name for name, _ in cnn.named_modules(remove_duplicate=False) if name]
    levels = [levels] if isinstance(levels, str) else levels
    if levels is None and not hasattr(cnn, 'forward_intermediates') and hasattr(cnn, 'feature_info'):
        declared = [info['module'] for info in cnn.feature_info]  # a list, or timm's FeatureInfo
        levels = declared if set(declared) <= set(names) else None
    if levels is None:
        return None
    unknown = [name for name in levels if name not in names]
    if unknown or not levels:
        top = [name for name in names if '.' not in name]
        raise ValueError(f'levels: {type(cnn).__name__} has no submodule "{unknown[0] if unknown else ""}"; at its top are '
                         f'{", ".join(top)}')
    if len({id(cnn.get_submodule(name)) for name in levels}) < len(levels):
        raise ValueError(f'levels: {", ".join(levels)} name a submodule twice')
    return tuple(levels)


def probe(cnn, input_size, in_chans, cell_size, levels):
    """Measure a network and refuse what strips would get wrong. Raises ValueError; returns Found."""
    name, notes = type(cnn).__name__, []
    deep, flat = (any(isinstance(module, cls) for module in cnn.modules()) for cls in (nn.Conv3d, nn.Conv2d))
    if deep or not flat:
        raise Refused(f'{name} is no two-dimensional convolutional network: it has '
                      f'{"Conv3d layers" if deep else "no Conv2d layer"}. Only CNNs on images (B, C, H, W) fit')
    taps, like = find_taps(cnn, levels), next(cnn.parameters(), None)
    if like is None or like.is_meta or any(isinstance(module, torch.jit.ScriptModule) for module in cnn.modules()):
        why = 'has no parameters' if like is None else 'is on the meta device, without values: make it on a real one'
        raise Refused(f'{name} {why}' if like is None or like.is_meta else
                      f'{name} holds a module that torch.jit compiled, which cannot be looked into: use its source')
    try:
        twin = copy.deepcopy(cnn)  # whose running statistics and gradients may change
    except Exception as error:
        raise Refused(f'{name} cannot be copied ({error}): leave no results of a forward in its attributes, and use '
                      'torch.nn.utils.parametrizations instead of the old weight_norm and spectral_norm') from error
    image = torch.randn(2, in_chans, *input_size, generator=torch.Generator().manual_seed(0)).to(like)
    maps, aligned = measure(cnn, image, taps)
    if aligned:
        notes.append('aligned padding: the network pads nothing ("valid"), here its odd windows are padded by half their size; '
                     'the weights stay the same, but the fine-tuned network will have other borders')
    sizes = [tuple(out.shape[2:]) for out in maps]
    if taps and sizes != sorted(sizes, reverse=True):
        raise ValueError(f'levels: their maps must go from large to small, those of {", ".join(taps)} are {sizes}')
    stride, stop, reductions, chosen = choose_levels(name, input_size, sizes, cell_size, notes)

    maps_of = partial(feature_maps, taps=taps, stop=stop)
    for cell in (stride, 2 * stride, 4 * stride) if cell_size is None else (cell_size,):
        check_sizes(name, input_size, stride, cell, notes)
        grid = (input_size[0] // cell, input_size[1] // cell)
        try:
            watch = Watch(cnn, grid)
            strips = watch.run(image, maps_of, aligned)
            trained = Watch(twin, grid)
            trained.run(image, maps_of, aligned, training=True)
            break
        except CellTooSmall as error:
            if cell_size is not None or cell == 4 * stride:
                raise Refused(f'{name} cannot run with cells of {cell} px: {error}; give a larger cell_size') from error
            notes.append(f'cells of {2 * cell} px, not {cell}, since {error}')

    used = used_parameters([strips[level] for level in chosen])
    unused = tuple(key for key, p in cnn.named_parameters() if p.requires_grad and id(p) not in used)
    idle = idle_parts(cnn, unused, watch.called)
    if idle:
        notes.append(f'not pretrained, since no feature map comes after it: {", ".join(idle)}; to include it, name the modules '
                     'whose outputs are the pyramid yourself (levels)')
    norms = [m for m in watch.called if isinstance(m, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm))]
    batch_norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in norms)
    channels, norm = tuple(strips[level].shape[1] for level in chosen), 'bn' if batch_norms > len(norms) / 2 else 'ln'
    uncompiled = taps is not None or bool(watch.plane.paddings or trained.plane.paddings)
    return Found(stride=stride, cell_size=cell, grid=grid, levels=chosen, reductions=reductions, channels=channels,
                 norm=norm, unused=unused, taps=taps, stop=stop, aligned=aligned, uncompiled=uncompiled, image=image, twin=twin,
                 notes=(*notes, *sorted(watch.notes | trained.notes)))


def choose_levels(name, size, sizes, cell_size, notes):
    """(total stride, number of maps to stop at or None, strides of the levels, their indices) from the sizes of all maps."""
    stride, stop = total_stride(name, size, sizes[-1]), None
    if stride > 32 and cell_size is None and any(side % stride for side in size):
        stop = next(i for i, out in enumerate(sizes) if total_stride(name, size, out) > 32)
        notes.append(f'the level of stride {stride} is left out, since {size[0]}x{size[1]} is no multiple of {stride}: '
                     'the layers behind stride 32 are not pretrained')
        stride = 32
    check_sizes(name, size, stride, cell_size or stride, notes)
    strides = [size[0] // h if size[0] * w == size[1] * h and not size[0] % h else None for h, w in sizes][:stop]
    wanted = [stride // 2 ** i for i in reversed(range(min(4, stride.bit_length() - 1)))]
    reductions = tuple(s for s in wanted if s in strides)
    if stride not in reductions:
        raise Refused(f'{name} has no feature map of stride {stride} at {size[0]}x{size[1]}: its maps are {sizes}')
    if len(reductions) < len(wanted):
        notes.append(f'no feature map of stride {", ".join(str(s) for s in wanted if s not in reductions)}: '
                     'the decoder gets nothing from the encoder there')
    return stride, stop, reductions, tuple(max(i for i, s in enumerate(strides) if s == want) for want in reductions)


def measure(cnn, image, taps):
    """The maps of a dense forward, and whether they came with aligned padding, used where they are no pyramid without."""
    def whole(maps):
        return all(not (image.shape[2] % out.shape[2] or image.shape[3] % out.shape[3]) for out in maps)

    maps = Watch(cnn).run(image, partial(feature_maps, taps=taps))
    if not whole(maps):
        try:
            aligned = Watch(cnn).run(image, partial(feature_maps, taps=taps), aligned=True)
        except Refused:  # windows that grow with their padding need not fit what follows
            return maps, False
        if [out.shape for out in aligned] != [out.shape for out in maps] and whole(aligned):
            return aligned, True
    return maps, False


def total_stride(name, size, smallest):
    """The power of two that turns the image into its smallest map, rounded down or up where it does not divide."""
    for stride in (2 ** i for i in range(1, 12)):
        if all(side // stride == out for side, out in zip(size, smallest)) or \
                all(-(-side // stride) == out for side, out in zip(size, smallest)):
            return stride
    raise Refused(f'{name} turns an image of {size[0]}x{size[1]} into a map of {smallest[0]}x{smallest[1]}: its total '
                  'stride is no power of two, which the decoder needs (it doubles)')


def check_sizes(name, size, stride, cell, notes=()):
    """Refuse a cell or an image size that does not fit the network's total stride."""
    why = ''.join(f' ({note})' for note in notes if note.startswith('cells of'))
    if cell < 1 or cell % stride or (cell // stride) & (cell // stride - 1):
        raise ValueError(f'cell_size {cell} does not fit {name}, whose total stride is {stride}: '
                         f'give {stride}, {2 * stride} or another {stride} times a power of two')
    for what, side in zip(('height', 'width'), size):
        if side % cell:
            nearest = sorted({max(side // cell, 1) * cell, (side // cell + 1) * cell})
            raise ValueError(f'input_size: the {what} {side} is no multiple of the cell, {cell} px{why}: '
                             f'give {" or ".join(map(str, nearest))}')
    if size[0] * size[1] < 2 * cell * cell:
        raise ValueError(f'an image of {size[0]}x{size[1]} is a single cell of {cell} px{why}, and one must be visible '
                         f'and one hidden: give input_size={2 * cell} or more')


def parts(cnn, keys):
    """{module: number of parameters}: the outermost modules that hold none but these parameters."""
    rest, sizes = [name for name, _ in cnn.named_parameters() if name not in set(keys)], {}
    for key in keys:
        names = key.split('.')
        prefixes = ('.'.join(names[:i]) for i in range(1, len(names) + 1))
        part = next(prefix for prefix in prefixes if not any(f'{name}.'.startswith(f'{prefix}.') for name in rest))
        sizes[part] = sizes.get(part, 0) + cnn.get_parameter(key).numel()
    return sizes


def idle_parts(cnn, unused, called):
    """Modules with convolutions or linear layers that are run for nothing: no feature map depends on them."""
    run = {id(p) for module in called for p in module.parameters(recurse=False) if p.ndim > 1}
    idle = [key for key in unused if id(cnn.get_parameter(key)) in run]
    return [part for part in parts(cnn, unused) if any(f'{key}.'.startswith(f'{part}.') for key in idle)]


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


def some_visible(images, grid):
    """The first k cells of each image, k prime: no other axis of a tensor is likely to be so many times the next."""
    cells = grid[0] * grid[1]
    k = next(k for k in range(cells - 1, 0, -1) if all(k % d for d in range(2, k)))
    return torch.arange(k).expand(images, k)


def is_pointwise(func, name):
    """Whether torch tags an operator, or the one that it is the in-place form of, as pointwise."""
    base = getattr(torch.ops.aten, name[:-1], None) if name.endswith('_') and not name.startswith('_') else None
    return torch.Tag.pointwise in func.tags or base is not None and any(
        torch.Tag.pointwise in getattr(base, overload).tags for overload in base.overloads())


def stays_in_cells(x, out, step, planes, dim):
    """Whether a slice takes all of the image plane, or every n-th position of it where n divides the side of a cell."""
    return out.shape[dim] * step == x.shape[dim] and all(x.shape[b] % step == 0 for a, b in planes if dim in (a, b))


def is_linear(left, right):
    """Whether a product of batches of matrices is no attention: a weighted mean (one column), or one matrix for all."""
    return right.shape[-1] == 1 or any(t.shape[0] == 1 or t.stride(0) == 0 for t in (left, right))


class _Watched(Plane):
    """A plane that knows whether a rule is at work, and what is worth a note."""

    def __init__(self, geometry, notes):
        super().__init__(geometry)
        self.ruled, self.notes = False, notes

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.ruled = rule_of(function) is not None
        try:
            return super().__torch_function__(function, types, args, kwargs)
        finally:
            self.ruled = False
            for _, padding in self.paddings:
                if padding['mode'] != 'constant':
                    self.notes.add(f'pads by "{padding["mode"]}", which a hidden neighbour cannot imitate: zeros are there')


class Watch(TorchDispatchMode):
    """Sees every operator of a forward together with the module that called it: on strips, or densely without a grid."""

    def __init__(self, cnn, grid=None):
        super().__init__()
        self.cnn, self.grid, self.plane = cnn, grid, None
        self.stack, self.called, self.notes = [('', cnn)], [], set()

    def run(self, image, maps_of, aligned=False, training=False):
        """The feature maps of a forward, with its graph; every module's mode is put back. Raises Refused, CellTooSmall."""
        modes = {module: module.training for module in self.cnn.modules()}
        handles = [handle for name, module in self.cnn.named_modules() for handle in (
            module.register_forward_pre_hook(partial(self.enter, name)), module.register_forward_hook(self.leave))]
        x = image
        if self.grid is not None:
            geometry = Geometry(some_visible(len(image), self.grid).to(image.device), self.grid)
            x, self.plane = geometry.to_strip(image), _Watched(geometry, self.notes)
        try:
            self.cnn.train(training)
            with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]), self, \
                    safe_convolutions(image.device), self.plane or nullcontext(), \
                    AlignedPadding() if aligned else nullcontext():
                maps = maps_of(self.cnn, x)
            if training:
                self.run_backward(maps)
            return maps
        except Refused:
            raise
        except CellTooSmall as error:
            raise CellTooSmall(f'{self.where()} {error}') from error
        except Exception as error:  # whatever a network of the user's can raise
            if str(error).startswith('levels: ') or 'feature pyramid' in str(error):
                raise
            if self.plane is not None:
                self.refuse(str(error) if type(error) is ValueError else
                            f'cannot run on a strip of visible cells ({type(error).__name__}: {error})')
            raise Refused(f'{type(self.cnn).__name__} cannot run on an image {tuple(image.shape)}: '
                          f'{type(error).__name__} {error}. If it is too small, give a larger --input_size') from error
        finally:
            for handle in handles:
                handle.remove()
            for module, mode in modes.items():
                module.training = mode

    def run_backward(self, maps):
        """Refuse a network that runs modules again in the backward pass, where no plane is on: its gradients would be wrong."""
        ran, outputs, failure = len(self.called), [out for out in maps if out.requires_grad], None
        try:
            torch.autograd.backward(outputs, [torch.ones_like(out) for out in outputs])
        except RuntimeError as error:  # torch may find by itself that a second run differs from the first
            failure = error
        again = [f'its module "{name}"' for name, module in self.cnn.named_modules() if module in self.called[ran:]]
        if again or isinstance(failure, CheckpointError):
            raise Refused(f'{type(self.cnn).__name__} runs {again[0] if again else "something"} again in the backward pass '
                          '(activation checkpointing), where there is no mask: switch that off for pretraining') from failure
        if failure:
            raise failure

    def enter(self, name, module, inputs):
        self.stack.append((name, module))
        if isinstance(module, nn.modules.instancenorm._InstanceNorm) and inputs and values_of_channel(module, inputs[0]) == 1:
            raise Refused(f'{type(self.cnn).__name__} cannot be pretrained at this size: {self.where()} {NO_DEVIATION}')
        self.called.append(module)

    def leave(self, module, inputs, output):
        self.stack.pop()

    def planes(self, x):
        """The pairs of axes of x that may be the strip, told by their sizes: none, one, or more by coincidence."""
        return [(a, a + 1) for a in range(1, x.ndim - 1)
                if x.shape[a] == self.plane.visible * x.shape[a + 1] and x.shape[a] > 1]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        tensors = [t for arg in args for t in (arg if isinstance(arg, (tuple, list)) else [arg]) if torch.is_tensor(t)]
        if 'attention' in name or name in ('bmm', 'baddbmm') and not is_linear(*tensors[-2:]):
            self.refuse(f'is attention ({name})', 'Transformers and hybrids have pretraining of their own (MAE and the like); '
                        'for this one use a convolutional network, such as the hybrid\'s relatives without attention')
        out = func(*args, **(kwargs or {}))
        if self.plane is not None and self.plane.ruled and name in NORMS:
            self.refuse(f'calls {name} on the canvas, where hidden positions would enter its statistics')
        if self.plane is not None and not (self.plane.ruled or name in SAFE or is_pointwise(func, name)):
            self.examine(name, tensors, args, out)
        if name == '_to_copy' and out.is_floating_point() and out.dtype.itemsize < tensors[0].dtype.itemsize:
            self.notes.add(f'{type(self.stack[-1][1]).__name__} computes in {str(out.dtype).removeprefix("torch.")}')
        return out

    def examine(self, name, tensors, args, out):
        """Refuse an operator that mixes the positions of a strip in a way that no rule covers."""
        planes = [plane for t in tensors for plane in self.planes(t)]
        if not planes:
            return
        x = tensors[0]
        if name in REDUCTIONS or name in ALONG:
            place, default = ALONG.get(name, (REDUCTIONS.get(name), None))
            dims = args[place] if len(args) > place else default
            dims = range(x.ndim) if dims is None or dims == [] else dims if isinstance(dims, (tuple, list)) else [dims]
            dims = {dim % x.ndim for dim in dims}
            whole = name in REDUCTIONS or name in ('max', 'min') and len(args) == 1
            if any(not dims & set(plane) or whole and dims >= set(plane) for plane in planes):
                return
            if name == 'slice' and stays_in_cells(x, out, args[4] if len(args) > 4 else 1, planes, *dims):
                return
            self.refuse(f'calls {name} along one side of the image only' if name in REDUCTIONS else
                        f'cuts, joins or runs along the image plane with {name}')
        elif name == 'repeat':
            if any(args[1][a - x.ndim] != 1 or args[1][b - x.ndim] != 1 for a, b in planes):
                self.refuse('repeats the image plane')
        elif name == 'index':
            if any(i in plane for plane in planes for i, index in enumerate(args[1]) if index is not None):
                self.refuse('picks positions of the image plane by index')
        elif name in NEAREST:
            if any(new % old for new, old in zip(out.shape[2:], x.shape[2:])):
                self.refuse('interpolates by a factor that is no whole number')
        elif not ('adaptive' in name and 'pool2d' in name and all(t.shape[2:] == (1, 1) for t in (
                out if isinstance(out, tuple) else (out,)))):
            self.refuse(f'calls {name}')

    def where(self):
        name, module = self.stack[-1]
        return f'its module "{name or "(top)"}" ({type(module).__name__})'

    def refuse(self, what, remedy=None):
        raise Refused(
            f'{type(self.cnn).__name__} cannot be pretrained sparsely as it is: {self.where()} {what}; visible cells would mix '
            'with others in a way that is not understood. ' + (remedy or REMEDY))
