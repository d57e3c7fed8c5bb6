"""Interpretability on top of the hooked model: functions over a model and its cache.

Import it as `hooked_whisper.analysis`. Its main names are here, loaded on first use:

    from hooked_whisper.analysis import Contrast, Circuit, attribute, patch
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if __name__ != "hooked_whisper.analysis":  # at the repository's root Python also finds this folder under its bare name
    raise ImportError(
        f"this package was imported as {__name__!r}, which would be a second copy of it; "
        "write `import hooked_whisper.analysis` (or `from hooked_whisper.analysis import ...`) instead."
    )

# Public name -> module, loaded on first use. A module must not be called like a name that is exported here: once it is
# imported, `from hooked_whisper.analysis import name` would give the module. So functions that are called like their
# modules (nodes, edges, direct_attribution, steering_experiment, frame_labels, ...) are taken from these.
_EXPORTS = {
    "Contrast": "contrast",
    "ModelInput": "contrast",
    "silence": "corruption",
    "noise": "corruption",
    "another": "corruption",
    "splice": "corruption",
    "translation": "corruption",
    "LogitDifference": "metrics",
    "LogProbability": "metrics",
    "KLDivergence": "metrics",
    "Metric": "metrics",
    "Node": "nodes",
    "windows": "nodes",
    "seconds": "nodes",
    "Edge": "edges",
    "patch": "patching",
    "patch_transcripts": "patching",
    "PatchingResult": "patching",
    "patch_edges": "edge_patching",
    "ablate_edges": "edge_patching",
    "ablated_edges": "edge_patching",
    "ablate": "ablation",
    "ablated": "ablation",
    "node_statistics": "ablation",
    "AblationResult": "ablation",
    "NodeStatistics": "ablation",
    "Circuit": "circuits",
    "CircuitTask": "circuit_tasks",
    "random_circuits": "circuits",
    "learned_scores": "learned_circuits",
    "attribute": "attribution",
    "Attribution": "attribution",
    "attribute_edges": "edge_attribution",
    "EdgeAttribution": "edge_attribution",
    "attribute_features": "feature_attribution",
    "FeatureAttribution": "feature_attribution",
    "integrated_gradients": "input_gradients",
    "InputGradients": "input_gradients",
    "DirectAttribution": "direct_attribution",
    "logit_lens": "lens",
    "encoder_lens": "lens",
    "Lens": "lens",
    "EncoderLens": "lens",
    "train_tuned_lens": "tuned_lens",
    "TunedLens": "tuned_lens",
    "score_alignment_heads": "alignment_heads",
    "read_tokens": "alignment_heads",
    "AlignmentScores": "alignment_heads",
    "attention_rollout": "rollout",
    "Rollout": "rollout",
    "probe": "probing",
    "probe_hooks": "probing",
    "clip_features": "probing",
    "store_features": "probing",
    "Probe": "probing",
    "ProbeSweep": "probing",
    "plot_mel": "plots",
    "plot_cross_attention": "plots",
    "plot_cross_attention_heads": "plots",
    "plot_residual_norms": "plots",
    "encode_store": "codes",
    "FeatureCodes": "codes",
    "Activity": "activity",
    "feature_statistics": "feature_stats",
    "top_segments": "feature_stats",
    "Labels": "labels",
    "Interval": "labels",
    "read_labels": "label_files",
    "write_labels": "label_files",
    "FrameLabels": "frame_labels",
    "column_labels": "frame_labels",
    "articulatory_labels": "derived_labels",
    "boundary_labels": "derived_labels",
    "position_labels": "derived_labels",
    "speech_labels": "derived_labels",
    "utterance_labels": "derived_labels",
    "make_phone_corpus": "phone_speech",
    "PhoneCorpus": "phone_speech",
    "PhoneVoice": "phone_speech",
    "PhoneAligner": "forced_alignment",
    "score_features": "feature_scores",
    "phone_scores": "feature_scores",
    "labels_by_lag": "lags",
    "lagged_scores": "lags",
    "frame_accuracy": "feature_scores",
    "FeatureScores": "feature_scores",
    "PhoneScores": "feature_scores",
    "classify": "feature_classes",
    "gather_evidence": "feature_classes",
    "FeatureClasses": "feature_classes",
    "search_rows": "feature_search",
    "search_span": "feature_search",
    "search_label": "feature_search",
    "Add": "edits",
    "AddVector": "edits",
    "Scale": "edits",
    "Zero": "edits",
    "Clamp": "edits",
    "Swap": "edits",
    "Ablate": "edits",
    "Span": "edits",
    "WhereActive": "edits",
    "steer": "steering",
    "steering_hooks": "steering",
    "Steering": "steering",
    "mean_difference": "steering_vectors",
    "SteeringVector": "steering_vectors",
    "Target": "steering_target",
    "SteeringResult": "steering_result",
    "find_quieting": "quieting",
    "quieting_experiment": "quieting",
    "Quieting": "quieting",
    "hallucination_experiment": "hallucination",
    "HallucinationResult": "hallucination",
    "silences": "non_speech",
    "made_sounds": "non_speech",
    "noises": "non_speech",
    "music_windows": "non_speech",
    "fetch_music": "non_speech",
    "Sound": "non_speech",
}

__all__ = [*_EXPORTS]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from hooked_whisper.analysis.ablation import AblationResult as AblationResult
    from hooked_whisper.analysis.ablation import NodeStatistics as NodeStatistics
    from hooked_whisper.analysis.ablation import ablate as ablate
    from hooked_whisper.analysis.ablation import ablated as ablated
    from hooked_whisper.analysis.ablation import node_statistics as node_statistics
    from hooked_whisper.analysis.activity import Activity as Activity
    from hooked_whisper.analysis.alignment_heads import AlignmentScores as AlignmentScores
    from hooked_whisper.analysis.alignment_heads import read_tokens as read_tokens
    from hooked_whisper.analysis.alignment_heads import score_alignment_heads as score_alignment_heads
    from hooked_whisper.analysis.attribution import Attribution as Attribution
    from hooked_whisper.analysis.attribution import attribute as attribute
    from hooked_whisper.analysis.circuit_tasks import CircuitTask as CircuitTask
    from hooked_whisper.analysis.circuits import Circuit as Circuit
    from hooked_whisper.analysis.circuits import random_circuits as random_circuits
    from hooked_whisper.analysis.codes import FeatureCodes as FeatureCodes
    from hooked_whisper.analysis.codes import encode_store as encode_store
    from hooked_whisper.analysis.contrast import Contrast as Contrast
    from hooked_whisper.analysis.contrast import ModelInput as ModelInput
    from hooked_whisper.analysis.corruption import another as another
    from hooked_whisper.analysis.corruption import noise as noise
    from hooked_whisper.analysis.corruption import silence as silence
    from hooked_whisper.analysis.corruption import splice as splice
    from hooked_whisper.analysis.corruption import translation as translation
    from hooked_whisper.analysis.derived_labels import articulatory_labels as articulatory_labels
    from hooked_whisper.analysis.derived_labels import boundary_labels as boundary_labels
    from hooked_whisper.analysis.derived_labels import position_labels as position_labels
    from hooked_whisper.analysis.derived_labels import speech_labels as speech_labels
    from hooked_whisper.analysis.derived_labels import utterance_labels as utterance_labels
    from hooked_whisper.analysis.direct_attribution import DirectAttribution as DirectAttribution
    from hooked_whisper.analysis.edge_attribution import EdgeAttribution as EdgeAttribution
    from hooked_whisper.analysis.edge_attribution import attribute_edges as attribute_edges
    from hooked_whisper.analysis.edge_patching import ablate_edges as ablate_edges
    from hooked_whisper.analysis.edge_patching import ablated_edges as ablated_edges
    from hooked_whisper.analysis.edge_patching import patch_edges as patch_edges
    from hooked_whisper.analysis.edges import Edge as Edge
    from hooked_whisper.analysis.edits import Ablate as Ablate
    from hooked_whisper.analysis.edits import Add as Add
    from hooked_whisper.analysis.edits import AddVector as AddVector
    from hooked_whisper.analysis.edits import Clamp as Clamp
    from hooked_whisper.analysis.edits import Scale as Scale
    from hooked_whisper.analysis.edits import Span as Span
    from hooked_whisper.analysis.edits import Swap as Swap
    from hooked_whisper.analysis.edits import WhereActive as WhereActive
    from hooked_whisper.analysis.edits import Zero as Zero
    from hooked_whisper.analysis.feature_attribution import FeatureAttribution as FeatureAttribution
    from hooked_whisper.analysis.feature_attribution import attribute_features as attribute_features
    from hooked_whisper.analysis.feature_classes import FeatureClasses as FeatureClasses
    from hooked_whisper.analysis.feature_classes import classify as classify
    from hooked_whisper.analysis.feature_classes import gather_evidence as gather_evidence
    from hooked_whisper.analysis.feature_scores import FeatureScores as FeatureScores
    from hooked_whisper.analysis.feature_scores import PhoneScores as PhoneScores
    from hooked_whisper.analysis.feature_scores import frame_accuracy as frame_accuracy
    from hooked_whisper.analysis.feature_scores import phone_scores as phone_scores
    from hooked_whisper.analysis.feature_scores import score_features as score_features
    from hooked_whisper.analysis.feature_search import search_label as search_label
    from hooked_whisper.analysis.feature_search import search_rows as search_rows
    from hooked_whisper.analysis.feature_search import search_span as search_span
    from hooked_whisper.analysis.feature_stats import feature_statistics as feature_statistics
    from hooked_whisper.analysis.feature_stats import top_segments as top_segments
    from hooked_whisper.analysis.forced_alignment import PhoneAligner as PhoneAligner
    from hooked_whisper.analysis.frame_labels import FrameLabels as FrameLabels
    from hooked_whisper.analysis.frame_labels import column_labels as column_labels
    from hooked_whisper.analysis.hallucination import HallucinationResult as HallucinationResult
    from hooked_whisper.analysis.hallucination import hallucination_experiment as hallucination_experiment
    from hooked_whisper.analysis.input_gradients import InputGradients as InputGradients
    from hooked_whisper.analysis.input_gradients import integrated_gradients as integrated_gradients
    from hooked_whisper.analysis.label_files import read_labels as read_labels
    from hooked_whisper.analysis.label_files import write_labels as write_labels
    from hooked_whisper.analysis.labels import Interval as Interval
    from hooked_whisper.analysis.labels import Labels as Labels
    from hooked_whisper.analysis.lags import labels_by_lag as labels_by_lag
    from hooked_whisper.analysis.lags import lagged_scores as lagged_scores
    from hooked_whisper.analysis.learned_circuits import learned_scores as learned_scores
    from hooked_whisper.analysis.lens import EncoderLens as EncoderLens
    from hooked_whisper.analysis.lens import Lens as Lens
    from hooked_whisper.analysis.lens import encoder_lens as encoder_lens
    from hooked_whisper.analysis.lens import logit_lens as logit_lens
    from hooked_whisper.analysis.metrics import KLDivergence as KLDivergence
    from hooked_whisper.analysis.metrics import LogitDifference as LogitDifference
    from hooked_whisper.analysis.metrics import LogProbability as LogProbability
    from hooked_whisper.analysis.metrics import Metric as Metric
    from hooked_whisper.analysis.nodes import Node as Node
    from hooked_whisper.analysis.nodes import seconds as seconds
    from hooked_whisper.analysis.nodes import windows as windows
    from hooked_whisper.analysis.non_speech import Sound as Sound
    from hooked_whisper.analysis.non_speech import fetch_music as fetch_music
    from hooked_whisper.analysis.non_speech import made_sounds as made_sounds
    from hooked_whisper.analysis.non_speech import music_windows as music_windows
    from hooked_whisper.analysis.non_speech import noises as noises
    from hooked_whisper.analysis.non_speech import silences as silences
    from hooked_whisper.analysis.patching import PatchingResult as PatchingResult
    from hooked_whisper.analysis.patching import patch as patch
    from hooked_whisper.analysis.patching import patch_transcripts as patch_transcripts
    from hooked_whisper.analysis.phone_speech import PhoneCorpus as PhoneCorpus
    from hooked_whisper.analysis.phone_speech import PhoneVoice as PhoneVoice
    from hooked_whisper.analysis.phone_speech import make_phone_corpus as make_phone_corpus
    from hooked_whisper.analysis.plots import plot_cross_attention as plot_cross_attention
    from hooked_whisper.analysis.plots import plot_cross_attention_heads as plot_cross_attention_heads
    from hooked_whisper.analysis.plots import plot_mel as plot_mel
    from hooked_whisper.analysis.plots import plot_residual_norms as plot_residual_norms
    from hooked_whisper.analysis.probing import Probe as Probe
    from hooked_whisper.analysis.probing import ProbeSweep as ProbeSweep
    from hooked_whisper.analysis.probing import clip_features as clip_features
    from hooked_whisper.analysis.probing import probe as probe
    from hooked_whisper.analysis.probing import probe_hooks as probe_hooks
    from hooked_whisper.analysis.probing import store_features as store_features
    from hooked_whisper.analysis.quieting import Quieting as Quieting
    from hooked_whisper.analysis.quieting import find_quieting as find_quieting
    from hooked_whisper.analysis.quieting import quieting_experiment as quieting_experiment
    from hooked_whisper.analysis.rollout import Rollout as Rollout
    from hooked_whisper.analysis.rollout import attention_rollout as attention_rollout
    from hooked_whisper.analysis.steering import Steering as Steering
    from hooked_whisper.analysis.steering import steer as steer
    from hooked_whisper.analysis.steering import steering_hooks as steering_hooks
    from hooked_whisper.analysis.steering_result import SteeringResult as SteeringResult
    from hooked_whisper.analysis.steering_target import Target as Target
    from hooked_whisper.analysis.steering_vectors import SteeringVector as SteeringVector
    from hooked_whisper.analysis.steering_vectors import mean_difference as mean_difference
    from hooked_whisper.analysis.tuned_lens import TunedLens as TunedLens
    from hooked_whisper.analysis.tuned_lens import train_tuned_lens as train_tuned_lens


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"hooked_whisper.analysis.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'hooked_whisper.analysis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
