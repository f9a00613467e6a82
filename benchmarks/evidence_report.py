"""The tables, the answers and the figure of docs/transfer.md, from the results of benchmarks.evidence.

A number is quoted if all seeds are there, and at least LEAST of them. What is not complete is called so.
"""
import re
import statistics

from benchmarks.evidence_stages import ESTIMATED, HELD_OUT, QUESTIONS, SCALES, STARTS, TUNING_SEED, Plan

LEAST = 3  # seeds for a number that is quoted
MEASURES = {'knn': 'k-NN', 'linear': 'linear probe', 'final_1': '1 % of labels', 'final_10': '10 % of labels',
            'final_100': 'all labels'}
NAMES = {'cpu': 'CPU', 'cuda': 'GPU'}


class Results:
    """The results of one scale: a dict with 'seeds', 'images', 'validation', 'machines' and 'stages', {name: record}."""

    def __init__(self, name, content):
        self.scale = SCALES[name]
        self.content = content
        self.seeds = range(content['seeds'])
        self.stages = content['stages']
        self.plan = Plan(self.scale, content['seeds'], content['images'])

    def values(self, start, measure):
        """The accuracies of a start, in percent, one a seed, in the order of seeds; those that are there."""
        records = (self.stages.get(f'{measure}_{start}_{seed}') for seed in self.seeds)
        return [record['figures']['top1'] for record in records if record]

    def is_quoted(self, *values):
        return len(self.seeds) >= LEAST and all(len(each) == len(self.seeds) for each in values)

    def is_measured(self, start, measure):
        """Whether it ever will be: there is a stage of it."""
        names = {stage.name for stage in self.plan.of_question(STARTS[start].question)}
        return f'{measure}_{start}_0' in names

    def difference(self, better, worse, measure):
        """(mean, standard error) of the differences of two starts, seed by seed; None if not all are there."""
        first, second = self.values(better, measure), self.values(worse, measure)
        if not self.is_quoted(first, second):
            return None
        return mean_and_error([a - b for a, b in zip(first, second)])

    def state(self, question):
        """'complete', 'not run', or 'not finished: 12 of 61 stages'."""
        names = [stage.name for stage in self.plan.stages((question,)) if stage.question == question]
        done = sum(name in self.stages for name in names)
        if done == len(names):
            return 'complete'
        return f'not finished: {done} of {len(names)} stages' if done else 'not run'


def mean_and_error(values):
    """(mean, standard error of the mean)."""
    return statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5


def cell(results, start, measure):
    """A cell of a table: mean and standard error over the seeds."""
    values = results.values(start, measure)
    if results.is_quoted(values):
        mean, error = mean_and_error(values)
        return f'{mean:.1f} +- {error:.1f}'
    if not results.is_measured(start, measure):
        return ''
    return f'{len(values)} of {len(results.seeds)} seeds' if values else 'not run'


def verdict(difference):
    """What a paired difference shows at two standard errors, in words."""
    mean, error = difference
    if abs(mean) <= 2 * error:
        return 'not shown'
    return 'shown' if mean > 0 else 'the opposite is shown'


def table(results, starts):
    lines = ['| | ' + ' | '.join(MEASURES.values()) + ' |', '|' + '---|' * (len(MEASURES) + 1)]
    for start in starts:
        lines.append(f'| {STARTS[start].words} | ' + ' | '.join(cell(results, start, measure) for measure in MEASURES) + ' |')
    return lines


def differences(results, pairs):
    """A table of paired differences, with what they show."""
    lines = ['| paired difference | ' + ' | '.join(MEASURES.values()) + ' |', '|' + '---|' * (len(MEASURES) + 1)]
    for better, worse in pairs:
        cells = []
        for measure in MEASURES:
            found = results.difference(better, worse, measure)
            cells.append(f'{found[0]:+.1f} +- {found[1]:.1f}: {verdict(found)}' if found else '')
        if any(cells):
            lines.append(f'| {STARTS[better].words} over {STARTS[worse].words} | ' + ' | '.join(cells) + ' |')
    return lines if len(lines) > 2 else []


