"""Before any test module imports Lightning: a torchvision built for another torch must not end the collection."""

from colearn_hpc.models.torchvision_cpu import make_torchvision_importable

make_torchvision_importable()
