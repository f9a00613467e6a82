"""Forward and backward of the sparse encoder over the dense timm network, in alternating runs.

    python -m benchmarks.encoder [resnet50 convnext_small ...] [--batch 8 --input_size 224 --mask_ratio 0.6
    --rounds 7]

The dense network is timed in both memory layouts; the ratio is against the faster one.
"""
import copy

import torch

from benchmarks.timing import alternate, arguments, machine
from common.networks.convolutions import safe_convolutions
from common.networks.create import create_cnn
from pretrain.encoder import SparseEncoder
from pretrain.sparse.geometry import Geometry


def main():
    args, device = arguments(__doc__, ['resnet50', 'convnext_small'])
    print(f'{machine(device)}; fp32, batch {args.batch}, {args.input_size} px, mask ratio {args.mask_ratio}')
    for name in args.models:
        dense = create_cnn(name).to(device).train()
        channels_last = copy.deepcopy(dense).to(memory_format=torch.channels_last)
        encoder = SparseEncoder(copy.deepcopy(dense), (args.input_size, args.input_size)).train()
        encoder = encoder.to(memory_format=torch.channels_last)
        images = torch.randn(args.batch, 3, args.input_size, args.input_size, device=device)
        last = images.to(memory_format=torch.channels_last)
        cells = encoder.grid[0] * encoder.grid[1]
        visible = round(cells * (1 - args.mask_ratio))

        def backward(maps):
            sum(x.mean() for x in maps).backward()

        def dense_maps(network, images):
            with safe_convolutions(device):
                return network.forward_intermediates(images, intermediates_only=True)

        def sparse(encoder=encoder, last=last, cells=cells, visible=visible):
            seen = torch.rand(args.batch, cells, device=device).argsort(1)[:, :visible].sort(1).values
            backward(encoder(last, Geometry(seen, encoder.grid)))

        medians = alternate({
            'dense': lambda net=dense, x=images: backward(dense_maps(net, x)),
            'dense channels last': lambda net=channels_last, x=last: backward(dense_maps(net, x)),
            'sparse': sparse}, args.rounds, device)
        best = min('dense', 'dense channels last', key=medians.get)
        print(f'{name:20} ' + ', '.join(f'{case} {1000 * s:.0f} ms' for case, s in medians.items())
              + f': sparse / dense = {medians.ratio("sparse", best):.3f}')


if __name__ == '__main__':
    main()