def section(results, letter):
    """A question with its hypothesis, tables and state."""
    question = QUESTIONS[letter]
    starts = list(dict.fromkeys(start for pair in question.pairs for start in reversed(pair)))
    state = results.state(letter)
    lines = [f'### ({letter}) {question.text}', '',
             f'*Expected before the runs*: {question.hypothesis}', '',
             f'*State*: {state}.', '']
    if state == 'not run':
        return lines
    lines += [*table(results, starts), '']
    found = differences(results, question.pairs)
    lines += [*found, ''] if found else []
    if letter == 'b':
        lines += norms(results)
    return lines


def norms(results):
    """What became of the statistics of BatchNorm, as lines; none if that is not measured for all seeds."""
    lines = []
    for start in ('sparse', 'zeroed', 'zeroed_time'):
        records = [results.stages.get(f'norms_{start}_{seed}') for seed in results.seeds]
        values = [record['figures']['mean'] for record in records if record]
        if not results.is_quoted(values):
            continue
        shift, ratio = ([value[key] for value in values] for key in ('mean_shift', 'log2_std_ratio'))
        probes = ' | '.join(cell(results, start, f'{kind}_{ESTIMATED}') for kind in ('knn', 'linear'))
        cells = ' | '.join('{:.2f} +- {:.2f}'.format(*mean_and_error(each)) for each in (shift, ratio))
        lines.append(f'| {STARTS[start].words} | {cells} | {probes} |')
    if not lines:
        return []
    return ['Statistics of BatchNorm after pretraining, against those of whole images (`benchmarks.norm_shift`), '
            'means over all norms; and the probes with statistics that are estimated on whole images:', '',
            '| | shift of the mean, in deviations | abs log2 of the ratio of deviations | k-NN | linear probe |',
            '|' + '---|' * 5, *lines, '']


def rates(results):
    """The learning rates of fine-tuning that were chosen, as lines."""
    lines = []
    for start in STARTS:
        for percent in sorted(STARTS[start].labels, key=int):
            tried = {rate: results.stages.get(f'tune_{percent}_{start}_{rate}') for rate in results.scale.rates}
            if not all(tried.values()):
                continue
            accuracies = {rate: record['figures']['top1'] for rate, record in tried.items()}
            best = max(accuracies, key=accuracies.get)
            cells = ' | '.join(f'**{value:.1f}**' if rate == best else f'{value:.1f}' for rate, value in accuracies.items())
            lines.append(f'| {STARTS[start].words}, {percent} % of labels | {cells} |')
    if not lines:
        return []
    return [f'Learning rates, by the accuracy on the {HELD_OUT:.0%} of the training images that were held out of '
            f'these runs (seed {TUNING_SEED}); the best is taken:', '', '| | ' + ' | '.join(results.scale.rates) + ' |',
            '|' + '---|' * (len(results.scale.rates) + 1), *lines, '']


def cost(results):
    """What the runs cost, and on what."""
    stages = results.stages.values()
    hours, cpu_hours = (sum(record[key] for record in stages) / 3600 for key in ('seconds', 'cpu_seconds'))
    return [f'{len(stages)} stages, {hours:.1f} hours of programs ({cpu_hours:.1f} hours of CPU time), on: '
            f'{"; ".join(results.content["machines"])}.', '']


def page(content):
    """All tables of all scales, as Markdown. content: {name of a scale: results}."""
    lines = []
    for name in SCALES:
        if name not in content:
            lines += [f'## On a {NAMES[name]}', '', 'Not run.', '']
            continue
        results = Results(name, content[name])
        about = results.content
        lines += [f'## On a {NAMES[name]}', '',
                  f'Top-1 accuracy in percent on {about["validation"]:,} validation images, mean and standard error over '
                  f'{about["seeds"]} seeds. "Shown" is a difference, seed by seed, of more than two standard errors.', '']
        for letter in QUESTIONS:
            lines += section(results, letter)
        lines += ['### How it was chosen, and what it cost', '', *rates(results), *cost(results)]
    return '\n'.join(lines).rstrip()


