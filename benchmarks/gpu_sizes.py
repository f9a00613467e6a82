"""How large everything is that the parts of `benchmarks.gpu` run. It loads no torch."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """How large everything is. turn: steps in a turn. small_models, small_batch: where numbers are compared."""
    batch: int = 64
    input_size: int = 224
    decoder_width: int = 768
    turn: int = 10
    rounds: int = 3
    small_models: tuple = ('resnet50', 'convnext_tiny')
    small_batch: int = 16
    convmae_batch: int = 128  # of ConvMAE
    convvit: tuple = ((256, 384, 768), (2, 2, 11), 12)  # widths, depths and heads of its network
    segmentation: tuple = (16, 512, 512)  # images of a batch, sides of a crop in pixels, channels of the head
    pictures: int = 64  # JPEGs that differ
    copies: int = 120  # of each of them; as many steps has the run that reads them


TINY = Sizes(batch=2, input_size=64, decoder_width=32, turn=2, rounds=1, small_batch=2, pictures=4, copies=12,
             small_models=('test_resnet', 'test_convnext'), convmae_batch=2, convvit=((32, 48, 96), (1, 1, 2), 4),
             segmentation=(2, 64, 32))


def sizes_for(device, is_quick):
    """device: the kind of it, 'cuda' or 'cpu'."""
    if device == 'cpu':
        return TINY
    return Sizes(rounds=2) if is_quick else Sizes()
