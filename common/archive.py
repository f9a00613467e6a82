"""Whether a file of weights is as large as what it holds, which is asked before any of it is read into memory."""
import os
import zipfile


def check_archive(path):
    """Raise a ValueError for a zip archive that unpacks to more than it is.

    torch stores tensors as they are, and reads compressed ones as well: of a few megabytes it makes as many gigabytes as the
    writer likes. Other formats hold what they claim, or are refused as cut off.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            whole = sum(entry.file_size for entry in archive.infolist())
        if whole > os.path.getsize(path):
            raise ValueError(f'it unpacks to {whole / 1e6:,.0f} MB, more than it is, which no file of torch does')
