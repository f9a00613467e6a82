"""The documentation is true where that can be checked: links, commands, error messages."""
import ast
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

FOLDERS = ('.', 'docs', 'pretrain', 'downstream_imagenet', 'downstream_coco', 'downstream_ade20k', 'downstream_d2',
           'downstream_mmdet', 'analysis')
PAGES = [page for folder in FOLDERS for kind in ('*.md', '*.ipynb') for page in sorted((ROOT / folder).glob(kind))]


def anchors(text):
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r'^#+ (.+)$', text, re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text(encoding='utf-8')
    for link in re.findall(r'\]\(([^)\s]+)\)', text):
        if re.match(r'https?://', link):
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f'{page.name} links to {link}'
        assert not anchor or anchor in anchors(target.read_text(encoding='utf-8')), f'{page.name} links to {link}'


def prose(text):
    """A page without its blocks of code; of links the text alone. Tables stay."""
    text = re.sub(r'^```.*?^```$', '', text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r'\]\([^)]*\)', ']', text)


def test_the_readme_is_short():
    """At most 900 words. What stands in blocks of code is not counted, what stands in tables is."""
    words = [word for word in prose((ROOT / 'README.md').read_text()).split() if re.search(r'\w', word)]
    assert len(words) <= 900


def test_the_first_screen_shows_a_picture_and_the_commands():
    first = (ROOT / 'README.md').read_text().partition('\n## ')[0]
    assert len(first.splitlines()) <= 40
    assert re.search(r'^!\[[^\]]+\]\(docs/\w+\.png\)$', first, re.MULTILINE)
    assert 'git clone' in first and 'make demo' in first and 'main.sh my_run --data_path=DIR --model=resnet50' in first


def test_the_readme_leads_to_every_page():
    linked = set(re.findall(r'\]\(([^)#\s]+)', (ROOT / 'README.md').read_text()))
    pages = {str(page.relative_to(ROOT)) for page in PAGES if page.suffix == '.md'} - {'README.md'}
    assert pages <= linked


def test_no_page_has_a_badge_or_a_place_to_fill_in():
    for page in PAGES:
        text = page.read_text(encoding='utf-8')
        assert 'badge' not in text and 'OWNER/REPOSITORY' not in text, page.name


def test_pages_are_found():
    assert {'README.md', 'method.md', 'viz_spconv.ipynb'} <= {page.name for page in PAGES}


def said():
    """All texts in our programs, one a literal, as they are written there; what is filled in is ..."""
    for folder in ('pretrain', 'common', 'downstream_imagenet', 'downstream_coco', 'downstream_ade20k', 'analysis'):
        for path in (ROOT / folder).rglob('*.py'):
            for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
                if isinstance(node, ast.JoinedStr):
                    yield ''.join(part.value if isinstance(part, ast.Constant) else '...' for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_troubleshooting_quotes_messages_that_exist():
    texts = list(said())
    quoted = re.findall(r'^### `(.+)`$', (ROOT / 'docs/troubleshooting.md').read_text(encoding='utf-8'), re.MULTILINE)
    assert len(quoted) > 10
    for message in quoted:
        assert any(message in text for text in texts), message


def test_warnings_that_are_listed_exist():
    page = (ROOT / 'docs/your_images.md').read_text(encoding='utf-8')
    table = page.partition('## Warnings that you may meet')[2].partition('\n## ')[0]
    listed = [message for row in re.findall(r'^\| (`.+?) \|', table, re.MULTILINE) for message in re.findall(r'`(.+?)`', row)]
    texts = list(said())
    assert len(listed) > 8
    for message in listed:
        assert any(message in text for text in texts), message


def test_modules_that_are_named_exist():
    for page in PAGES:
        programs = r'python3? -m ((?:pretrain|downstream_\w+|common|benchmarks|analysis)(?:\.\w+)+)'
        for module in re.findall(programs, page.read_text()):
            assert (ROOT / f'{module.replace(".", "/")}.py').exists(), f'{page.name}: {module}'


def test_tests_that_are_named_exist():
    names = {path.name for path in (ROOT / 'tests').rglob('test_*.py')}
    for page in PAGES:
        for path in re.findall(r'`(tests/[\w/]+\.py)`', page.read_text(encoding='utf-8')):
            assert (ROOT / path).exists(), f'{page.name}: {path}'
        for name in re.findall(r'`(test_\w+\.py)`', page.read_text(encoding='utf-8')):
            assert name in names, f'{page.name}: {name}'


def test_flags_that_are_named_exist():
    """Every --flag in a page is one of some program of ours, or of one of those that we start or name."""
    known = {'logdir', 'nproc_per_node', 'time', 'output', 'nodes'}  # of TensorBoard, torchrun, SLURM
    for path in (path for folder in (*FOLDERS[2:], 'common', 'benchmarks') for path in (ROOT / folder).rglob('*')):
        if path.suffix in ('.py', '.sh'):
            known |= set(re.findall(r"""['"(|\s]--([a-z]\w*)""", path.read_text(encoding='utf-8')))
    from downstream_ade20k.config import Options as Masks
    from downstream_coco.config import Options as Coco
    from downstream_imagenet.config import Options as Classes
    from downstream_imagenet.features import Options as Features
    from pretrain.options import OPTIONS
    from pretrain.plan import options_class  # pretraining's, and its own
    for options in (*map(options_class, OPTIONS), Classes, Features, Coco, Masks):
        for name, field in options.__dataclass_fields__.items():
            known |= {name, f'no_{name}', *field.metadata.get('aliases', ()), *field.metadata.get('replaces', ())}
    for page in PAGES:
        for flag in re.findall(r'(?<![\w-])--([a-z]\w*)(?![\w-])', page.read_text(encoding='utf-8')):
            assert flag in known, f'{page.name}: --{flag}'


def test_notebooks_hold_no_outputs():
    pytest.importorskip('nbstripout', reason='pip install -r pretrain/requirements.txt')
    done = subprocess.run([sys.executable, '-m', 'nbstripout', '--verify', *map(str, ROOT.glob('pretrain/*.ipynb'))])
    assert done.returncode == 0
