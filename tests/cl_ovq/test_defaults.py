"""The library and the command line have the same defaults."""

import inspect
from dataclasses import fields

import pytest

from cl_ovq.config.parts import default_of
from cl_ovq.mixers import (
    MIXERS,
    DictionaryConfig,
    GatedDeltaNet,
    GatedSlotAttention,
    LinearAttention,
    Mamba2,
    OVQAttention,
    OVQOptions,
    SharedOptions,
    SlidingWindowAttention,
    SoftmaxAttention,
    VQAttention,
)
from cl_ovq.mixers.dictionary import PersistentDictionary
from cl_ovq.mixers.dictionary_options import (
    DirichletGrowthOptions,
    LinearGrowthOptions,
    NoveltyGrowthOptions,
    RateOptions,
)
from cl_ovq.models import MemoryHead, MemoryOptions, PatchTransformer, SequenceModel
from cl_ovq.models.classifier import PatchTransformerOptions
from cl_ovq.models.discriminant import StreamingDiscriminant
from cl_ovq.models.fecam import MahalanobisHead
from cl_ovq.models.neighbours import NearestNeighbours
from cl_ovq.models.sequence import SequenceModelOptions
from cl_ovq.strategies.gradient_free import FeCAMOptions, NeighboursOptions, SLDAOptions
from kernels import DictionaryOptions

GROWTH = (LinearGrowthOptions, DirichletGrowthOptions, NoveltyGrowthOptions, RateOptions)
# Arguments that have another name in the configuration, and those that the platform decides.
NAMES = {"dictionary_weight": "weight", "decay": "code_decay", "seeds": "slot_init"}
OWN = {"head_dim", "persistent", "query_norm", "rotary", "seed"}
SAME = {
    OVQAttention: (OVQOptions, SharedOptions),
    DictionaryOptions: (DictionaryConfig, *GROWTH),
    PersistentDictionary: (SharedOptions,),
    VQAttention: (MIXERS["vq"].Options, DictionaryConfig),
    SoftmaxAttention: (MIXERS["softmax"].Options,),
    SlidingWindowAttention: (MIXERS["sliding_window"].Options,),
    LinearAttention: (MIXERS["linear"].Options,),
    GatedDeltaNet: (MIXERS["gated_delta"].Options,),
    Mamba2: (MIXERS["mamba2"].Options,),
    GatedSlotAttention: (MIXERS["gated_slot"].Options,),
    MemoryHead: (MemoryOptions, *GROWTH),
    StreamingDiscriminant: (SLDAOptions,),
    MahalanobisHead: (FeCAMOptions,),
    NearestNeighbours: (NeighboursOptions,),
    PatchTransformer: (PatchTransformerOptions,),
    SequenceModel: (SequenceModelOptions,),
}


@pytest.mark.parametrize("made", SAME, ids=lambda made: made.__name__)
def test_defaults_are_those_of_the_options(made):
    options = {field.name: default_of(field) for cls in SAME[made] for field in fields(cls)}
    parameters = inspect.signature(made).parameters.values()
    given = {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in OWN}
    assert given == {name: options[NAMES.get(name, name)] for name in given}
