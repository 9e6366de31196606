"""Floor 3: looking inside a connection. Every figure of the report is a public function here, on torch alone."""

from cctuning.analysis.gate import GateStatistics, LayerChoice, gate_statistics, layer_choice
from cctuning.analysis.observe import LanguageBatch, Seen, language_batches, observe
from cctuning.analysis.projection import Projection, principal_plane
from cctuning.analysis.similarity import Meeting, cosine, linear_cka, meeting, prompt_activations
from cctuning.analysis.transform import (
    TransformErrors,
    TransformShape,
    effective_rank,
    transform_errors,
    transform_shape,
)

__all__ = [
    "GateStatistics",
    "LanguageBatch",
    "LayerChoice",
    "Meeting",
    "Projection",
    "Seen",
    "TransformErrors",
    "TransformShape",
    "cosine",
    "effective_rank",
    "gate_statistics",
    "language_batches",
    "layer_choice",
    "linear_cka",
    "meeting",
    "observe",
    "principal_plane",
    "prompt_activations",
    "transform_errors",
    "transform_shape",
]
