"""Seconds of a training iteration of Mask R-CNN, forward and backward, and of its CNN with the pyramid alone.

    python -m benchmarks.detection [resnet50 convnext_tiny ...] [--batch 2 --input_size 256 --rounds 5]
"""
import torch

from benchmarks.timing import alternate, arguments, machine
from common.networks.create import create_cnn
from downstream_coco.detector import Detector

OBJECTS = 7  # of an image, as COCO has on average


def main():
    args, device = arguments(__doc__, ['resnet50', 'convnext_tiny'])
    side = args.input_size
    print(f'{machine(device)}; fp32, batch {args.batch}, {side} px, {OBJECTS} objects an image, 80 categories')
    for name in args.models:
        detector = Detector(create_cnn(name), 80).to(device, memory_format=torch.channels_last).train()
        images = torch.randn(args.batch, 3, side, side, device=device).to(memory_format=torch.channels_last)
        corners = torch.rand(OBJECTS, 2, device=device) * side / 2
        masks = torch.ones(OBJECTS, side, side, dtype=torch.uint8, device=device)
        target = {'boxes': torch.cat([corners, corners + side / 3], 1), 'masks': masks, 'size': (side, side),
                  'labels': torch.randint(1, 81, (OBJECTS,), device=device)}

        def step(detector=detector, images=images, target=target):
            detector(images, [target] * len(images)).backward()

        def backbone(detector=detector, images=images):
            sum(one.mean() for one in detector.backbone(images).values()).backward()

        medians = alternate({'iteration': step, 'CNN and pyramid': backbone}, args.rounds, device)
        print(f'{name:20} ' + ', '.join(f'{case} {seconds:.2f} s' for case, seconds in medians.items())
              + f': {medians.ratio("iteration", "CNN and pyramid"):.2f} times the CNN and pyramid')


if __name__ == '__main__':
    main()