def answers(content):
    """The questions with their shortest answers, as a list in Markdown; those of the largest scale that has an answer."""
    lines = []
    unanswered = []
    for letter, question in QUESTIONS.items():
        found = [(name, results, answer(results, letter)) for name, results in of_scales(content)]
        found = [each for each in found if each[2]]
        if not found:
            unanswered.append(f'({letter}) {question.text}')
            continue
        name, _, text = found[-1]
        lines.append(f'* ({letter}) {question.text} **On a {NAMES[name]}, {text}.**')
    if unanswered:
        lines.append(f'* Not measured with three seeds yet: {" ".join(unanswered)}')
    return '\n'.join(lines)


def answer(results, letter):
    """What the pairs of a question show, in words; empty if nothing may be quoted yet."""
    found = []
    for better, worse in QUESTIONS[letter].pairs:
        for measure in ('final_10', 'final_100', 'final_1', 'linear', 'knn'):
            difference = results.difference(better, worse, measure)
            if difference:
                mean, error = difference
                found.append(f'{STARTS[better].words} over {STARTS[worse].words}, {MEASURES[measure]}: '
                             f'{mean:+.1f} +- {error:.1f} points, {verdict(difference)}')
                break
    return '; '.join(found)


def of_scales(content):
    """(name, Results) of the scales that there are, the smallest first."""
    return [(name, Results(name, content[name])) for name in SCALES if name in content]


def between(text, mark, end, words):
    """A text with other words between two marks, which are comments in Markdown. Raises ValueError without them."""
    first, last = f'<!-- {mark} -->\n', f'<!-- {end} -->'
    if first not in text or last not in text:
        raise ValueError(f'the page has no place for its {mark}: lines {first.strip()} and {last}')
    return re.sub(f'({first}).*({last})', lambda match: f'{match[1]}{words}\n{match[2]}', text, flags=re.S)


def made(content, text, picture='transfer.svg'):
    """The text of a page with what the results say. picture: the name of the file that `figure` draws."""
    tables = page(content)
    if any(points(results) for _, results in of_scales(content)):
        tables += f'\n\n![The accuracies of each seed, and their means]({picture})'
    text = between(text, 'answers', 'end of answers', answers(content))
    return between(text, 'results', 'end', tables)


def figure(content, path):
    """Draw the accuracies of questions (a) and (b) as SVG, if there are any: a point a seed, a line at the mean."""
    shown = [(name, results) for name, results in of_scales(content) if points(results)]
    if not shown:
        return
    import matplotlib
    matplotlib.use('svg')
    from matplotlib import pyplot
    with pyplot.rc_context({'svg.hashsalt': 'evidence', 'svg.fonttype': 'none'}):
        drawn, axes = pyplot.subplots(1, len(shown), figsize=(8 * len(shown), 3.4), squeeze=False)
        for (name, results), axis in zip(shown, axes[0]):
            draw(axis, points(results))
            axis.set_title(f'{results.scale.model}, on a {NAMES[name]}')
        drawn.tight_layout()
        drawn.savefig(path, metadata={'Date': None})
        pyplot.close(drawn)


def points(results):
    """{(start, measure): accuracies} of questions (a) and (b) that may be quoted."""
    starts = [start.name for start in STARTS.values() if start.question in 'ab']
    found = {(start, measure): results.values(start, measure) for start in starts for measure in MEASURES}
    return {key: values for key, values in found.items() if results.is_quoted(values)}


def draw(axis, accuracies):
    starts = list(dict.fromkeys(start for start, _ in accuracies))
    for number, start in enumerate(starts):
        colour = f'C{number}'
        for place, measure in enumerate(MEASURES):
            values = accuracies.get((start, measure), ())
            if not values:
                continue
            x = place + 0.8 * (number + 0.5) / len(starts) - 0.4
            axis.plot([x] * len(values), values, 'o', color=colour, markersize=3)
            axis.plot([x - 0.06, x + 0.06], [statistics.mean(values)] * 2, color=colour)
        axis.plot([], [], 'o-', color=colour, markersize=3, label=STARTS[start].words)
    axis.set_xticks(range(len(MEASURES)), MEASURES.values())
    axis.set_ylabel('top-1 accuracy (%)')
    axis.grid(axis='y', alpha=0.3)
    axis.legend(fontsize=7)


def write(content, page):
    """Put the results into a page with places for them, and draw its figure beside it."""
    picture = page.with_suffix('.svg')
    figure(content, picture)
    page.write_text(made(content, page.read_text(), picture.name))
