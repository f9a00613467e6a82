"""How strong the frequencies of feature maps are, by depth, and how much the maps vary in space.

    python -m analysis.fourier resnet50=output_a/resnet50_1kpretrained.pth resnet50=timm --data_path=DIR
    python -m analysis.fourier resnet50 resnet50=timm --names=untrained,supervised --data_path=DIR --out=DIR

It writes fourier.png and, with its numbers, fourier.json. docs/analysis.md says what they mean.
"""
from common.start import start_tool

if __name__ == '__main__':
    start_tool()

from analysis.arguments import common_parts, parsed, parser_of
from analysis.fourier_figure import fourier_figure
from analysis.images import drawn, find_images
from analysis.kept import write_json
from analysis.measured import TRIED, Measured
from common.cli import errors_in_one_sentence, reader_may_leave
from common.distributed import this_process
from common.live_line import LiveLine
from common.reliability.checkpoint import write_atomically
from common.training.log import duration
from common.words import counted


def fourier(networks, settings, out, pattern=None, say=print):
    """Measure the feature maps of networks, and write fourier.json and fourier.png into the folder out.

    Args:
        networks: a list of Asked (analysis/networks.py).
        settings: Settings (analysis/images.py).
        pattern: of the names of blocks; None for those that `block_names` (analysis/blocks.py) finds.
        say: function of a text, for what is to be known.

    Returns the content of fourier.json. Raises ValueError.
    """
    images = drawn(find_images(settings), settings.images, settings.seed)
    if len(images) < settings.images:
        say(f'there are {counted(len(images), "image")}, fewer than --images={settings.images}: all are '
            'taken')
    measured = [Measured(one, images, settings, out, pattern, say) for one in networks]
    device = this_process().device
    seconds = sum(each.seconds_left(device) for each in measured)
    if seconds:
        say(f'this takes about {duration(seconds)}, as far as {TRIED} images tell. The same command goes on '
            'if it is stopped')
    line = LiveLine(say)
    for each in measured:
        each.run(device, line)
    content = {'images': [images.name(place) for place in range(len(images))],
               'preparation': settings.preparation, 'networks': [each.result() for each in measured]}
    write_json(out / 'fourier.json', content)
    picture = fourier_figure(content['networks'])
    write_atomically(out / 'fourier.png', lambda file: picture.save(file, 'PNG'))
    say(f'{out / "fourier.png"}: {counted(len(networks), "network")}; the numbers are in '
        f'{out / "fourier.json"}')
    return content


@reader_may_leave(ends=False)
def main(argv=None):
    parser = parser_of('analysis.fourier', __doc__, images=256)
    parser.add_argument('--blocks', metavar='PATTERN', help="names of the blocks, with * for any part, such "
                        "as 'layer*.*'; found by rules if not given")
    args = parsed(parser, argv)
    with errors_in_one_sentence():
        networks, settings, out = common_parts(args, 'fourier')
        fourier(networks, settings, out, args.blocks)


if __name__ == '__main__':
    main()
