"""laconic's own choice for the weights of a model."""

from ...quantize.feedback_trellis import FeedbackTrellis
from ...sources.weights.recipe import Statistics, WeightRecipe


def auto(bits: float = 3.0, states: int = 256) -> WeightRecipe:
    """A whole model at one slope of its loss in KL: entropy-coded trellis, error feedback, rows weighed by one pass back.

        one pass back ─▶ squared gradients g of rows ─┐
        walk over coded blocks ─▶ moments H of inputs ─┴▶ KL ≈ ½ Σ g_i d_i H d_iᵀ ─▶ step_ij = Δ U_jj / √g_i ─▶ trellis ─▶ rANS

    One Δ for all matrices: the rates are what it gives (reverse water-filling over every coordinate of the model), and Δ is
    searched for the budget. No rotation: the coder's pmfs follow rows and columns, so that spread among them is a gain. Rows
    of embeddings weigh as often as they are looked up and as they move logits, with a floor for those that calibration
    hardly met.

    Source: Marcellin & Fischer 1990 and Fischer & Wang 1992 (entropy-coded trellis); Frantar et al. 2022, GPTQ (2210.17323),
    Alg. 1 (feedback); Martens & Grosse 2015, K-FAC (1503.05671), section 3 (the loss as moments of inputs and gradients);
    see `FeedbackTrellis` and `laconic.sources.weights.policies`.
    Claim: on a Llama of 7 M parameters, text that was not calibrated on, everything counted: less than half the KL of the
    best GGUF IQ- or K-quant with importance matrix at 2 to 3 bits (`laconic bench weights`). Ablation:
    counted frequencies instead of floored ones for the embedding .257 nats instead of .121 at 2.0;
    a trellis without Hessian or weights, one rate for all, .072 at 3.0.
    """
    return WeightRecipe(
        lambda rate: FeedbackTrellis(bits=rate, states=states),
        at_step=lambda step: FeedbackTrellis(step=step, states=states),
        statistics=Statistics(fisher=True),
        nominal=bits,
    )
