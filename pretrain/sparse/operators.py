"""Which operators of torch are safe on a strip, and what is wrong with the others.

A strip (B, C, k*p, p) holds the visible cells of an image one below the other (plane.py). An operator is safe
if it treats each position alone, only changes the view, or runs over all positions of the strip at once. One
that runs along one side of the strip, cuts it or joins it mixes cells that are no neighbours.

`name` is an operator's name without its namespace and overload, as in `torch.ops.aten.<name>`. `strip_axes`
are the pairs of neighbouring axes of a tensor that may be the two axes of a strip, judged by their sizes.
"""
import torch

# A norm over a strip runs over exactly the visible positions of the image.
NORMS = frozenset('''
    native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_with_update
    cudnn_batch_norm miopen_batch_norm native_group_norm
'''.split())
# Safe besides all that torch tags as pointwise. bmm and baddbmm are here since they are refused as attention
# before, unless they are a weighted mean over the image or a linear layer.
SAFE = NORMS | frozenset('''
    native_layer_norm native_dropout bernoulli bernoulli_ rand_like randn_like addmm mm view _unsafe_view
    permute transpose t expand squeeze unsqueeze detach alias clone _to_copy lift_fresh hardswish hardswish_
    mish mish_ _prelu_kernel log_sigmoid_forward leaky_relu leaky_relu_ rsub masked_fill copy_ fill_
    zeros_like ones_like empty_like new_empty new_zeros new_ones new_full stack bmm baddbmm
    pixel_shuffle pixel_unshuffle native_channel_shuffle channel_shuffle
'''.split())

# {name: place of the argument that holds the axes}. Reductions are safe over the whole strip, or not over it at all.
REDUCTIONS = {'mean': 1, 'sum': 1, 'amax': 1, 'amin': 1, 'var': 1, 'var_mean': 1, 'std': 1, 'std_mean': 1,
              'logsumexp': 1, 'linalg_vector_norm': 2}
# {name: (place of the argument that holds the axes, its default)}. These are safe along any other axis than the strip's.
ALONG = {
    'cat': (1, 0), 'split': (2, 0), 'split_with_sizes': (2, 0), 'slice': (1, 0), 'select': (1, 0),
    'unbind': (1, 0), '_softmax': (1, None), '_log_softmax': (1, None), 'max': (1, None), 'min': (1, None),
    'argmax': (1, None), 'argmin': (1, None), 'glu': (1, -1), 'flip': (1, None), 'roll': (2, None),
    'topk': (2, -1), 'sort': (1, -1), 'cumsum': (1, None), 'prod': (1, None), 'index_select': (1, None),
    'gather': (1, None),
}
NEAREST = ('upsample_nearest2d', '_upsample_nearest_exact2d')  # safe by whole factors


def tensors_of(args):
    """The tensors among the arguments of an operator, also those in lists."""
    flat = [one for arg in args for one in (arg if isinstance(arg, (tuple, list)) else [arg])]
    return [one for one in flat if torch.is_tensor(one)]


def is_pointwise(func, name):
    """Whether torch tags an operator, or the one that it is the in-place form of, as pointwise."""
    if torch.Tag.pointwise in func.tags:
        return True
    if not name.endswith('_') or name.startswith('_'):
        return False
    base = getattr(torch.ops.aten, name[:-1], None)
    if base is None:
        return False
    return any(torch.Tag.pointwise in getattr(base, overload).tags for overload in base.overloads())


def is_attention(name, tensors):
    """Whether an operator is attention, or a product of matrices that can only be that."""
    return 'attention' in name or name in ('bmm', 'baddbmm') and not is_linear(*tensors[-2:])


def is_linear(left, right):
    """Whether a product of batches of matrices is no attention: a weighted mean (one column), or one matrix for all."""
    return right.shape[-1] == 1 or any(t.shape[0] == 1 or t.stride(0) == 0 for t in (left, right))


def fault_on_strip(name, args, out, strip_axes):
    """What is wrong with an operator on a strip, as the end of a sentence; None if it is safe.

    args and out are its arguments and its result. strip_axes: of its tensors.
    """
    x = tensors_of(args)[0]
    fault = None
    if name in REDUCTIONS or name in ALONG:
        fault = fault_along_axes(name, args, x, out, strip_axes)
    elif name == 'repeat':
        repeats = args[1]
        if any(repeats[a - x.ndim] != 1 or repeats[b - x.ndim] != 1 for a, b in strip_axes):
            fault = 'repeats the image plane'
    elif name == 'index':
        indexed = [axis for axis, index in enumerate(args[1]) if index is not None]
        if any(axis in pair for pair in strip_axes for axis in indexed):
            fault = 'picks positions of the image plane by index'
    elif name in NEAREST:
        if any(new % old for new, old in zip(out.shape[2:], x.shape[2:])):
            fault = 'interpolates by a factor that is no whole number'
    elif not is_global_pool(name, out):
        fault = f'calls {name}'
    return fault


def fault_along_axes(name, args, x, out, strip_axes):
    """`fault_on_strip` for reductions and for what runs along an axis."""
    axes = axes_of(name, args, x.ndim)
    reduces = name in REDUCTIONS or name in ('max', 'min') and len(args) == 1
    for pair in strip_axes:
        if not axes & set(pair) or reduces and axes >= set(pair):
            return None
    if name == 'slice':
        step = args[4] if len(args) > 4 else 1
        axis, = axes
        if stays_in_cells(x, out, step, strip_axes, axis):
            return None
    return f'calls {name} along one side of the image only' if name in REDUCTIONS else \
        f'cuts, joins or runs along the image plane with {name}'


def axes_of(name, args, ndim):
    """The axes along which an operator of REDUCTIONS or ALONG runs, all of them if it names none."""
    place, default = ALONG[name] if name in ALONG else (REDUCTIONS[name], None)
    axes = args[place] if len(args) > place else default
    if axes is None or axes == []:
        axes = range(ndim)
    elif not isinstance(axes, (tuple, list)):
        axes = [axes]
    return {axis % ndim for axis in axes}


def stays_in_cells(x, out, step, strip_axes, axis):
    """Whether a slice takes all of the image plane, or every n-th position of it where n divides the side of a cell."""
    takes_all = out.shape[axis] * step == x.shape[axis]
    return takes_all and all(x.shape[b] % step == 0 for a, b in strip_axes if axis in (a, b))


def is_global_pool(name, out):
    """Whether an operator is an adaptive pool to a single position."""
    outputs = out if isinstance(out, tuple) else (out,)
    return 'adaptive' in name and 'pool2d' in name and all(t.shape[2:] == (1, 1) for t in outputs)
