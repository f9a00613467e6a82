"""The page of networks of timm that strips suit, docs/coverage.md, of the records that coverage.py keeps."""
from collections import Counter

from pretrain.sparse.refused import PLAIN_TRANSFORMER, REMEDY, UNKNOWN, WITHOUT_ATTENTION

VERDICTS = ('exact', 'exact, with a note', 'larger', 'refused', 'wrong', 'not checked')
GROUPS = {  # of kinds, in the order of the page
    'convolutional': 'Convolutional networks',
    'hybrid': 'Hybrids, and transformers with a pyramid',
    'plain transformer': 'Plain transformers',
}


def page(records, too_large, left=0):
    """The Markdown page.

    records: dicts, see `cover`. too_large: parameters above which networks were not run. left: number of networks that were
    not looked at yet.
    """
    groups = {kind: [] for kind in GROUPS}
    for record in sorted(records, key=lambda record: (record['family'], record.get('parameters', 0), record['name'])):
        kind = record.get('kind', 'convolutional')
        if kind in groups:
            groups[kind].append(record)
    counts = {kind: Counter(record['verdict'] for record in group) for kind, group in groups.items()}
    sections = [f'## {GROUPS[kind]}\n\n{table_of_families(group)}' for kind, group in groups.items() if group]
    rows = [row for kind in ('convolutional', 'hybrid') for row in rows_of(groups[kind])]
    return f"""# Which networks of timm can be pretrained with SparK

Written by `make coverage`. {text_of_convolutional(counts['convolutional'], too_large)}

{text_of_hybrids(counts['hybrid'], too_large)}

Plain transformers, all of whose feature maps are of one size, have no pyramid. SparK refuses them
({len(groups['plain transformer'])} here); they are for `--method=mae` or `--method=a2mim`.
MLPs, and networks that give no feature maps, are no part of this page.

Each network was checked by one pair of versions: {text_of_versions(records)}.{text_of_left(left)}

{(chr(10) * 2).join(sections)}

## Every network with a pyramid

| network | family | M parameters | verdict | largest error | note |
|---|---|---|---|---|---|
{chr(10).join(rows)}
"""


def text_of_convolutional(count, too_large):
    exact = count['exact'] + count['exact, with a note']
    return f"""{exact} of the {count.total()} convolutional networks were checked one by one and equal their own
dense selves (`python -m pretrain.check NAME` shows how, and asks the same of the code as it is today): with all cells
visible, and on a visible rectangle, in features, gradients and running statistics, to a relative error of 1e-8 in float64
(1e-5 for a few that compute in float32 by themselves). {count['larger']} more have over {too_large / 1e6:.0f} M parameters
and were not run: "as NAME" is the largest checked network of the same family."""


def text_of_hybrids(count, too_large):
    exact = count['exact'] + count['exact, with a note']
    waiting = f' {count["not checked"]} could not be checked within the limits.' if count['not checked'] else ''
    larger = f' {count["larger"]} have over {too_large / 1e6:.0f} M parameters and were not run.' if count['larger'] else ''
    return f"""Attention over all positions is right on strips, and so are positions that are added, which are gathered.
{exact} of the {count.total()} hybrids and transformers with a pyramid were found to be so, and equal their dense selves as the
convolutional networks do; {count['refused']} are refused, for windows, positions of a fixed grid, or tokens that are pooled
in their order.{larger}{waiting}
A network that is exact on a small image was also built for its usual size, where a window no longer holds all of it."""


def text_of_versions(records):
    checked = [record for record in records if record['verdict'] in ('exact', 'exact, with a note', 'wrong', 'refused')]
    versions = Counter(f'timm {record["versions"]["timm"]} with torch {record["versions"]["torch"]}' for record in checked)
    return ', '.join(f'{number} by {which}' for which, number in versions.most_common())


def text_of_left(left):
    return f' {left} networks were not looked at yet, and are no part of the numbers here.' if left else ''


def table_of_families(group):
    """The numbers of verdicts of each family, and of all."""
    families = {}
    for record in group:
        families.setdefault(record['family'], Counter())[record['verdict']] += 1
    total = sum(families.values(), Counter())
    table = [f'| {" | ".join(("family", "networks", *VERDICTS))} |', '|' + '---|' * (len(VERDICTS) + 2)]
    for family, count in [*families.items(), ('**all**', total)]:
        numbers = ' | '.join(str(count[verdict] or '') for verdict in VERDICTS)
        table.append(f'| {family} | {count.total()} | {numbers} |')
    return '\n'.join(table)


def rows_of(group):
    """A line for each network."""
    rows = []
    for record in group:
        verdict = record['verdict'] if record['verdict'] != 'larger' else as_checked(record, group)
        error = f'{record["error"]:.0e}' if record.get('error') else ''
        rows.append(f'| {record["name"]} | {record["family"]} | {record["parameters"] / 1e6:.1f} | {verdict} | {error} | '
                    f'{shortened(record["why"])} |')
    return rows


def shortened(why):
    """A reason in one line, without what every refusal says."""
    for remedy in (REMEDY, WITHOUT_ATTENTION, PLAIN_TRANSFORMER):
        why = why.replace(remedy, '')
    why = why.replace('cannot be pretrained sparsely as it is: ', '').replace(UNKNOWN, '')
    return ' '.join(why.split()).replace('|', '/')


def as_checked(record, group):
    """'as NAME', the largest network of the same family that is exact."""
    exact = [(other['parameters'], other['name']) for other in group
             if other['family'] == record['family'] and other['verdict'].startswith('exact')]
    return f'as {max(exact)[1]}' if exact else 'not checked'
