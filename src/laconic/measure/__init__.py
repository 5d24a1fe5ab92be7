"""What a codec costs and loses: rates from bytes, distortions, bounds, curves and confidence intervals.

Distortions take NumPy arrays or torch tensors of any real dtype (bfloat16 through torch), sum in float64 block by block,
give Python floats or NumPy arrays, and refuse shapes that would broadcast.
"""

from .bootstrap import Interval, paired_bootstrap
from .bounds import (
    ar1_distortion,
    blahut_arimoto,
    gap_db,
    gaussian_distortion,
    laplace_distortion,
    laplace_shannon_bound,
    vector_gaussian_distortion,
)
from .curves import BDRate, bd_rate
from .distortion import InnerProduct, cosine, inner_product, mse, psnr, relative_error, snr_db
from .logits import kl_divergence, same_top1
from .rate import bits_per_byte, bits_per_element

__all__ = [
    "BDRate",
    "InnerProduct",
    "Interval",
    "ar1_distortion",
    "bd_rate",
    "bits_per_byte",
    "bits_per_element",
    "blahut_arimoto",
    "cosine",
    "gap_db",
    "gaussian_distortion",
    "inner_product",
    "kl_divergence",
    "laplace_distortion",
    "laplace_shannon_bound",
    "mse",
    "paired_bootstrap",
    "psnr",
    "relative_error",
    "same_top1",
    "snr_db",
    "vector_gaussian_distortion",
]
