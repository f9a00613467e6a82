"""Strips: how a CNN runs on the visible cells of an image (SparK, section 3.1).

The visible cells of an image are stacked into a **strip**. Every function that looks at one position, or at all
positions of one image at once (1x1 convolutions, norms, activations, squeeze-and-excite, ...), is right on a strip
as it is. Functions whose window overlaps neighbouring cells need the image plane: the strip is scattered onto a
**canvas**, the function runs there, and the visible cells are gathered again. That is submanifold sparse convolution,
written with dense kernels. Of a convolution, only the outputs that are kept are computed where that is faster: windows.py.

A network is left as it is, its code and its modules. While a `Plane` is on, the few functions of torch through which a
network sees neighbouring positions run by the rules below, whoever calls them: a layer of torch or timm, or a `forward`
that pads and pools itself. **Hidden positions count as the function's own padding.** All other functions are right on a
strip, or the probe refuses them (probe.py). `on_plane` gives a rule to a function or a layer of your own.

Legend: B batch, C channels, (h, w) grid of cells, L = h*w, k visible cells an image, p the side of a cell at this stage
(cell size / stride). A strip is (B, C, k*p, p), a canvas (B, C, h*p, w*p).
"""
from functools import partial

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode, wrap_torch_function

from common.networks.convolutions import pair
from pretrain.accelerated.windows import (
    CanvasConvolution,
    CellConvolution,
    ToCanvas,
    ToStrip,
    WindowProduct,
    as_autocast,
)


