"""Each way of convolving a strip, layer by layer: the numbers behind the thresholds of pretrain/accelerated.

    python -m benchmarks.layers [--batch 8 --rounds 5]

Forward and backward pass of one convolution at 224 px with 60 % of the cells hidden, fp32, in ms: on the
dense map, by the three ways of pretrain/accelerated/convolutions.py, and in the plain form (`plain`: to the
canvas, the layer's own function and autograd, back to the strip). In brackets the way that `convolve`
chooses. For depthwise layers also the gradient of the weight on the dense map, by torch and by
pretrain/accelerated/gradients.py.
"""
import argparse
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.timing import alternate, machine
from pretrain.accelerated import convolutions
from pretrain.accelerated.gradients import depthwise_weight_gradient
from pretrain.masking import draw_visible
from pretrain.sparse.geometry import Geometry

GRID, NUM_VISIBLE = (7, 7), 20
LAYERS = (  # kernel, stride, channels in and out, positions along the side of a cell before it, groups
    (3, 1, 64, 64, 8, 1),
    (3, 1, 128, 128, 4, 1),
    (3, 1, 256, 256, 2, 1),
    (3, 1, 512, 512, 1, 1),
    (3, 2, 256, 256, 4, 1),
    (7, 2, 3, 64, 32, 1),
    (7, 1, 96, 96, 8, 96),
    (7, 1, 192, 192, 4, 192),
    (3, 1, 96, 96, 8, 96),
)
WAYS = {'CellConvolutionBackward': 'cells', 'WindowProductBackward': 'windows', 'CanvasConvolutionBackward': 'canvas'}


def both_ways(forward, weight, inputs):
    """Forward and backward pass."""
    out = forward()
    torch.autograd.grad(out, [weight, *inputs], torch.ones_like(out))


def cases_of(kernel, stride, channels, out_channels, p, groups, batch):
    """{way: a function that computes the layer forth and back}, and the way that `convolve` chooses."""
    visible = draw_visible(batch, GRID[0] * GRID[1], NUM_VISIBLE)
    geometry = Geometry(visible, GRID, accelerated=True)
    is_stem = channels == 3  # images need no gradient
    canvas = torch.randn(batch, channels, GRID[0] * p, GRID[1] * p).to(memory_format=torch.channels_last)
    canvas.requires_grad_(not is_stem)
    strip = geometry.to_strip(canvas).detach().requires_grad_(not is_stem)
    weight = torch.randn(out_channels, channels // groups, kernel, kernel).to(memory_format=torch.channels_last)
    weight.requires_grad_()
    pad = kernel // 2
    convolve = partial(F.conv2d, weight=weight, stride=stride, padding=pad, groups=groups)
    given = geometry, strip, weight, None, stride, (pad, pad)

    def plain():
        return geometry.to_strip(convolve(geometry.to_canvas(strip)))

    forwards = {
        'dense': (partial(convolve, canvas), canvas),
        'plain': (plain, strip),
        'canvas': (partial(convolutions.convolve_canvas, *given, groups), strip),
        'cells': (partial(convolutions.convolve_cells, *given, groups), strip),
    }
    if groups == 1:
        forwards['windows'] = partial(convolutions.convolve_windows, *given), strip
    cases = {}
    for way, (forward, x) in forwards.items():
        cases[way] = partial(both_ways, forward, weight, [x] if x.requires_grad else [])
    if groups > 1:
        grad = torch.randn_like(canvas)
        cases["gradient of the weight, torch's"] = partial(
            torch.ops.aten.convolution_backward, grad, canvas, weight, None, (1, 1), (pad, pad), (1, 1), False,
            (0, 0), groups, (False, True, False))
        cases['gradient of the weight, ours'] = partial(depthwise_weight_gradient, grad, canvas, (pad, pad))
    chosen = convolutions.convolve(geometry, strip, weight, None, stride, pad, groups)
    return cases, WAYS[chosen.grad_fn.name()]


def main(argv=None):
    parser = argparse.ArgumentParser('benchmarks.layers', description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--rounds', type=int, default=5)
    args = parser.parse_args(argv)
    device = torch.device('cpu')
    print(f'{machine(device)}; fp32, batch {args.batch}')
    for kernel, stride, channels, out_channels, p, groups in LAYERS:
        cases, chosen = cases_of(kernel, stride, channels, out_channels, p, groups, args.batch)
        seconds = alternate(cases, args.rounds, device)
        kind = f'{kernel}x{kernel}{" depthwise" * (groups > 1)}{", stride 2" * (stride == 2)}'
        print(f'{kind:16} {channels:3} channels, cells of {p} x {p}: '
              + ', '.join(f'{way} {1000 * seconds[way]:.1f}' for way in cases) + f' [{chosen}]', flush=True)


if __name__ == '__main__':
    main()
