import importlib.util

if importlib.util.find_spec('pycocotools') is None:
    raise ImportError('downstream_coco needs pycocotools: pip install -r downstream_coco/requirements.txt')
