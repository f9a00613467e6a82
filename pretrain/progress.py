"""What pretraining tells besides (common/training/progress.py): the held-out loss, and pictures of reconstructions."""
import torch
from torchvision.transforms.functional import to_pil_image

from common.images.augmented import collate
from common.reliability.checkpoint import CannotWrite
from common.training import progress
from pretrain.results.pictures import rows_of, views, write_picture

PICTURES = 8


class Progress(progress.Progress):
    """Follows the losses of a run; see common/training/progress.py."""
    remedy = 'more --workers, as far as there are cores for them, --fast_decode, or tar shards where the storage is slow'

    def before(self, val_loss):
        """The held-out loss of the untrained network, where there are held-out images."""
        if val_loss is not None:
            self.metric = f'held-out {val_loss:.4f}  '
            self.log.record({'epoch': 0, 'step': 0, 'val_loss': val_loss})
            self.log.scalars({'val_loss': val_loss}, 0)
            self.log.say(f'Before training the held-out loss is {val_loss:.4f}.')

    def picture(self, epoch, spark, watched, normalise):
        """Eight images of a data set, the same with the same masks every time, as PNG and in TensorBoard."""
        places = torch.linspace(0, len(watched) - 1, min(PICTURES, len(watched))).long().tolist()
        images = normalise(collate([watched[(0, place)] for place in places])[0])
        visible = spark.draw_visible(len(images), self.run.generator('picture')).to(images.device)
        spark.eval()
        with self.run.autocast():
            grid = rows_of(views(spark, images, visible, self.run.options.normalisation))
        spark.train()
        path = self.run.folder / 'reconstructions' / f'epoch_{epoch:04}.png'
        try:
            path.parent.mkdir(exist_ok=True)
            write_picture(path, to_pil_image(grid))
        except (OSError, CannotWrite) as error:
            self.log.warn(f'{error}. The run goes on without this picture')
        self.log.picture('input, masked, reconstruction', grid, epoch * self.run.per_epoch)
