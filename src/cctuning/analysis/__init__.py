"""Analyse connections and models. Every figure of the report is a public function here, on torch alone."""

from cctuning.analysis.connection_statistics import (
    GateStatistics,
    LayerChoice,
    TransformErrors,
    TransformShape,
    effective_rank,
    gate_statistics,
    layer_choice,
    transform_errors,
    transform_shape,
)
from cctuning.analysis.observe import LanguageBatch, Seen, language_batches, observe
from cctuning.analysis.similarity import (
    Projection,
    Similarity,
    cosine,
    language_similarity,
    linear_cka,
    principal_plane,
    prompt_activations,
)

__all__ = [
    "GateStatistics",
    "LanguageBatch",
    "LayerChoice",
    "Projection",
    "Seen",
    "Similarity",
    "TransformErrors",
    "TransformShape",
    "cosine",
    "effective_rank",
    "gate_statistics",
    "language_batches",
    "language_similarity",
    "layer_choice",
    "linear_cka",
    "observe",
    "principal_plane",
    "prompt_activations",
    "transform_errors",
    "transform_shape",
]
