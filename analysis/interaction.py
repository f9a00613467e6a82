"""How strongly cells of an image act together in what a classifier says, by the number of cells around them.

    python -m analysis.interaction resnet50=timm --data_path=DIR
    python -m analysis.interaction resnet50=FILE resnet50=timm --names=SparK,supervised --data_path=DIR

It writes interaction.png and, with its numbers, interaction.json. docs/analysis.md says what they mean.
The images are in one folder for each class. The networks are classifiers: fine-tuned, or with a linear
classifier on their frozen features.
"""
from common.start import start_tool

if __name__ == '__main__':
    start_tool()

from analysis.arguments import common_parts, parsed, parser_of
from analysis.classified import Classified
from analysis.game import MOST_CELLS, Game, finest_grid
from analysis.images import drawn_evenly, find_images
from analysis.interaction_figure import interaction_figure
from analysis.kept import write_json
from analysis.orders import REWARDS
from common.cli import errors_in_one_sentence, numbers, reader_may_leave
from common.distributed import this_process
from common.live_line import LiveLine
from common.reliability.checkpoint import write_atomically
from common.training.log import duration
from common.words import counted


def interaction(networks, settings, game, out, say=print):
    """Measure the interactions of cells in classifiers.

    Write interaction.json and interaction.png into the folder out.

    Args:
        networks: a list of Asked (analysis/networks.py).
        settings: Settings (analysis/images.py).
        game: Game (analysis/game.py).
        say: function of a text, for what is to be known.

    Returns the content of interaction.json. Raises ValueError.
    """
    game.require_equal_cells(settings.size)
    images, folders, classes = drawn_evenly(find_images(settings), settings.images, settings.seed)
    if len(images) < settings.images:
        say(f'there are {counted(len(images), "image")}, fewer than --images={settings.images}: all are '
            'taken')
    classified = [Classified(one, images, folders, classes, settings, game, out, say) for one in networks]
    device = this_process().device
    seconds = sum(each.seconds_left(device) for each in classified)
    if seconds:
        whole = counted(game.num_masked(game.orders), 'masked image')
        say(f'{whole} for each image and network: this takes about {duration(seconds)}, as far as a first '
            'batch tells. The same command goes on if it is stopped')
    line = LiveLine(say)
    for each in classified:
        each.run(device, line)
    content = {'grid': list(game.grid), 'orders': game.orders, 'pairs': game.pairs, 'contexts': game.contexts,
               'reward': game.reward, 'preparation': settings.preparation,
               'networks': [each.result() for each in classified]}
    write_json(out / 'interaction.json', content)
    picture = interaction_figure(content)
    write_atomically(out / 'interaction.png', lambda file: picture.save(file, 'PNG'))
    say(f'{out / "interaction.png"}: {counted(len(networks), "network")}; the numbers are in '
        f'{out / "interaction.json"}')
    return content


def whole_numbers(text):
    return numbers(text, int)


whole_numbers.__name__ = 'whole number, or two:'  # what argparse calls it in an error


@reader_may_leave(ends=False)
def main(argv=None):
    parser = parser_of('analysis.interaction', __doc__, images=20)
    add = parser.add_argument
    add('--grid', type=whole_numbers, metavar='CELLS',
        help='cells along a side of an image, or rows,columns; the most up to '
        f'{MOST_CELLS} that divide it evenly if not given: 14 for 224 pixels')
    add('--pairs', type=int, default=20, help='pairs of cells, an image (default: 20; the paper has 50)')
    add('--contexts', type=int, default=20, help='contexts, a pair and order (default: 20; the paper has 50)')
    add('--reward', choices=tuple(REWARDS), default='log_odds',
        help='what the classifier says: log p/(1-p) of the right class, log p, or its logit (default: '
        'log_odds)')
    args = parsed(parser, argv)
    with errors_in_one_sentence():
        networks, settings, out = common_parts(args, 'interaction')
        grid = finest_grid(settings.size) if args.grid is None else args.grid
        grid = grid * 2 if len(grid) == 1 else grid
        interaction(networks, settings, Game(grid, args.pairs, args.contexts, args.reward), out)


if __name__ == '__main__':
    main()