class Geometry:
    """Where the visible cells of one batch lie: the way from images to strips and back.

    visible: LongTensor (B, k), row-major indices of the visible cells; their order is that of the strip. grid: (h, w).
    """

    def __init__(self, visible, grid):
        self.visible, self.grid = visible, grid
        self._tables = {}  # computed once, used by every layer of a stage

    def once(self, name, *arguments):
        """What the method of that name returns."""
        key = (name, *arguments)
        if key not in self._tables:
            self._tables[key] = getattr(self, name)(*arguments)
        return self._tables[key]

    def runs(self, p):
        """(B*k*p,): where the rows of the visible cells, p pixels each, stand on a canvas cut into such rows."""
        h, w = self.grid
        image = torch.arange(len(self.visible), device=self.visible.device)[:, None]
        top = (image * h + self.visible // w) * p
        lines = top[..., None] + torch.arange(p, device=top.device)
        return (lines * w + (self.visible % w)[..., None]).flatten()

    def around(self, p, before, after):
        """(n, P_y, P_x): the pixels of a strip (see windows.py) that stand in each cell, and (above, left) `before` and (below,
        right) `after` it."""
        (B, k), (h, w), device = self.visible.shape, self.grid, self.visible.device
        reach = [-(-max(sides) // p) for sides in zip(before, after)]  # in cells
        width = w + 2 * reach[1]
        y, x = self.visible // w + reach[0], self.visible % w + reach[1]
        number = torch.full((B, (h + 2 * reach[0]) * width), -1, device=device)  # of the visible cell that stands there
        number = number.scatter(1, y * width + x, torch.arange(B * k, device=device).view(B, k)).view(B, -1, width)
        lines, columns = (torch.arange(-b, p + a, device=device) for b, a in zip(before, after))
        cell = number[torch.arange(B, device=device)[:, None, None, None], (y[..., None] + lines.div(p, rounding_mode='floor'))
                      [..., None], (x[..., None] + columns.div(p, rounding_mode='floor'))[:, :, None]].flatten(0, 1)
        pixels = cell * p * p + (lines % p * p)[:, None] + columns % p
        return torch.where(cell < 0, B * k * p * p, pixels)

    def windows(self, q, kernel, stride, padding):
        """(n*q*q, m): the pixels in each window of a convolution; q is the side of a cell behind it."""
        after = tuple(max(k - stride - pad, 0) for k, pad in zip(kernel, padding))
        inside = self.once('around', q * stride, padding, after)
        return inside.unfold(1, kernel[0], stride).unfold(2, kernel[1], stride).reshape(-1, kernel[0] * kernel[1])

    def uses(self, q, kernel, stride, padding):
        """(n*p*p, m'): the places in `windows`, flattened, at which each pixel stands; m' is m for stride 1."""
        p, device = q * stride, self.visible.device
        before, after = reach_of_gradient(kernel, stride, padding)
        around, side = self.once('around', q, before, after), torch.arange(p, device=device)

        def axis(k, pad, b):  # (taps, p): which weight of a window stands on a line, and the output of that window
            tap = (side + pad) % stride + stride * torch.arange(-(-k // stride), device=device)[:, None]
            return tap, ((side + pad - tap) // stride + b).clamp(min=0)

        (tap_y, y), (tap_x, x) = (axis(*sizes) for sizes in zip(kernel, padding, before))
        tap_y, window = tap_y[:, :, None, None], around[:, y][..., x]  # (n, taps, p, taps, p)
        place = window * kernel[0] * kernel[1] + tap_y * kernel[1] + tap_x
        place = torch.where((tap_y < kernel[0]) & (tap_x < kernel[1]), place, len(around) * q * q * kernel[0] * kernel[1])
        return place.permute(0, 2, 4, 1, 3).reshape(len(around) * p * p, -1)

    def overlaps(self, p, side):
        """(sources, targets) for Overlaid: of the visible cells, cut into squares of `side`, each with a pixel around it."""
        (B, k), (h, w), q, P, device = self.visible.shape, self.grid, p // side, side + 2, self.visible.device
        squares, pixels = B * k * q * q, B * h * p * w * p
        number = torch.full((B * h * q * w, q), -1, device=device)  # of the visible square that stands there
        number.index_copy_(0, self.once('runs', q), torch.arange(squares, device=device).view(-1, q))
        number = F.pad(number.view(B, h * q, w * q), (1, 1, 1, 1), value=-1)

        place = torch.arange(side, device=device)
        step = torch.arange(-1, 2, device=device)[:, None]  # to the squares before and behind
        inside = place - step * side + 1  # (3, side): where a pixel lies in these, the pixel around them counted
        reached = (inside >= 0) & (inside < P)
        y, x = (torch.arange(1, n + 1, device=device)[:, None, None] + step for n in (h * q, w * q))  # (squares, 3, side)
        square = number[:, y][..., x]  # (B, h*q, 3, side, w*q, 3, side)
        row = square * P * P + inside[:, :, None, None, None] * P + inside
        lies = (square >= 0) & reached[:, :, None, None, None] & reached
        sources = torch.where(lies, row, squares * P * P).permute(0, 1, 3, 4, 6, 2, 5).reshape(pixels, -1)

        canvas = F.pad(torch.arange(pixels, device=device).view(B, h * p, w * p), (1, 1, 1, 1), value=pixels)
        canvas = canvas.unfold(1, P, side).unfold(2, P, side).reshape(B * h * q * w, q, P * P)
        return sources, canvas.index_select(0, self.once('runs', q)).flatten()

    def convolve(self, strip, weight, bias, stride, padding, groups):
        """The convolution of a strip, with paddings (rows, columns) that keep its size / stride: as on the canvas."""
        p, kernel, wants = strip.shape[3], tuple(weight.shape[2:]), strip.requires_grad and torch.is_grad_enabled()
        q, after = p // stride, tuple(max(k - stride - pad, 0) for k, pad in zip(kernel, padding))
        if q < 4 and groups == 1 and kernel[0] * kernel[1] <= 9:
            return WindowProduct.apply(strip, weight, bias, self.once('windows', q, kernel, stride, padding),
                                       self.once('uses', q, kernel, stride, padding) if wants else None, q)
        if q >= 4 and all(b + p + a <= 2 * p for b, a in zip(padding, after)):
            before, behind = reach_of_gradient(kernel, stride, padding)
            other = wants and (p, padding, after) != (q, before, behind)
            return CellConvolution.apply(strip, weight, bias, self.once('around', p, padding, after),
                                         self.once('around', q, before, behind) if other else None, before,
                                         (stride, stride), padding, groups)
        runs, behind = self.once('runs', p), None if q == p else self.once('runs', q)
        return CanvasConvolution.apply(strip, weight, bias, runs, behind, self.grid, (stride, stride), padding, groups)

    def is_visible(self):
        """(B, L) boolean map of the grid, True where a cell is visible."""
        cells = self.grid[0] * self.grid[1]
        hidden = torch.zeros(len(self.visible), cells, dtype=torch.bool, device=self.visible.device)
        return hidden.scatter(1, self.visible, True)

    def to_strip(self, canvas):
        """(B, C, h*p, w*p) -> (B, C, k*p, p): the visible cells of each image, one below the other."""
        return ToStrip.apply(canvas, self.once('runs', canvas.shape[3] // self.grid[1]), self.grid)

    def to_canvas(self, strip, fill=0.0):
        """(B, C, k*p, p) -> (B, C, h*p, w*p); hidden positions hold fill, a number or a tensor (1, C, 1, 1)."""
        return ToCanvas.apply(strip, fill, self.once('runs', strip.shape[3]), self.grid)


def reach_of_gradient(kernel, stride, padding):
    """How many outputs of a convolution, (above, left) and (below, right) of a cell, have windows that reach into it."""
    return tuple((k - 1 - pad) // stride for k, pad in zip(kernel, padding)), tuple(-(-pad // stride) for pad in padding)


class Plane(TorchFunctionMode):
    """Context in which a network's forward runs on strips: `with Plane(geometry): cnn(strip)`.

    It belongs to one forward. Functions called inside a rule are not seen by it.
    """

    def __init__(self, geometry):
        super().__init__()
        self.geometry = geometry
        self.images, self.visible = geometry.visible.shape
        self.paddings = []  # (strip, arguments of F.pad): they wait for the next window, see `pad`

    def __torch_function__(self, function, types, args=(), kwargs=None):
        rule = RULES.get(function)
        return function(*args, **(kwargs or {})) if rule is None else rule(self, function, *args, **(kwargs or {}))

    def is_strip(self, x):
        return x.ndim == 4 and x.shape[2] == self.visible * x.shape[3]

    def padding_of(self, strip):
        for padded, padding in self.paddings:
            if padded is strip:
                return padding
        return None

    def stays(self, strip, kernel, stride, padding=0, dilation=1):
        """Whether windows stay inside the cells, so that a strip needs no plane. Raises ValueError for too large a stride."""
        kernel, stride, dilation = pair(kernel), pair(stride), pair(dilation)
        if any(strip.shape[3] % step for step in stride):
            raise CellTooSmall(f'strides by {stride[1]} where a cell is {strip.shape[3]} positions wide')
        reach = [1 + (k - 1) * d for k, d in zip(kernel, dilation)]
        padded = padding not in (0, (0, 0), [0, 0], 'valid') and (padding != 'same' or reach != [1, 1])
        return not padded and all(r <= s for r, s in zip(reach, stride)) and self.padding_of(strip) is None

    def run(self, function, strip, hidden=0.0):
        """Scatter a strip onto the canvas, where hidden positions hold a number, apply a function, gather the strip."""
        if not self.is_strip(strip) or len(strip) not in (self.images, 1):
            raise ValueError(f'has a window over a tensor {tuple(strip.shape)}, which is no map of the visible cells of '
                             f'{self.images} images')
        padding = self.padding_of(strip)
        if padding is not None and padding['mode'] == 'constant':
            hidden = padding['value']
        # A batch folded into the channels, (1, B*C, ...), as CondConv does it, is unfolded for the canvas.
        canvas = self.geometry.to_canvas(strip.reshape(self.images, -1, *strip.shape[2:]), hidden)
        if padding is not None:
            canvas = F.pad(canvas, **padding)
        out = function(canvas.reshape(len(strip), -1, *canvas.shape[2:]))
        h, w = self.geometry.grid
        if out.shape[2] % h or out.shape[3] * h != out.shape[2] * w:
            raise ValueError(f'makes a map of {out.shape[2]}x{out.shape[3]} positions, which is no whole number for each of '
                             f'{h}x{w} cells (its padding does not keep the size / stride)')
        return self.geometry.to_strip(out.reshape(self.images, -1, *out.shape[2:])).reshape(len(out), -1, *self.of(out))

    def of(self, canvas):
        """(height, width) of the strip of a canvas."""
        p = canvas.shape[3] // self.geometry.grid[1]
        return self.visible * p, p


class CellTooSmall(ValueError):
    """A layer strides past the side of a cell: a larger cell would do."""


def convolve(plane, function, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Hidden positions are 0, as in zero padding."""
    apply = partial(function, weight=weight, bias=bias, stride=stride, padding=padding, dilation=dilation, groups=groups)
    if plane.stays(input, weight.shape[2:], stride, padding, dilation):
        return apply(input)
    fits = not isinstance(padding, str) and all(k - step <= 2 * side < k for k, step, side in zip(
        weight.shape[2:], pair(stride), pair(padding)))
    if fits and len(set(pair(stride))) == 1 and pair(dilation) == (1, 1) and len(input) == plane.images and \
            plane.is_strip(input) and plane.padding_of(input) is None:
        return plane.geometry.convolve(*as_autocast(input, weight, bias), pair(stride)[0], pair(padding), groups)
    return plane.run(apply, input)


def convolve_transposed(plane, function, input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    """Hidden positions are 0."""
    apply = partial(function, weight=weight, bias=bias, stride=stride, padding=padding, output_padding=output_padding,
                    groups=groups, dilation=dilation)
    grown = any(pair(padding) + pair(output_padding)) or pair(dilation) != (1, 1)
    stays = pair(stride) == tuple(weight.shape[2:]) and not grown
    return apply(input) if stays else plane.run(apply, input)


def max_pool(plane, function, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """Hidden positions are the lowest finite number: with -inf the compiled backward indexes out of range."""
    if return_indices:
        raise ValueError('asks a pool for indices, which mean nothing on a strip')
    apply = partial(function, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode)
    stays = is_global(input, kernel_size) or plane.stays(input, kernel_size, stride or kernel_size, padding, dilation)
    return apply(input) if stays else plane.run(apply, input, torch.finfo(input.dtype).min)


def is_global(input, kernel_size):
    """Whether a pool's window is the whole map, as in F.avg_pool2d(x, x.shape[2:]): on a strip, all that is visible."""
    return pair(kernel_size) == tuple(input.shape[2:])


def average_pool(plane, function, input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
                 divisor_override=None):
    """Hidden positions are 0, and counted where the pool counts what it pads (what ceil_mode reaches beyond it does not)."""
    apply = partial(function, kernel_size=kernel_size, stride=stride, padding=padding, ceil_mode=ceil_mode,
                    count_include_pad=count_include_pad, divisor_override=divisor_override)
    if is_global(input, kernel_size) or plane.stays(input, kernel_size, stride or kernel_size, padding):
        return apply(input)
    padded = plane.padding_of(input) is not None
    if padded and any(pair(padding)) and not count_include_pad:
        raise ValueError('averages what was padded before, with another padding that it does not count')
    average = plane.run(apply, input)
    if padded or divisor_override or count_include_pad and any(pair(padding)):
        return average
    return average / plane.run(apply, torch.ones_like(input[:, :1]))


def pad(plane, function, input, pad, mode='constant', value=None):
    """A strip has no border to pad: the padding waits for the window that follows, and is applied on its canvas.

    What hides there, then, is what the padding holds; a reflection, which a hidden neighbour cannot give, counts as 0 there.
    """
    if not plane.is_strip(input) or not any(pad[:4]):
        return function(input, pad, mode, value)
    if any(pad[4:]) or plane.padding_of(input) is not None:
        raise ValueError(f'pads by {tuple(pad)}, more than the image plane, or for the second time')
    if mode == 'constant':
        value = max(value or 0.0, torch.finfo(input.dtype).min)  # not -inf: see max_pool
    strip = input.view_as(input)
    plane.paddings.append((strip, {'pad': pad, 'mode': mode, 'value': value}))
    return strip


RULES = {
    torch.conv2d: convolve,
    torch.conv_transpose2d: convolve_transposed,
    torch.max_pool2d: max_pool,
    F.max_pool2d: max_pool,
    F.avg_pool2d: average_pool,
    F.pad: pad,
}


def on_plane(function, hidden=0.0):
    """Decorator for a function, or a `forward`, of your own that looks beyond a position in a way of its own:

        class Shift(nn.Module):
            @on_plane
            def forward(self, x):          # x (B, C, H, W): the image plane, hidden positions 0
                return torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], 3)

    On strips its first positional tensor becomes a canvas whose hidden positions hold `hidden`, its result a strip again;
    elsewhere nothing changes. It must treat hidden positions as it does its padding, and hold no norm, whose statistics they
    would enter.
    """
    def rule(plane, _, *args, **kwargs):
        at = next((i for i, arg in enumerate(args) if torch.is_tensor(arg)), None)
        if at is None:
            raise ValueError('calls what @on_plane stands above without a positional tensor: give the feature map as one')
        return plane.run(lambda canvas: function(*args[:at], canvas, *args[at + 1:], **kwargs), args[at], hidden)

    overridable = wrap_torch_function(lambda *args, **kwargs: args)(function)
    RULES[overridable] = rule
    return overridable


class AlignedPadding(TorchFunctionMode):
    """Context in which odd windows without padding are padded by half their size: networks with "valid" padding then have
    maps of (H/s, W/s), with the same weights. Their borders differ from the network's own."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        given = {**dict(zip(ARGUMENTS.get(function, ()), args)), **(kwargs or {})}
        if function is F.pad:
            padded = function(*args, **(kwargs or {}))
            padded.is_padded = True  # for the window that follows
            return padded
        if function not in ARGUMENTS or pair(given.get('padding', 0)) != (0, 0) or hasattr(given['input'], 'is_padded'):
            return function(*args, **(kwargs or {}))
        kernel = given['weight'].shape[2:] if 'weight' in given else pair(given['kernel_size'])
        padding = tuple(k // 2 for k in kernel) if all(k % 2 for k in kernel) else 0
        return function(**{**given, 'padding': padding})


POOL = ('input', 'kernel_size', 'stride', 'padding')
ARGUMENTS = {  # of the functions that AlignedPadding changes, in their order
    torch.conv2d: ('input', 'weight', 'bias', 'stride', 'padding', 'dilation', 'groups'),
    torch.max_pool2d: (*POOL, 'dilation', 'ceil_mode'),
    F.max_pool2d: (*POOL, 'dilation', 'ceil_mode', 'return_indices'),
    F.avg_pool2d: (*POOL, 'ceil_mode', 'count_include_pad', 'divisor_override'),
}
