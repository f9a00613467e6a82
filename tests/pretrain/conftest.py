"""What the tests of pretraining share: a browser."""
import shutil

import pytest


@pytest.fixture(scope='module')
def browser():
    api = pytest.importorskip('playwright.sync_api', reason='pip install playwright')
    program = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if program is None:
        pytest.skip('no Chromium on this machine: apt-get install chromium')
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=['--no-sandbox', '--disable-gpu',
                                                                             '--disable-background-networking'])
        yield chromium
        chromium.close()
