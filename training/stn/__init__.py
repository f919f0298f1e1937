"""The spatial transformer as a plug-in module (Jaderberg, Simonyan, Zisserman, Kavukcuoglu 2015).

transformer = SpatialTransformer(ConvolutionalLocalization((1, 42, 42)), Affine((42, 42)))
warped, theta = transformer(images)
"""

from training.stn.composition import compose, tile
from training.stn.localization import ConvolutionalLocalization, FullyConnectedLocalization
from training.stn.matrix import Affine, Affine3d, Attention, Similarity, Translation
from training.stn.projective import Projective
from training.stn.sampler import Sampler
from training.stn.spatial_transformer import ParallelSpatialTransformer, SpatialTransformer, parameter_groups
from training.stn.thin_plate_spline import ThinPlateSpline
from training.stn.transform import Transform

__all__ = [
    "Affine",
    "Affine3d",
    "Attention",
    "ConvolutionalLocalization",
    "FullyConnectedLocalization",
    "ParallelSpatialTransformer",
    "Projective",
    "Sampler",
    "Similarity",
    "SpatialTransformer",
    "ThinPlateSpline",
    "Transform",
    "Translation",
    "compose",
    "parameter_groups",
    "tile",
]
